"""What the cameras of a scene see of points, by NerfAcc's convention."""

from __future__ import annotations

from torch import Tensor

from lightning_nerf.checks import BadArgument, check_same_device


def check_cameras(intrinsics: Tensor, c2w: Tensor, occs: Tensor) -> None:
    """Intrinsics K [V, 3, 3] or [1, 3, 3] and poses [V, 3, 4] or [V, 4, 4], on the grid's device."""
    if c2w.ndim != 3 or c2w.shape[1:] not in ((3, 4), (4, 4)):
        raise BadArgument(f"c2w: expected shape [V, 3, 4] or [V, 4, 4], got {list(c2w.shape)}")
    views = c2w.shape[0]
    if intrinsics.ndim != 3 or intrinsics.shape[1:] != (3, 3) or intrinsics.shape[0] not in (1, views):
        raise BadArgument(f"K: expected shape [1, 3, 3] or [{views}, 3, 3], got {list(intrinsics.shape)}")
    check_same_device(K=intrinsics, c2w=c2w, occs=occs)
    for name, value in (("K", intrinsics), ("c2w", c2w)):
        if value.is_complex():
            raise BadArgument(f"{name}: expected real numbers, got {value.dtype}")


def are_seen(points: Tensor, intrinsics: Tensor, c2w: Tensor, width: int, height: int, near_plane: float) -> Tensor:
    """Whether points [n, 3] float64 are in some image at a depth of ``near_plane`` or more, and in none at less: [n]."""
    rotation, position = c2w[:, :3, :3].double(), c2w[:, None, :3, 3].double()
    x, y, depth = ((points - position) @ rotation @ intrinsics.double().mT).unbind(-1)  # [V, n]
    u, v = x / depth, y / depth
    in_image = (depth >= 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return (in_image & (depth >= near_plane)).any(0) & ~(in_image & (depth < near_plane)).any(0)
