"""The interface of a loss."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_nerf.arguments import Recorded
from lightning_nerf.checks import BadArgument, BadType, check_instance, check_number
from lightning_nerf.types import Step

RESERVED = ("loss", "mse", "n_rays", "n_samples")  # what steps log beside the losses


class Loss(Recorded, nn.Module, ABC):
    """A term of the training loss: a function of a :class:`~lightning_nerf.types.Step`, tensors in, a number out.

    ``NeRFModule(losses=[...])`` adds ``weight`` times each and logs each, unweighted, under its ``name``. Nothing may be
    read on the host: a step may be captured in a CUDA graph. A loss with parameters has them trained.

    >>> from lightning_nerf import Loss
    >>> class Haze(Loss):
    ...     \"\"\"Penalizes half-transparent rays.\"\"\"
    ...     def forward(self, step):
    ...         opacity, counts = step.render.opacity, step.counts
    ...         return (opacity * (1 - opacity) * counts).sum() / counts.sum().clamp(min=1)
    >>> Haze(weight=0.01).name
    'haze'

    Args:
        weight: of this term in the sum, >= 0.
        name: in logs; default the class's, in snake case.
    """

    needs_weights: bool = False
    """Whether the loss reads ``step.render.weights``; the renderer keeps them only where a loss asks."""

    needs_rounds: bool = False
    """Whether the loss reads ``step.rounds``; earlier rounds of samples are rendered only where a loss asks. Their weights,
    ``step.placement.rounds``, are there in any case."""

    needs_depths: bool = False
    """Whether the loss reads ``step.batch.depth``; the data module reads files of depths only where a loss asks."""

    def __init__(self, weight: float = 1.0, name: str | None = None) -> None:
        super().__init__()
        check_number("weight", weight, "[0, inf)")
        check_instance("name", name, str, type(None))
        self.weight = float(weight)
        self.name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower() if name is None else name
        if not self.name or self.name in RESERVED:
            raise BadArgument(f"name: expected another one than {', '.join(RESERVED)}, got {self.name!r}")

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The term, without its weight: a 0-d tensor, 0 where no ray counts."""


def weighted_sum(losses: nn.ModuleList, step: Step) -> Tensor:
    """Sum of weight times loss; each loss is logged in ``step.logs`` under its name."""
    total: Tensor | None = None
    for loss in losses:
        assert isinstance(loss, Loss)
        value = loss(step)
        _check_scalar(f"losses: {loss.name}", value)
        step.logs[loss.name] = value.detach()
        term = value if loss.weight == 1 else loss.weight * value
        total = term if total is None else total + term
    assert total is not None
    for key, logged in step.logs.items():
        if key == "loss":  # it would take the place of the sum
            raise BadArgument("step.logs['loss']: expected another name, since the sum of the losses has this one")
        _check_scalar(f"step.logs[{key!r}]", logged)
    return total


def _check_scalar(name: str, value: object) -> None:
    """A 0-d tensor of real numbers."""
    if not isinstance(value, Tensor):
        raise BadType(f"{name}: expected a 0-d tensor, got {type(value).__name__}")
    if value.ndim != 0 or value.is_complex():
        raise BadArgument(f"{name}: expected a 0-d tensor of a real number, got {value.dtype} of shape {list(value.shape)}")


def check_losses(losses: object) -> list[Loss]:
    """At least one loss, with names of their own."""
    if not isinstance(losses, (list, tuple)) or not losses:
        raise BadArgument(f"losses: expected a list of at least one Loss, got {losses!r}")
    for i, loss in enumerate(losses):
        check_instance(f"losses[{i}]", loss, Loss)
        if not hasattr(loss, "name"):
            raise BadType(f"losses[{i}]: {type(loss).__name__}.__init__ has to call super().__init__() first")
    names = [loss.name for loss in losses]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadArgument(f"losses[{i}]: expected a name of its own, got {name!r} once more; give it name=...")
    return list(losses)
