"""The range of times that the fields of a module are told, and ranges that a module refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.recorded import Plain

if TYPE_CHECKING:
    from lightning_nerf.modules.evaluation import EvaluatedModule

_ROUNDING = 1e-6  # of the larger time: what float32 and a file's decimals leave of it
_SLACK = 1e-3  # of a range: its ends may be typed with some digits less
_warned: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # a fit validates more than once


def timed_fields(module: nn.Module) -> Iterator[tuple[str, RadianceField]]:
    """Fields of a module that keep a range of times, also those within other parts, with the name of each one's buffer."""
    for name, part in module.named_modules():
        if isinstance(part, RadianceField) and part.keeps_times:
            yield f"{name}.time_range".lstrip("."), part


def bind_times(module: EvaluatedModule) -> None:
    """Before a fit: tell fields the first and the last time of the training views. Another range is refused."""
    fields = list(timed_fields(module))
    found = module.datamodule.time_range() if fields else None
    if found is None:  # a fit refuses it, where it looks at all parts
        return
    for name, field in fields:
        if field.knows_times:
            _refuse_another_range(name, torch.tensor(found), field.time_range, "the data module's")
        field.bind_times(*found)


def bind_unknown_times(module: EvaluatedModule) -> None:
    """Before an evaluation: tell the fields that no checkpoint told. Views of any times may be rendered, with a warning."""
    unknown = [field for _, field in timed_fields(module) if not field.knows_times]
    if unknown and (found := module.datamodule.time_range()) is not None:  # reads the training views
        for field in unknown:
            field.bind_times(*found)
    warn_of_views_outside(module)


def known_time_range(module: nn.Module) -> tuple[float, float] | None:
    """The first and the last time of the views that the module's fields learned from; None: no field knows."""
    field = next((field for _, field in timed_fields(module) if field.knows_times), None)
    if field is None:
        return None
    first, last = field.time_range.tolist()
    return first, last


def times_outside(times: Tensor, trained: tuple[float, float]) -> Tensor:
    """Which of the times [N] lie before the first or behind the last time of the training views, as bools [N]."""
    first, last = trained
    slack = max(_SLACK * (last - first), _ROUNDING * max(abs(first), abs(last)))
    return (times < first - slack) | (times > last + slack)


def warn_of_views_outside(module: EvaluatedModule) -> None:
    """Warn, once for each split, that the views to be rendered have times that the field was not trained on."""
    trainer, known = lightning_names.attached_trainer(module), known_time_range(module)
    split = "val" if trainer is not None and (trainer.validating or trainer.sanity_checking) else "test"
    if trainer is None or known is None or split in _warned.setdefault(module, set()):
        return
    times = module.datamodule.scene(split).cameras.times
    if times is None or not bool((outside := times_outside(times, known)).any()):
        return
    _warned[module].add(split)
    rank_zero_warn(
        f"times of the {split} views go from {float(times.min()):g} to {float(times.max()):g}, but the field knows "
        f"{known[0]:g} to {known[1]:g}, the times of its training views: {int(outside.sum())} of {len(times)} views show "
        "moments that no view has taught it. Are the times in the unit of the training's?"
    )


def complete_times(module: nn.Module, weights: Plain) -> None:
    """Add the module's own ranges to the weights of a version whose fields knew none."""
    for name, field in timed_fields(module):
        weights.setdefault(name, field.time_range.detach().cpu().clone())


def refuse_other_times(module: EvaluatedModule, weights: Plain) -> None:
    """Raise a BadArgument where, in a fit, a checkpoint's fields know another range of times than the data."""
    trainer = lightning_names.attached_trainer(module)
    if trainer is None or trainer.state.fn != "fit":
        return
    for name, field in timed_fields(module):
        came = weights.get(name)
        if field.knows_times and isinstance(came, Tensor) and not bool(came.isnan().all()):
            _refuse_another_range(name, came, field.time_range, "the checkpoint's")


def _refuse_another_range(name: str, came: Tensor, expected: Tensor, whose: str) -> None:
    given, own = (t.detach().float().cpu() for t in (came, expected))
    if not torch.allclose(given, own, rtol=0.0, atol=_ROUNDING * float(own.abs().max())):
        raise BadArgument(f"{name}: {whose} is {given.tolist()}, expected {own.tolist()}")
