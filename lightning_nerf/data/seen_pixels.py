"""Pixels of pictures that their lens sees: the corners of a fisheye's picture are black, and belong to no ray."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.data.scene import Scene
from lightning_nerf.ops.lens_rays import valid_pixels
from lightning_nerf.ops.lenses import Lens

_CHUNK = 2**20  # pixels at once


def without_unseen_pixels(scene: Scene) -> Scene:
    """The scene without those drawable pixels that its lenses do not see; the same scene where they see all.

    Cameras of the same lens, intrinsics and size are looked at once; of these, those whose picture's border is seen all
    around are not looked at any further: what a lens sees has no holes.

    Args:
        scene: on the CPU.
    """
    cameras, images = scene.cameras, scene.images
    if cameras.lens_model is None or cameras.lens is None or cameras.n_views == 0:
        return scene
    columns = [
        cameras.lens_model[:, None].double(),
        cameras.lens.double(),
        cameras.intrinsics.double(),
        cameras.size.double(),
    ]
    _, kind = torch.cat(columns, 1).unique(dim=0, return_inverse=True)
    masks: dict[int, Tensor | None] = {}
    for view, each in enumerate(kind.tolist()):
        if each not in masks:
            masks[each] = _unseen(cameras, view)
    if all(mask is None for mask in masks.values()):
        return scene
    seen = torch.ones(len(images.colors), dtype=torch.bool)
    for each, first in zip(kind.tolist(), images.offsets.tolist(), strict=False):
        mask = masks[each]
        if mask is not None:
            seen[first : first + len(mask)] = mask
    drawable = seen.nonzero()[:, 0] if images.drawable is None else images.drawable[seen[images.drawable]]
    return scene._replace(images=images._replace(drawable=drawable))


def _unseen(cameras: Cameras, view: int) -> Tensor | None:
    """Which pixels of a view its lens sees, [h w] bool, row by row; None: all."""
    height, width = cameras.shape(view)
    n = height * width
    on_border = torch.cat(
        [torch.arange(width), torch.arange(n - width, n), torch.arange(0, n, width), torch.arange(width - 1, n, width)]
    )
    if bool(_seen(cameras, view, on_border).all()):
        return None
    return torch.cat([_seen(cameras, view, pixels) for pixels in torch.arange(n).split(_CHUNK)])


def _seen(cameras: Cameras, view: int, pixels: Tensor) -> Tensor:
    assert cameras.lens_model is not None
    assert cameras.lens is not None
    width = int(cameras.size[view, 0])
    lens = Lens(cameras.lens_model[view, None], cameras.lens[view, None])
    y = torch.div(pixels, width, rounding_mode="floor")
    return valid_pixels(cameras.intrinsics[view, None], lens, pixels - y * width, y)
