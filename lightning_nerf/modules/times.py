"""The range of times that the fields of a module are told, and ranges that a module refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_nerf import lightning_names
from lightning_nerf.checks import BadArgument
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.recorded import Plain

if TYPE_CHECKING:
    from lightning_nerf.modules.evaluation import EvaluatedModule

_ROUNDING = 1e-6  # of the larger time: what float32 and a file's decimals leave of it


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
    """Outside of a fit: tell the fields that no checkpoint told. Views of any times may be rendered."""
    unknown = [field for _, field in timed_fields(module) if not field.knows_times]
    if unknown and (found := module.datamodule.time_range()) is not None:  # reads the training views
        for field in unknown:
            field.bind_times(*found)


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
