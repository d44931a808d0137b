"""What a render says of a view, as pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from lightning_nerf.callbacks.colors import colorize, to_uint8
from lightning_nerf.checks import BadArgument
from lightning_nerf.types import Render

CHANNELS = ("rgb", "rgba", "depth", "opacity")  # and the names of the field's extras


def check_channels(channels: Sequence[str], render: Render, name: str = "--channels") -> None:
    """Each must be a channel of ``render`` that can be shown, or a ValueError names it and the argument ``name``."""
    known = [*CHANNELS, *(extra for extra in render.extras if extra not in CHANNELS)]
    for channel in channels:
        if channel not in known:
            raise BadArgument(f"{name}: this model renders {', '.join(known)}, got {channel!r}")
        if channel not in CHANNELS and render.extras[channel].shape[-1] not in (1, 3):
            raise BadArgument(
                f"{name}: expected one or three numbers per pixel, {channel!r} has {render.extras[channel].shape[-1]}"
            )
    if len(set(channels)) < len(channels):
        raise BadArgument(f"{name}: expected each name once, got {' '.join(channels)}")


def image(
    render: Render,
    channel: str = "rgb",
    depth_range: tuple[float, float] | None = None,
    background: Tensor | None = None,
) -> Image.Image:
    """A channel of a view as a Pillow image, which a notebook shows and ``.save("view.png")`` writes.

    Args:
        render: of a view, as ``module.render_view`` returns it.
        channel: "rgb", "depth", "opacity", "rgba", or an extra of the field; see :func:`picture`.
        depth_range: distances shown violet and yellow. None: the least and the greatest of the view.
        background: [3], what the view is composited on; for "rgba" alone.

    Raises:
        ValueError: no view, no such channel, or "rgba" without a background.

    >>> import torch
    >>> from lightning_nerf import Render
    >>> from lightning_nerf.render.pictures import image
    >>> view = Render(torch.rand(6, 8, 3), torch.ones(6, 8), torch.rand(6, 8), torch.ones(6, 8, dtype=torch.int32))
    >>> image(view, "depth").size
    (8, 6)
    """
    if render.rgb.ndim != 3:
        raise BadArgument(f"render: expected a view, with rgb [H, W, 3], got rgb {[*render.rgb.shape]}")
    check_channels([channel], render, "channel")
    if background is None:
        if channel == "rgba":
            raise BadArgument("background: expected the color that the view is composited on, [3], for 'rgba', got None")
        background = render.rgb.new_zeros(3)
    if depth_range is None:
        distances = numbers(render, "depth", background)
        seen = distances[distances.isfinite()]
        depth_range = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
        if not depth_range[0] < depth_range[1]:
            depth_range = depth_range[0], depth_range[0] + 1.0
    return Image.fromarray(picture(render, channel, depth_range, background.to(render.rgb.device)).numpy())


def picture(render: Render, channel: str, depth_range: tuple[float, float], background: Tensor) -> Tensor:
    """A channel of a view as [H, W, 3] uint8 on the CPU; ``rgba`` as [H, W, 4].

    ``depth`` is the mean distance to the camera of what is seen (divided by the opacity), colored from dark violet at
    ``depth_range``'s lower end to yellow at its upper end and darkened by the transparency. ``opacity`` and an extra of one
    number are grey, 0 black and 1 white; an extra of three is red, green and blue. ``rgba`` is the color without the
    background, not multiplied by the opacity, which is the fourth channel. What is beyond [0, 1] is clamped.

    Args:
        render: of a view.
        channel: of :func:`check_channels`.
        depth_range: distances shown violet and yellow.
        background: [3], what ``render`` is composited on.
    """
    if channel in ("rgb", "rgba"):
        return to_uint8(numbers(render, channel, background))
    if channel == "depth":
        low, high = depth_range
        distance = numbers(render, channel, background).nan_to_num(nan=low)
        return to_uint8(colorize((distance - low) / (high - low)) * render.opacity.float()[..., None].clamp(0, 1))
    values = render.opacity[..., None] if channel == "opacity" else render.extras[channel]
    return to_uint8(values.expand(*values.shape[:2], 3))


def numbers(render: Render, channel: str, background: Tensor) -> Tensor:
    """A channel of a view as float32 [H, W] or [H, W, k], as it is, not clamped.

    ``depth`` is the mean distance of what is seen from the camera's center along the ray (the range, not z), in the
    scene's units, and NaN where nothing is seen. See :func:`picture` for the others.
    """
    opacity = render.opacity.float()
    if channel == "depth":
        return (render.depth.float() / opacity).where(opacity > 0, float("nan"))
    if channel == "rgba":
        own = render.rgb.float() - (1 - opacity)[..., None] * background
        return torch.cat([(own / opacity[..., None]).where(opacity[..., None] > 0, 0.0), opacity[..., None]], -1)
    if channel in ("rgb", "opacity"):
        return getattr(render, channel).float()
    return render.extras[channel].float()
