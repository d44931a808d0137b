"""Whether pictures without alpha were taken on another background than the fit assumes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nerf.data.scene import Scene

BORDER_SHARE, TOLERANCE = 0.95, 8  # of the border's pixels; 8-bit steps that JPEG may change


def border_hint(scene: Scene, background: str) -> str | None:
    """A hint for training views without alpha whose borders are black or white, where the fit assumes the other; or None.

    Pictures without alpha bring their background along. Training composites on ``background``, "white" or "black", and
    where that is not the pictures' own, the field has to build a wall behind the object.
    """
    images = scene.images
    if images.colors.shape[1] != 3 or images.drawable is not None or scene.n_views == 0:
        return None
    other = "black" if background == "white" else "white"
    border = torch.cat([_border(scene.picture(i)) for i in range(scene.n_views)]).int()
    far_from_other = (border if other == "black" else 255 - border).amax(1)
    if (far_from_other <= TOLERANCE).float().mean() < BORDER_SHARE:
        return None
    low, high = images.colors.aminmax()  # a picture of nothing else says nothing
    if (int(high) if other == "black" else 255 - int(low)) <= TOLERANCE:
        return None
    return (
        f"background: the training pictures have no alpha and {other} borders, but this fit takes empty space for "
        f"{background}. If the object was taken on {other}, give the data background={other!r} "
        f"(--data.background={other})"
    )


def _border(picture: Tensor) -> Tensor:
    """The outermost pixels [B, C] of a picture [H, W, C]."""
    rows, columns = picture[[0, -1]], picture[:, [0, -1]]
    return torch.cat([rows.reshape(-1, picture.shape[-1]), columns.reshape(-1, picture.shape[-1])])
