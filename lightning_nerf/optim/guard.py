"""Makes any optimizer skip steps with non-finite or missing gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

State = dict[str, Any]  # an optimizer's, of one parameter


class StepGuard:
    """Undo an optimizer's step, on the device, where a gradient is not finite or no batch had samples.

    Before each step weights and the optimizer's state are copied; after a step that is to be skipped the copies are put
    back, to the bit. Nothing waits for the device, but where the step has made new state (the first one does), and a CUDA
    graph can hold it. It costs the memory of the copies, and about a millisecond per GB of them.
    :class:`lightning_nerf.optim.FusedAdam` skips by itself, at no cost.

    Numbers that an optimizer keeps on the host, such as the step counts of a torch optimizer on CUDA that is not
    ``capturable``, go on. LBFGS keeps its history in lists, which are not copied.

    The optimizer gets the attributes that ``FusedAdam`` has: ``skips_bad_steps``, True; ``skipped``, how many steps were
    skipped, 0-d int32; and ``idle``, a 0-d tensor or None.

    Args:
        optimizer: any, its parameters on their device already.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        device = optimizer.param_groups[0]["params"][0].device
        optimizer.skips_bad_steps = True  # type: ignore[attr-defined]
        optimizer.idle = None  # type: ignore[attr-defined]
        optimizer.skipped = torch.zeros((), dtype=torch.int32, device=device)  # type: ignore[attr-defined]
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)
        self._kept: list[tuple[Tensor, Tensor, State]] = []  # parameter, its value, its state

    @torch.no_grad()
    def _before(self, optimizer: Any, args: object, kwargs: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._kept = [(p, p.detach().clone(), _copied(optimizer.state.get(p, {}))) for p in parameters]

    @torch.no_grad()
    def _after(self, optimizer: Any, args: object, kwargs: object) -> None:
        kept, self._kept = self._kept, []
        grads = [p.grad for p, _, _ in kept if p.grad is not None]
        if not grads:
            return
        skip = ~torch.nn.utils.get_total_norm(grads, norm_type=float("inf")).isfinite()
        if optimizer.idle is not None:
            skip |= optimizer.idle != 0
            optimizer.idle.fill_(1)
        for p, weights, before in kept:
            torch.where(skip, weights, p, out=p)
            state = optimizer.state.get(p, {})
            for name, value in before.items():
                if isinstance(value, Tensor) and value.device == p.device:
                    torch.where(skip, value, state[name], out=state[name])
            made = state.keys() - before.keys()
            if made and bool(skip):
                for name in made:
                    del state[name]
        optimizer.skipped += skip


def _copied(state: State) -> State:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
