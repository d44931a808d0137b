"""Whether the parts of a module fit each other and the data, looked at before a fit."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.base import NeRFDataModule
from lightning_nerf.data.borders import border_hint
from lightning_nerf.data.default_box import box_hint
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.losses.base import Loss
from lightning_nerf.modules.times import timed_fields


def check_parts(field: RadianceField, estimator: Estimator, losses: Iterable[nn.Module], data: NeRFDataModule) -> None:
    """Refuse data without the times that the field wants, or one within another part; warn of what does not fit."""
    timed = data.time_range() is not None
    name = type(field).__name__
    for buffer, part in timed_fields(nn.ModuleDict({"field": field, "estimator": estimator})):
        if "times" in part.wants and not timed:
            whose = "" if part is field else f" ({buffer.removesuffix('.time_range')})"
            raise BadArgument(f"data: {type(part).__name__}{whose} wants times, but these training views have none")
    if timed and "times" not in field.wants:
        rank_zero_warn(f"the training views have times, but {name} does not want any: the scene is taken for static")
    train = data.scene("train")
    for hint in (border_hint(train, data.eval_background), box_hint(train.cameras, field.scene_box)):
        if hint is not None:
            rank_zero_warn(hint)
    n_levels = estimator.n_levels
    if n_levels > 1 and field.ends_at_box and field.scene_box.contraction == "none":
        rank_zero_warn(
            f"n_levels: of {n_levels} levels only the first can be filled, because {name} is empty outside of its "
            "box; give the data contraction='l2', or the estimator n_levels=1"
        )
    trained = any(parameter.requires_grad for parameter in estimator.parameters())
    if trained and not any(isinstance(loss, Loss) and (loss.needs_rounds or loss.needs_weights) for loss in losses):
        rank_zero_warn(
            f"losses: {type(estimator).__name__} has parameters, which only a loss on its earlier rounds of samples "
            "trains, but no loss states needs_rounds or needs_weights; add lightning_nerf.RoundPhotometric"
        )
