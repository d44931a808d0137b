"""Frames are what placing, evaluating and compositing all rays at once would give."""

from __future__ import annotations

import signal
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.cameras import Cameras
from lightning_nerf.cameras.cameras import image_rays
from lightning_nerf.capabilities import states
from lightning_nerf.estimators import Estimator, Hierarchical, OccupancyGrid
from lightning_nerf.fields import RadianceField, VanillaField
from lightning_nerf.ops import visibility
from lightning_nerf.ops.composite import composite
from lightning_nerf.ops.sample_points import sample_points
from lightning_nerf.ops.visibility import prune
from lightning_nerf.renderers import FrameRenderer, VolumeRenderer, frame
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import (
    Densities,
    Evaluated,
    FieldOutput,
    FrameKernel,
    PackedSamples,
    Placement,
    Pruning,
    Query,
    Rays,
    Render,
)
from tests.ops.harness import rand

BOX = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))


class Ball(RadianceField):
    """A colored ball of fog, with a further channel."""

    def density(self, positions: Tensor) -> Tensor:
        return 6.0 * (positions.norm(dim=-1) < 0.8)

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        height = 0.5 + 0.5 * positions[:, 2:]
        return FieldOutput(self.density(positions), self.unit_positions(positions).clamp(0, 1), {"height": height})


class Eight(Estimator):
    """Eight samples on each active ray."""

    fixed_count = 8

    def bind(self, scene_box: Any) -> Eight:
        return self

    def place(self, rays: Rays, query: Query | None = None, **_: Any) -> Placement:
        active = rays.far > rays.near
        counts = active * self.fixed_count
        offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
        owner = torch.arange(len(counts)).repeat_interleave(counts)
        edges = torch.lerp(rays.near[owner], rays.far[owner], (torch.arange(len(owner)) % 8) / 8)
        lengths = (rays.far - rays.near)[owner] / 8
        return Placement(PackedSamples(edges, edges + lengths, owner.int(), offsets, torch.ones(len(counts)).bool()))


def grid() -> OccupancyGrid:
    return OccupancyGrid(resolution=8, step_size=0.05).bind(BOX)


def field() -> Ball:
    ball = Ball()
    ball.bind(BOX)
    return ball


def rays_of(n: int) -> Rays:
    """From a sphere around the box; every fifth is inactive, some miss the ball."""
    origins = torch.nn.functional.normalize(rand(n, 3, seed=1, low=-1.0), dim=-1) * 3
    directions = torch.nn.functional.normalize(rand(n, 3, seed=2, low=-1.0) - origins, dim=-1)
    far = torch.where(torch.arange(n) % 5 == 4, 0.0, 5.0)
    return Rays(origins, directions, torch.full((n,), 0.0), far)


def at_once(estimator: Estimator, rays: Rays, background: Tensor | None) -> Render:
    """Without a FrameRenderer."""
    with torch.no_grad():
        samples = estimator.place(rays, field().query).samples
        return VolumeRenderer()(field().at_samples(rays, samples), samples, background=background)


