from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.data import Images, Scene
from lightning_nerf.data.scene import checked_scene
from lightning_nerf.scene_box import SceneBox
from tests.data.numbered import MIXED, numbered_scene
from tests.ops.harness import rand

NAN = float("nan")
BOX = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))


def pictures(channels: int = 4) -> list[Tensor]:
    """One of each size in MIXED."""
    return [(rand(h, w, channels, seed=i) * 256).byte() for i, (w, h) in enumerate(MIXED)]


def tensors(scene: Scene) -> list[Tensor]:
    return [t for t in (*scene.cameras, *scene.images) if t is not None]


@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_of_any_sizes_come_out_as_they_went_in(channels: int) -> None:
    given = pictures(channels)
    images = Images.from_pictures(given)
    assert images.n_views == 3
    assert images.offsets.tolist() == [0, 20, 34, 61]
    assert images.colors.shape == (61, channels)
    assert images.colors.is_contiguous()
    assert images.drawable is None
    scene = checked_scene("scene", numbered_scene(MIXED)._replace(images=images))
    for i, picture in enumerate(given):
        assert torch.equal(scene.picture(i), picture)


def test_pictures_that_are_slices_of_others_come_out_contiguous() -> None:
    given = [picture.transpose(0, 1) for picture in pictures()]
    for some in (given, given[:1], [pictures()[0][..., :3]]):
        images = Images.from_pictures(some)
        assert images.colors.is_contiguous()
        assert torch.equal(images.colors, torch.cat([picture.reshape(-1, picture.shape[-1]) for picture in some]))


def test_masks_name_the_pixels_that_may_be_drawn() -> None:
    masks = [rand(h, w, seed=10 + i) < 0.5 for i, (w, h) in enumerate(MIXED)]
    expected = [
        first + y * w + x
        for first, (w, h), mask in zip((0, 20, 34), MIXED, masks, strict=True)
        for y in range(h)
        for x in range(w)
        if mask[y, x]
    ]
    drawable = Images.from_pictures(pictures(), masks).drawable
    assert drawable is not None
    assert drawable.tolist() == expected


@pytest.mark.parametrize("masks", [None, []])
def test_no_pictures_are_a_scene_without_views(masks: list[Tensor] | None) -> None:
    images = Images.from_pictures([], masks)
    assert images.n_views == 0
    assert images.offsets.tolist() == [0]
    assert images.drawable is None
    scene = numbered_scene(())
    assert scene.n_views == 0
    assert checked_scene("scene", scene) is scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[1].float(), r"pictures\[1\]: expected dtype torch.uint8, got torch.float32"),
        (lambda p: p[1][..., :3], r"pictures\[1\]: expected shape \[h, w, 4\], got \[7, 2, 3\]"),
        (lambda p: p[1][0], r"pictures\[1\]: expected shape \[h, w, 4\], got \[2, 4\]"),
        (lambda p: p[1].numpy(), r"pictures\[1\]: expected a tensor, got ndarray"),
    ],
)
def test_pictures_that_are_none_are_named(change: Callable[[list[Tensor]], Any], message: str) -> None:
    given = pictures()
    given[1] = change(given)
    with pytest.raises(ValueError, match=message):
        Images.from_pictures(given)


def test_pictures_come_from_any_iterable() -> None:
    expected = Images.from_pictures(pictures())
    assert torch.equal(Images.from_pictures(picture for picture in pictures()).colors, expected.colors)  # type: ignore[arg-type]
    stack = torch.zeros(2, 3, 4, 3, dtype=torch.uint8)
    assert Images.from_pictures(stack, torch.ones(2, 3, 4) > 0).offsets.tolist() == [0, 12, 24]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pictures: expected Iterable, got NoneType"):
        Images.from_pictures(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [torch.zeros(4, 5, dtype=torch.uint8), None, torch.zeros(4, 5, 2, dtype=torch.uint8)])
