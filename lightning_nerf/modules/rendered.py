"""What a step's losses see of its samples: the render, and where a loss asks, those of earlier rounds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_nerf.checks import BadArgument, check_instance
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.losses.base import Loss
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, Rays, Render, RenderedRound


def rendered(
    renderer: Renderer, losses: Iterable[nn.Module], output: FieldOutput, samples: PackedSamples, background: Tensor
) -> Render:
    """The renderer's answer, with weights where a loss asks for them."""
    asking = [loss.name for loss in losses if isinstance(loss, Loss) and loss.needs_weights]
    render = renderer(output, samples, background=background, return_weights=bool(asking))
    check_instance(f"{type(renderer).__name__}.forward", render, Render)
    if asking and render.weights is None:
        raise BadArgument(
            f"renderer: {type(renderer).__name__} keeps no weights, which the loss {asking[0]!r} needs; expected "
            "one that returns them for return_weights=True"
        )
    return render


def rendered_rounds(
    renderer: Renderer,
    losses: Iterable[nn.Module],
    field: RadianceField,
    rays: Rays,
    placement: Placement,
    background: Tensor,
) -> tuple[RenderedRound, ...]:
    """Earlier rounds, each rendered from its own output, or from that of ``field``; none where no loss asks for them."""
    asking = [loss.name for loss in losses if isinstance(loss, Loss) and loss.needs_rounds]
    if not asking:
        return ()
    if not placement.rounds:
        raise BadArgument(
            f"estimator: the loss {asking[0]!r} needs an earlier round of samples, but this estimator makes none; expected "
            "one that does, such as Hierarchical"
        )
    rounds: list[RenderedRound] = []
    for each in placement.rounds:
        output = field.at_samples(rays, each.samples) if each.output is None else each.output
        render = renderer(output, each.samples, background=background)
        check_instance(f"{type(renderer).__name__}.forward", render, Render)
        rounds.append(RenderedRound(each.samples, output, render))
    return tuple(rounds)
