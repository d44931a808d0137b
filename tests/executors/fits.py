"""Fits that can be equal to the bit on a GPU too: a field without atomics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_nerf.encodings import Frequency
from lightning_nerf.fields import RadianceField
from lightning_nerf.modules import InstantNGP
from lightning_nerf.types import FieldOutput
from tests.scenes import tiny_module, tiny_scene, trainer

STEPS = 24


class PlainField(RadianceField):
    """Frequencies and one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoding = Frequency(4)
        self.net = nn.Sequential(nn.Linear(self.encoding.n_outputs, 16), nn.ReLU(), nn.Linear(16, 4))
        self.register_buffer("brightness", torch.ones(()))

    def _evaluate(self, positions: Tensor) -> Tensor:
        return self.net(self.encoding(self.unit_positions(positions) - 0.5)).float()

    def density(self, positions: Tensor) -> Tensor:
        return nn.functional.softplus(self._evaluate(positions)[:, 0])

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        out = self._evaluate(positions)
        return FieldOutput(nn.functional.softplus(out[:, 0]), out[:, 1:].sigmoid() * self.brightness)


class InfAt(PlainField):
    """Bright beyond measure in one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.owner = step, []  # in a list: the module that this is part of must not be a part of this

    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        out = super().forward(positions, directions)
        return out._replace(rgb=out.rgb * torch.where(self.owner[0].key[2] == self.step, float("inf"), 1.0))


class Empty(L.Callback):
    """Opens the grid before each batch, or shuts it before those of some numbers: no ray has a sample then."""

    def __init__(self, batches: set[int]) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.estimator.binaries.fill_(batch_idx not in self.batches)


class Seen(L.Callback):
    """Counts hooks, and keeps what each step said."""

    HOOKS = ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
             "on_before_optimizer_step")  # fmt: skip

    def __init__(self) -> None:
        self.counts = dict.fromkeys(self.HOOKS, 0)
        self.without_gradient = 0
        self.losses: list[Tensor] = []
        self.n_rays: list[int] = []
        self.rates: list[float] = []
        self.global_steps: list[int] = []
        self.replayed: list[bool] = []
        self.captures = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.counts["on_train_batch_start"] += 1

    def on_before_zero_grad(self, *_: Any) -> None:
        self.counts["on_before_zero_grad"] += 1

    def on_before_backward(self, *_: Any) -> None:
        self.counts["on_before_backward"] += 1

    def on_after_backward(self, *_: Any) -> None:
        self.counts["on_after_backward"] += 1

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.counts["on_before_optimizer_step"] += 1
        self.without_gradient += any(p.grad is None for p in pl_module.parameters())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"])
        self.n_rays.append(int(outputs["n_rays"]))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.global_steps.append(trainer.global_step)
        self.replayed.append(pl_module.executor.replayed)
        self.captures = getattr(pl_module.executor, "captures", 0)


def adam(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=2**-7, fused=True)


def halve(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Rates that float32 holds exactly: a graph reads them as such, where eager optimizers may take float64."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 ** (step // 5))


def plain_module(field: Callable[[], RadianceField] = PlainField, **options: Any) -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module(**{"field": field(), "optimizer": adam, "lr_scheduler": halve, **options})


def fit(
    folder: Path, cache: Path, accelerator: str, strategy: Any = "nerf_cuda_graph", module: Any = None, **options: Any
) -> tuple[InstantNGP, Seen, L.Trainer]:
    """A fit of STEPS batches; with strategy "auto" an eager one."""
    module = plain_module() if module is None else module
    if isinstance(module.field, InfAt):
        module.field.owner = [module]
    seen, resume = Seen(), options.pop("ckpt_path", None)
    scene = options.pop("scene", None) or tiny_scene(cache)
    callbacks = [*options.pop("callbacks", []), seen]
    defaults = {"max_steps": STEPS, "accelerator": accelerator, "devices": 1, "strategy": strategy}
    run = trainer(folder, **{**defaults, **options, "callbacks": callbacks})
    run.fit(module, scene, ckpt_path=resume)
    return module, seen, run


def state(module: nn.Module) -> dict[str, Tensor]:
    """Everything that is saved, but for the number of the next step."""
    return {name: value.cpu() for name, value in module.state_dict().items() if name != "key"}


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for name, value in state(a).items():
        assert torch.equal(value, state(b)[name]), name