def test_a_first_picture_that_is_none_is_named(first: Any) -> None:
    with pytest.raises(ValueError, match=r"pictures\[0\]: expected (shape \[h, w, C\]|a tensor|3 or 4 channels)"):
        Images.from_pictures([first])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [m[0].byte(), *m[1:]], r"masks\[0\]: expected dtype torch.bool, got torch.uint8"),
        (lambda m: [m[1], m[0], m[2]], r"masks\[0\]: expected shape \[4, 5\], got \[7, 2\]"),
        (lambda m: m[:2], "masks: expected 3, one of each picture, got 2"),
        (lambda m: [], "masks: expected 3, one of each picture, got 0"),
        (lambda m: [*m, m[0]], "masks: expected 3, one of each picture, got 4"),
    ],
)
def test_masks_that_do_not_fit_are_named(change: Callable[[list[Tensor]], Any], message: str) -> None:
    masks = [torch.ones(h, w, dtype=torch.bool) for w, h in MIXED]
    with pytest.raises(ValueError, match=message):
        Images.from_pictures(pictures(), change(masks))


def test_the_truth_composites_on_the_background() -> None:
    given, background = pictures(), torch.tensor([0.25, 0.5, 1.0])
    given[1][..., 3] = 0
    given[2][..., 3] = 255
    scene = numbered_scene(MIXED)._replace(images=Images.from_pictures(given))
    for i, picture in enumerate(given):
        rgb, alpha = picture[..., :3] / 255, picture[..., 3:] / 255
        truth = scene.truth(i, background)
        assert truth.dtype is torch.float32
        torch.testing.assert_close(truth, alpha * rgb + (1 - alpha) * background)
    assert torch.equal(scene.truth(1, background), background.expand(7, 2, 3))
    torch.testing.assert_close(scene.truth(2, background), given[2][..., :3] / 255)
    opaque = scene._replace(images=Images.from_pictures([picture[..., :3] for picture in given]))
    for i, picture in enumerate(given):
        assert torch.equal(opaque.truth(i, background), picture[..., :3].float() / 255)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_view_that_there_is_not_is_named(index: int) -> None:
    for attempt in (lambda s: s.picture(index), lambda s: s.truth(index, torch.ones(3))):
        with pytest.raises(IndexError, match=rf"index: expected a view in 0 \.\.\. 2, got {index}"):
            attempt(numbered_scene(MIXED))


def test_a_scene_moves_as_a_whole() -> None:
    scene = numbered_scene(MIXED, masked=rand(61, seed=0) < 0.5)._replace(box=BOX)
    there = scene.to("meta")
    assert len(tensors(there)) == len(tensors(scene)) == 8
    assert all(t.device.type == "meta" for t in tensors(there))
    assert there.names == scene.names
    assert there.box is BOX  # the field keeps it where the field is
    for a, b in zip(tensors(scene.to("cpu")), tensors(scene), strict=True):
        assert a is b


@pytest.mark.gpu
def test_a_scene_is_the_same_on_a_gpu() -> None:
    scene = numbered_scene(MIXED, masked=rand(61, seed=0) < 0.5)
    there = scene.to("cuda")
    torch.cuda.synchronize()
    for a, b in zip(tensors(there), tensors(scene), strict=True):
        assert a.is_cuda
        assert torch.equal(a.cpu(), b)
    assert torch.equal(there.picture(2).cpu(), scene.picture(2))
    background = torch.rand(3, device="cuda")
    torch.testing.assert_close(scene.truth(2, background).cpu(), scene.truth(2, background.cpu()))


def test_what_a_draw_reads_is_what_the_scene_holds() -> None:
    scene = numbered_scene(MIXED, masked=rand(61, seed=0) < 0.5)
    pixels = scene.pixels()
    for name, value in pixels._asdict().items():
        assert value is getattr(scene.images, name, getattr(scene.cameras, name, None)), name


def cameras(**change: Any) -> Callable[[Scene], Scene]:
    return lambda scene: scene._replace(cameras=scene.cameras._replace(**change))


def images(**change: Any) -> Callable[[Scene], Scene]:
    return lambda scene: scene._replace(images=scene.images._replace(**change))


def box(**change: Any) -> Callable[[Scene], Scene]:
    return lambda scene: scene._replace(box=BOX._replace(**change))


