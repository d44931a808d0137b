"""The range of times that the fields of a module are told, and ranges that a module refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    from lightning_nerf.data.base import NeRFDataModule
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
    _check_other_splits(module.datamodule, type(fields[0][1]).__name__)
    if found[0] == found[1]:
        _warn_of_one_moment(module.datamodule.scene("train").n_views, found[0])


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
    if times is None or len(times) == 0:
        return
    outside = times_outside(times, known)
    if not bool(outside.any()):
        if trainer.state.fn != "fit":  # a fit refuses other training views
            _warn_of_another_range(module, split, known)
        return
    _warned[module].add(split)
    rank_zero_warn(
        f"times of the {split} views go from {float(times.min()):g} to {float(times.max()):g}, but the field knows "
        f"{known[0]:g} to {known[1]:g}, the times of its training views: {int(outside.sum())} of {len(times)} views show "
        "moments that no view has taught it. Are the times in the unit of the training's?"
    )


def _warn_of_another_range(module: EvaluatedModule, split: str, known: tuple[float, float]) -> None:
    """Warn that the data's training views, if the source knows their times without pictures, have others than the field."""
    times = [time for time in module.datamodule.source.times("train") or () if time is not None]
    if times and not _is_same_range((min(times), max(times)), known):
        _warned[module].add(split)
        rank_zero_warn(
            f"times of the data's training views go from {min(times):g} to {max(times):g}, but the field knows "
            f"{known[0]:g} to {known[1]:g}, the times of the views that it was trained on. "
            f"Are the {split} views' times in that unit?"
        )


def _warn_of_one_moment(n_views: int, time: float) -> None:
    views = f"all {n_views} training views have" if n_views > 1 else "the only training view has"
    rank_zero_warn(
        f"{views} time {time:g}: nothing can move, and any other time looks the same; give each frame the moment of its "
        "picture as 'time', or train a scene that stands still with BlenderData and a field that wants no times"
    )


def _check_other_splits(data: NeRFDataModule, name: str) -> None:
    """Before the first step, refuse validation and test views without times where the training views have some."""
    if None in (data.source.times("train") or [None]):
        return
    for split in ("val", "test"):
        if None in (data.source.times(split) or ()):
            raise BadArgument(f"data: {name} wants times, but the {split} views have none; give each frame a 'time'")


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
    given, own = (t.detach().float().cpu().tolist() for t in (came, expected))
    if not _is_same_range(given, own):
        raise BadArgument(f"{name}: {whose} is {given}, expected {own}")


def _is_same_range(given: Sequence[float], own: Sequence[float]) -> bool:
    slack = _ROUNDING * max(abs(time) for time in own)
    return all(abs(a - b) <= slack for a, b in zip(given, own, strict=True))
