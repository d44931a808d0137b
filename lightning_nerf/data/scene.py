"""Pictures of any sizes, and the scene that a data source returns: cameras, pictures and names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras, check_values, checked_bounds, checked_cameras
from lightning_nerf.checks import BadArgument, check_instance, check_tensor
from lightning_nerf.ops.draw_rays import Pixels
from lightning_nerf.scene_box import SceneBox, check_box


class Images(NamedTuple):
    """P pixels of V pictures of any sizes, one picture after the other, row by row.

    >>> import torch
    >>> from lightning_nerf import Images
    >>> Images.from_pictures([torch.zeros(2, 3, 4, dtype=torch.uint8)]).colors.shape
    torch.Size([6, 4])
    """

    colors: Tensor  # [P, C] uint8, C = 3 (rgb) or 4 (rgb and straight alpha)
    offsets: Tensor  # [V + 1] int64: picture v has the pixels offsets[v] to offsets[v + 1]
    drawable: Tensor | None = None  # [M] int64, indices of the pixels that training may draw, ascending; None: all

    @classmethod
    def from_pictures(cls, pictures: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> Images:
        """Pictures [h, w, C] uint8 of one C, and masks [h, w] bool whose False pixels are never drawn.

        >>> import torch
        >>> from lightning_nerf import Images
        >>> Images.from_pictures([torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(1, 1, 3, dtype=torch.uint8)]).offsets
        tensor([0, 6, 7])
        """
        check_instance("pictures", pictures, Iterable)
        pictures = list(pictures)
        for i, picture in enumerate(pictures):
            check_tensor(f"pictures[{i}]", picture, ("h", "w", pictures[0].shape[-1] if i else "C"), torch.uint8)
            _check_channels(f"pictures[{i}]", picture)
        check_instance("masks", masks, Iterable, type(None))
        masks = None if masks is None else list(masks)
        if masks is not None and len(masks) != len(pictures):
            raise BadArgument(f"masks: expected {len(pictures)}, one of each picture, got {len(masks)}")
        counts = torch.tensor([0, *(picture.shape[0] * picture.shape[1] for picture in pictures)])
        channels = pictures[0].shape[-1] if pictures else 3
        flat = [picture.reshape(-1, channels) for picture in pictures]
        colors = _joined(flat) if flat else torch.empty(0, 3, dtype=torch.uint8)
        if not masks:
            return cls(colors.contiguous(), counts.cumsum(0))
        for i, mask in enumerate(masks):
            check_tensor(f"masks[{i}]", mask, tuple(pictures[i].shape[:2]), torch.bool)
        return cls(colors.contiguous(), counts.cumsum(0), torch.cat([mask.reshape(-1) for mask in masks]).nonzero()[:, 0])

    @property
    def n_views(self) -> int:
        """V."""
        return len(self.offsets) - 1


class Scene(NamedTuple):
    """V posed pictures with a name each, as :meth:`~lightning_nerf.data.source.Source.read` returns them.

    >>> import torch
    >>> from lightning_nerf import Cameras, Images, Scene
    >>> cameras = Cameras.of_one_size(torch.eye(4)[None, :3], torch.tensor([2.0, 2, 2, 1]), width=4, height=2)
    >>> scene = Scene(cameras, Images.from_pictures([torch.zeros(2, 4, 3, dtype=torch.uint8)]), ["front"])
    >>> scene.picture(0).shape
    torch.Size([2, 4, 3])
    """

    cameras: Cameras
    images: Images
    names: list[str]
    box: SceneBox | None = None  # where the source knows what holds the scene
    to_world: Tensor | None = None  # [4, 4]: from the scene's units to those of the source's files; None: they are the same
    depth_paths: list[Path | None] | None = None  # a file of depths per view, for losses that read them
    depth_unit: float = 0.001  # of whole numbers in these files, in the files' units
    picture_paths: list[Path] | None = None  # the file of each picture, where there is one
    mask_paths: list[Path | None] | None = None  # that of its mask

    @property
    def n_views(self) -> int:
        """V."""
        return self.cameras.n_views

    def map(self, function: Callable[[Tensor], Tensor]) -> Scene:
        """``function`` of each tensor of cameras and pictures."""
        images = Images(*(None if value is None else function(value) for value in self.images))  # type: ignore[arg-type]
        return self._replace(cameras=self.cameras.map(function), images=images)

    def to(self, device: torch.device | str) -> Scene:
        """This scene on ``device``; through pinned memory, hence asynchronous, from the CPU to a CUDA device."""
        device = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            pin = device.type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

        return self.map(move)

    def pixels(self) -> Pixels:
        """What :func:`~lightning_nerf.ops.draw_rays.draw_rays` reads.

        Pixels that a lens does not see are left out where a data module read the scene, else by
        :func:`~lightning_nerf.data.seen_pixels.without_unseen_pixels`.
        """
        cameras, images = self.cameras, self.images
        return Pixels(
            images.colors,
            images.offsets,
            images.drawable,
            cameras.c2w,
            cameras.intrinsics,
            cameras.size,
            checked_bounds(cameras),
            cameras.times,
            cameras.lens_model,
            cameras.lens,
        )

    def picture(self, index: int) -> Tensor:
        """One picture, [H, W, C] uint8."""
        if not 0 <= index < self.n_views:
            raise IndexError(f"index: expected a view in 0 ... {self.n_views - 1}, got {index}")
        height, width = self.cameras.shape(index)
        first = int(self.images.offsets[index])
        return self.images.colors[first : first + height * width].view(height, width, -1)

    def truth(self, index: int, background: Tensor) -> Tensor:
        """One picture as float [H, W, 3] on a background [3]; not quantized after compositing."""
        image = self.picture(index).to(background.device).float() / 255
        if image.shape[-1] == 3:
            return image
        rgb, alpha = image[..., :3], image[..., 3:]
        return alpha * rgb + (1 - alpha) * background


def checked_scene(name: str, scene: Scene) -> Scene:
    """A scene whose cameras, pictures and names fit each other, with drawable pixels in ascending order.

    Raises:
        BadType, BadArgument: naming what does not fit, as in ``source.read('train').images.offsets``.
    """
    check_instance(name, scene, Scene)
    cameras, images = checked_cameras(f"{name}.cameras", scene.cameras), scene.images
    check_instance(f"{name}.images", images, Images)
    check_tensor(f"{name}.images.colors", images.colors, ("P", "C"), torch.uint8)
    _check_channels(f"{name}.images.colors", images.colors)
    check_tensor(f"{name}.images.offsets", images.offsets, (cameras.n_views + 1,), torch.int64)
    if images.drawable is not None:
        check_tensor(f"{name}.images.drawable", images.drawable, ("M",), torch.int64)
        if len(images.drawable) and not 0 <= int(images.drawable.min()) <= int(images.drawable.max()) < len(images.colors):
            raise BadArgument(f"{name}.images.drawable: expected indices of {len(images.colors)} pixels")
    _check_names(f"{name}.names", scene.names, cameras.n_views)
    if scene.box is not None:
        check_box(f"{name}.box", scene.box)
    if cameras.n_views == 0:
        return scene
    if int(cameras.size.min()) < 1:
        raise BadArgument(f"{name}.cameras.size: expected widths and heights >= 1, got {int(cameras.size.min())}")
    sizes, pixels = cameras.size.prod(1), images.offsets.diff()
    if not torch.equal(sizes, pixels):
        i = int((sizes != pixels).nonzero()[0, 0])
        width, height = cameras.size[i].tolist()
        raise BadArgument(f"{name}.images: view {i} is {width} x {height}, but has {int(pixels[i])} pixels")
    if int(images.offsets[0]) != 0 or int(images.offsets[-1]) != len(images.colors):
        raise BadArgument(f"{name}.images.offsets: expected 0 to {len(images.colors)}, the number of pixels")
    check_values(f"{name}.cameras", cameras)
    if images.drawable is None or bool((images.drawable.diff() >= 0).all()):
        return scene
    return scene._replace(images=images._replace(drawable=images.drawable.sort().values))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts [p, C] as one tensor. Those that follow each other in one storage, as in a mapped file, are not copied."""
    first, at = parts[0], parts[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.data_ptr() != at or not part.is_contiguous():
            return torch.cat(list(parts))
        at += part.nbytes
    return first.as_strided((sum(map(len, parts)), first.shape[1]), (first.shape[1], 1))


def _check_names(name: str, names: object, n: int) -> None:
    """n strings, no two alike where letters' case is ignored: pictures are saved under them."""
    check_instance(name, names, list, tuple)
    assert isinstance(names, (list, tuple))
    if len(names) != n:
        raise BadArgument(f"{name}: expected {n} names, got {len(names)}")
    seen: set[str] = set()
    for i, each in enumerate(names):
        check_instance(f"{name}[{i}]", each, str)
        if not each or ".." in each.replace("\\", "/").split("/") or each[0] in "/\\" or "\0" in each:
            raise BadArgument(f"{name}[{i}]: expected a name under which a picture can be saved, got {each!r}")
        if each.casefold() in seen:
            raise BadArgument(f"{name}[{i}]: expected a name of its own, got {each!r} once more")
        seen.add(each.casefold())


def _check_channels(name: str, colors: Tensor) -> None:
    if colors.shape[-1] not in (3, 4):
        raise BadArgument(f"{name}: expected 3 or 4 channels, got {colors.shape[-1]}")