def indices(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def pose(value: float) -> Callable[[Scene], Scene]:
    def changed(scene: Scene) -> Scene:
        c2w = scene.cameras.c2w.clone()
        c2w[1] = value
        return cameras(c2w=c2w)(scene)

    return changed


def focal(value: float) -> Callable[[Scene], Scene]:
    def changed(scene: Scene) -> Scene:
        intrinsics = scene.cameras.intrinsics.clone()
        intrinsics[2, 0] = value
        return cameras(intrinsics=intrinsics)(scene)

    return changed


REFUSED: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "a tuple": (tuple, "it: expected Scene, got tuple"),
    "no cameras": (lambda scene: scene._replace(cameras=None), "it.cameras: expected Cameras, got NoneType"),
    "poses": (cameras(c2w=torch.zeros(3, 4, 4)), r"it.cameras.c2w: expected shape \[V, 3, 4\], got \[3, 4, 4\]"),
    "intrinsics of other views": (
        cameras(intrinsics=torch.ones(2, 4)), r"it.cameras.intrinsics: expected shape \[3, 4\], got \[2, 4\]"
    ),
    "a size that is not of integers": (
        cameras(size=torch.ones(3, 2)), "it.cameras.size: expected dtype torch.int64, got torch.float32"
    ),
    "a negative size": (
        cameras(size=torch.tensor([[-5, -4], [2, 7], [9, 3]])), "it.cameras.size: expected widths and heights >= 1, got -5"
    ),
    "a size of another picture": (
        cameras(size=torch.tensor([[5, 4], [2, 8], [9, 3]])), "it.images: view 1 is 2 x 8, but has 14 pixels"
    ),
    "times of other views": (cameras(times=torch.ones(2)), r"it.cameras.times: expected shape \[3\], got \[2\]"),
    "one bound": (cameras(bounds=torch.ones(3, 1)), r"it.cameras.bounds: expected shape \[3, 2\], got \[3, 1\]"),
    "an infinite bound": (
        cameras(bounds=torch.tensor([[0.0, 1.0], [0.0, float("inf")], [0.0, 1.0]])),
        "it.cameras.bounds: expected finite numbers",
    ),
    "a bound that is NaN": (cameras(bounds=torch.full((3, 2), NAN)), "it.cameras.bounds: expected finite numbers"),
    "pictures in a list": (
        lambda scene: scene._replace(images=pictures()), "it.images: expected Images, got list"
    ),
    "colors that are not flat": (
        images(colors=torch.zeros(1, 61, 3, dtype=torch.uint8)),
        r"it.images.colors: expected shape \[P, C\], got \[1, 61, 3\]",
    ),
    "float colors": (images(colors=torch.zeros(61, 3)), "it.images.colors: expected dtype torch.uint8, got torch.float32"),
    "two channels": (
        images(colors=torch.zeros(61, 2, dtype=torch.uint8)), "it.images.colors: expected 3 or 4 channels, got 2"
    ),
    "offsets of other views": (images(offsets=indices(0, 20, 61)), r"it.images.offsets: expected shape \[4\], got \[3\]"),
    "offsets that do not begin at 0": (
        images(offsets=indices(1, 21, 35, 62)), "it.images.offsets: expected 0 to 61, the number of pixels"
    ),
    "more pixels than pictures": (
        images(colors=torch.zeros(62, 3, dtype=torch.uint8)), "it.images.offsets: expected 0 to 62, the number of pixels"
    ),
    "fewer pixels than pictures": (
        images(colors=torch.zeros(60, 3, dtype=torch.uint8)), "it.images.offsets: expected 0 to 60, the number of pixels"
    ),
    "drawable as a mask": (
        images(drawable=torch.ones(61, dtype=torch.bool)), "it.images.drawable: expected dtype torch.int64, got torch.bool"
    ),
    "a drawable pixel too far": (images(drawable=indices(0, 61)), "it.images.drawable: expected indices of 61 pixels"),
    "a negative drawable pixel": (images(drawable=indices(-1, 3)), "it.images.drawable: expected indices of 61 pixels"),
    "names of other views": (lambda scene: scene._replace(names=["a"]), "it.names: expected 3 names, got 1"),
    "a box that is a tensor": (lambda scene: scene._replace(box=BOX.aabb), "it.box: expected SceneBox, got Tensor"),
    "corners in a list": (box(aabb=[[0.0] * 3, [1.0] * 3]), "it.box.aabb: expected a tensor, got list"),
    "a box without volume": (
        box(aabb=torch.tensor([[0.0, 0, 0], [1, 0, 1]])),
        "it.box.aabb: expected a minimum corner and a maximum corner above it",
    ),
    "a box without end": (
        box(aabb=torch.tensor([[0.0] * 3, [float("inf")] * 3])), "it.box.aabb: expected a minimum corner and a maximum"
    ),
    "a pose that is NaN": (
        pose(NAN), r"it.cameras.c2w: expected finite numbers, got \[\[nan, nan, nan, nan\].* in view 1"
    ),
    "a pose that is infinite": (pose(float("inf")), "it.cameras.c2w: expected finite numbers, got .* in view 1"),
    "a pose without axes": (pose(0.0), "it.cameras.c2w: expected an invertible rotation, got .* in view 1"),
    "a focal length of 0": (focal(0.0), "it.cameras.intrinsics: expected finite fx, fy > 0, cx, cy, got .* in view 2"),
    "a negative focal length": (focal(-9.0), "it.cameras.intrinsics: expected finite fx, fy > 0, cx, cy, got .* in view 2"),
    "a focal length that is NaN": (focal(NAN), "it.cameras.intrinsics: expected finite fx, fy > 0, cx, cy, got"),
    "one view's far before its near": (
        cameras(bounds=torch.tensor([[1.0, 2], [3, 1], [1, 2]])),
        r"it.cameras.bounds: expected finite numbers, 0 <= near < far, got \[3.0, 1.0\] in view 1",
    ),
    "a negative near": (
        cameras(bounds=torch.tensor([[-1.0, 2], [0, 1], [1, 2]])), "it.cameras.bounds: expected finite numbers, 0 <= near"
    ),
    "a time that is NaN": (
        cameras(times=torch.tensor([0.0, NAN, 1.0])), "it.cameras.times: expected finite numbers, got nan in view 1"
    ),
    "no names": (lambda scene: scene._replace(names=None), "it.names: expected list or tuple, got NoneType"),
    "a name that is a number": (lambda s: s._replace(names=["a", 1, "b"]), r"it.names\[1\]: expected str, got int"),
    "one name twice": (
        lambda s: s._replace(names=["a", "b", "A"]), r"it.names\[2\]: expected a name of its own, got 'A' once more"
    ),
    "a name outside of the folder": (
        lambda s: s._replace(names=["a", "../b", "c"]), r"it.names\[1\]: expected a name under which a picture can be saved"
    ),
    "an unknown contraction": (
        box(contraction="cube"), "it.box.contraction: expected one of none, l2, linf, ndc, got 'cube'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_a_scene_that_does_not_fit_itself_is_refused(row: str) -> None:
    change, message = REFUSED[row]
    scene = numbered_scene(MIXED)
    assert checked_scene("it", scene) is scene
    with pytest.raises(ValueError, match=f"^{message}"):
        checked_scene("it", change(scene))


@pytest.mark.parametrize(
    "change",
    [
        cameras(bounds=None),
        cameras(times=None),
        images(drawable=indices(0, 60)),
        images(drawable=indices()),
        lambda scene: scene._replace(box=BOX),
        lambda scene: scene._replace(box=BOX._replace(contraction="l2")),
    ],
)
def test_what_a_scene_may_lack_it_may_have(change: Callable[[Scene], Scene]) -> None:
    scene = change(numbered_scene(MIXED))
    assert checked_scene("it", scene) is scene


def test_drawable_pixels_are_put_in_order() -> None:
    scene = checked_scene("it", images(drawable=indices(60, 3, 3, 0))(numbered_scene(MIXED)))
    assert scene.images.drawable is not None
    assert scene.images.drawable.tolist() == [0, 3, 3, 60]