def assert_same(a: Render, b: Render) -> None:
    for name in ("rgb", "opacity", "depth"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(a.n_samples, b.n_samples)
    assert a.extras.keys() == b.extras.keys()
    for name, value in a.extras.items():
        torch.testing.assert_close(value, b.extras[name], rtol=1e-5, atol=1e-6, msg=name)


BACKGROUNDS = {"black": None, "one color": torch.tensor([0.2, 0.5, 1.0]), "one per ray": rand(100, 3, seed=9)}
CASES = [(grid, size) for size in (1, 30, 41, 500, 2**21)] + [(Eight, size) for size in (1, 8, 25, 799, 2**21)]


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize(("make", "max_samples"), CASES)
def test_chunks_are_equal_to_the_whole(make: Any, max_samples: int, background: str) -> None:
    estimator, rays, behind = make(), rays_of(100), BACKGROUNDS[background]
    rendered = FrameRenderer(field(), estimator, VolumeRenderer(), max_samples).rays(rays, behind)
    whole = at_once(estimator, rays, behind)
    assert_same(rendered, whole)
    assert list(rendered.extras) == ["height"]
    assert 0 < float(whole.opacity.mean()) < 1
    missed = whole.n_samples == 0
    assert missed.sum() >= 20
    expected = torch.zeros(100, 3) if behind is None else behind.expand(100, 3)
    assert torch.equal(rendered.rgb[missed], expected[missed])


class Counting(Ball):
    """Counts the samples that it is asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        self.asked.append(len(positions))
        return super().forward(positions, directions)


@pytest.mark.parametrize(("make", "max_samples"), [(grid, 200), (Eight, 200), (grid, 2**21)])
def test_no_chunk_has_more_samples_than_told(make: Any, max_samples: int) -> None:
    counting = Counting()
    counting.bind(BOX)
    FrameRenderer(counting, make(), VolumeRenderer(), max_samples).rays(rays_of(100))
    assert max(counting.asked) <= max_samples
    assert (len(counting.asked) == 1) == (max_samples == 2**21)


@pytest.mark.parametrize("make", [grid, Eight])
def test_no_rays(make: Any) -> None:
    for background in (None, torch.ones(3), torch.ones(0, 3)):
        render = FrameRenderer(field(), make(), VolumeRenderer()).rays(rays_of(0), background)
        assert render.rgb.shape == (0, 3)
        assert render.opacity.shape == render.depth.shape == render.n_samples.shape == (0,)
        assert render.extras["height"].shape == (0, 1)


# -- a field with a kernel --------------------------------------------------------------------------------------------


class WithKernel(Ball):
    """Renders from candidates, as a fused kernel would: from its own formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def frame_kernel(self, rays: Rays) -> FrameKernel | None:
        def kernel(rays: Rays, candidates: PackedSamples, pruning: Pruning) -> Render:
            self.calls.append(len(rays.origins))
            positions, directions, _ = sample_points(rays, candidates)
            samples = prune(
                self.density(positions), candidates, early_stop_eps=pruning.early_stop_eps, alpha_thre=pruning.alpha_thre
            )
            positions, directions, _ = sample_points(rays, samples)
            out = self(positions, directions)
            parts = composite(out.density, out.rgb, samples.t_starts, samples.t_ends, samples.offsets)
            return Render(parts.channels, parts.opacity, parts.depth, samples.offsets.diff())

        return kernel


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("fused_samples", [10, 300, 2**25])
def test_a_kernel_gives_the_same(monkeypatch: pytest.MonkeyPatch, fused_samples: int, background: str) -> None:
    monkeypatch.setattr(frame, "FUSED_SAMPLES", fused_samples)
    estimator, rays, behind = grid(), rays_of(100), BACKGROUNDS[background]
    kernel = WithKernel()
    kernel.bind(BOX)
    render = FrameRenderer(kernel, estimator, VolumeRenderer(), max_samples=10).rays(rays, behind)
    assert_same(render, at_once(estimator, rays, behind)._replace(extras={}))
    assert sum(kernel.calls) == 100
    assert (len(kernel.calls) == 1) == (fused_samples == 2**25)


@pytest.mark.parametrize("count", [None, 8])
def test_a_kernel_is_left_where_parts_do_something_else(count: int | None) -> None:
    kernel, estimator = WithKernel(), grid() if count is None else Eight()
    kernel.bind(BOX)
    renderer = VolumeRenderer(early_stop_eps=0.01 if count is None else 0.0)
    frames = FrameRenderer(kernel, estimator, renderer)
    assert frames.kernel(rays_of(3)) is None
    frames.rays(rays_of(3))
    assert not kernel.calls


# -- a field whose work ends at a count ---------------------------------------------------------------------------------


class Ending(Ball):
    """Gives NaN behind the number of samples that the device knows, as a kernel that stops there may."""

    def __init__(self, ends: bool = True) -> None:
        super().__init__()
        self.ends = ends
        self.lists: list[tuple[int, int]] = []  # their length, and how many samples they hold

    def ends_at_count(self, rays: Rays) -> bool:
        return self.ends

    @states("counted")
    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        return super().query(rays, samples, early_stop_eps)

    @states("counted")
    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        density, rgb, extras, _ = super().at_samples(rays, samples, evaluated)
        n = int(samples.offsets[-1])
        self.lists.append((len(density), n))
        for values in (density, rgb, *extras.values()):
            values[n:] = float("nan")
        return FieldOutput(density, rgb, extras)


class Overriding(Ending):
    """Knows nothing of counts."""

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        return super().at_samples(rays, samples, evaluated)


def pruning_hierarchical() -> Estimator:
    return Hierarchical(6, 4, alpha_threshold=0.01, early_stop_eps=0.01).bind(BOX)


@pytest.mark.parametrize(("make", "max_samples"), [(m, s) for m in (grid, pruning_hierarchical) for s in (150, 500, 2**21)])
def test_the_host_waits_once_for_each_chunk_where_work_ends_at_a_count(
    monkeypatch: pytest.MonkeyPatch, make: Any, max_samples: int
) -> None:
    waits = {"fit": 0, "left": 0}
    read, write_exactly = frame._read, visibility.write_exactly

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            waits[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(frame, "_read", counted("fit", read))
    monkeypatch.setattr(visibility, "write_exactly", counted("left", write_exactly))
    renders = []
    for ending, is_counted in [(Ending(), True), (Ending(ends=False), False), (Overriding(), False)]:
        ending.bind(BOX)
        estimator, rays = make(), rays_of(100)
        waits.update(fit=0, left=0)
        renders.append(FrameRenderer(ending, estimator, VolumeRenderer(), max_samples).rays(rays))
        chunks = len(ending.lists)
        assert (chunks == 1) == (max_samples == 2**21)
        assert waits == {"fit": chunks if make is grid else 0, "left": 0 if is_counted else chunks}
        assert all(n <= length <= max_samples for length, n in ending.lists)
        assert any(n < length for length, n in ending.lists) == is_counted
        assert_same(renders[-1], at_once(estimator, rays, None))
    for other in renders[1:]:
        assert all(torch.equal(a, b) for a, b in zip(renders[0][:4], other[:4], strict=True))
        assert torch.equal(renders[0].extras["height"], other.extras["height"])


@pytest.mark.gpu
def test_on_a_gpu_nothing_else_waits_for_a_wide_field(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    wide = VanillaField(density_activation="softplus").cuda().eval()
    wide.bind(BOX)
    rays, chunks = rays_of(100).map(Tensor.cuda), 0
    read = frame._read

    def counted(numbers: Tensor) -> list[int]:
        nonlocal chunks
        chunks += 1
        return read(numbers)

    monkeypatch.setattr(frame, "_read", counted)
    frames = FrameRenderer(wide, grid().cuda(), VolumeRenderer(), max_samples=1000)
    with torch.autocast("cuda", torch.bfloat16), warnings.catch_warnings(record=True) as caught:
        if not wide.ends_at_count(rays):
            pytest.skip("no kernel for this GPU")
        warnings.simplefilter("always")
        frames.rays(rays)  # what is made once is made here
        caught.clear()
        chunks = 0
        torch.cuda.set_sync_debug_mode("warn")
        try:
            frames.rays(rays)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert chunks > 1
    assert sum("synchroniz" in str(warning.message) for warning in caught) <= chunks


# -- whole frames -----------------------------------------------------------------------------------------------------


def cameras() -> Cameras:
    poses = torch.eye(4)[None, :3].repeat(2, 1, 1)
    poses[:, 2, 3] = torch.tensor([3.0, 4.0])
    size = torch.tensor([[7, 5], [4, 6]])
    intrinsics = torch.tensor([[6.0, 6.0, 3.5, 2.5], [5.0, 5.0, 2.0, 3.0]])
    return Cameras(poses, intrinsics, size).bounded(0.1, 9.0)


@pytest.mark.parametrize("band", [9, 2**20])
@pytest.mark.parametrize(("index", "shape"), [(0, (5, 7)), (1, (6, 4))])
def test_a_frame_is_its_rays_row_by_row(
    monkeypatch: pytest.MonkeyPatch, index: int, shape: tuple[int, int], band: int
) -> None:
    monkeypatch.setattr(frame, "BAND_RAYS", band)
    frames, behind = FrameRenderer(field(), grid(), VolumeRenderer()), torch.tensor([0.1, 0.2, 0.3])
    picture = frames.frame(cameras(), index, behind)
    flat = frames.rays(image_rays(cameras(), index), behind)
    assert picture.rgb.shape == (*shape, 3)
    assert picture.opacity.shape == picture.depth.shape == picture.n_samples.shape == shape
    assert picture.extras["height"].shape == (*shape, 1)
    assert_same(picture, Render(flat.rgb.view(*shape, 3), *(t.view(shape) for t in flat[1:4]),
                                {"height": flat.extras["height"].view(*shape, 1)}))  # fmt: skip
    bands = list(frames.bands(cameras(), index, behind))
    assert [len(b.rgb) for b in bands] == [min(band, 35 - i) for i in range(0, 35, band)] if index == 0 else bands
    assert torch.equal(torch.cat([b.rgb for b in bands]).view(*shape, 3), picture.rgb)
    with pytest.raises(IndexError, match=r"index: expected a view in 0 \.\.\. 1, got 2"):
        next(iter(frames.bands(cameras(), 2, shape=shape)))


def test_a_signal_is_obeyed_after_a_thousand_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels hold signals back: on a CPU, where a thousand rays take up to a second, no call gets more."""
    sizes: list[int] = []
    rendered = FrameRenderer.rays

    def counted(self: FrameRenderer, rays: Rays, background: Tensor | None = None) -> Render:
        sizes.append(len(rays.origins))
        if len(sizes) == 2:
            signal.raise_signal(signal.SIGINT)
        return rendered(self, rays, background)

    monkeypatch.setattr(FrameRenderer, "rays", counted)
    one = cameras().chosen([0])._replace(size=torch.tensor([[800, 800]]))
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs us in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            FrameRenderer(field(), grid(), VolumeRenderer()).frame(one, 0)
    finally:
        signal.signal(signal.SIGINT, former)
    assert sizes == [1024, 1024]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="max_samples: expected an integer from 1"):
        FrameRenderer(field(), grid(), VolumeRenderer(), max_samples=0)
