"""Several processes that train one field: is it one field, and does each draw rays of its own?"""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor

from lightning_nerf.bench.table import Report
from lightning_nerf.callbacks.trained import trained

OWN = ("key", "n_rays")  # of a module's state: each rank's


def total(value: float, device: torch.device) -> float:
    """The sum over all processes."""
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    if _several():
        torch.distributed.all_reduce(summed)
    return summed.item()


@torch.no_grad()
def compare(trainer: L.Trainer, pl_module: L.LightningModule) -> Report:
    """Weights, moments and grid of each rank against rank 0's, to the bit, and the rays that the next step would draw.

    Returns:
        ``processes``; ``tensors``, how many were compared; ``unequal``, the names of those that differ on any rank;
        ``rays_alike``, the share of rays that have their like in the same place on rank 0.
    """
    unequal, tensors = [], 0
    for name, tensor in _state(trainer, pl_module):
        tensors += 1
        if not _same_everywhere(tensor):
            unequal.append(name)
    module = trained(pl_module)
    module.name_step()
    directions = module.draw().rays.directions
    alike = (directions == _of_rank_zero(directions)).all(dim=1)
    share = total(alike.float().mean().item(), directions.device) - 1  # rank 0 has all of its own
    others = trainer.world_size - 1
    return {"processes": trainer.world_size, "tensors": tensors, "unequal": unequal, "rays_alike": share / max(others, 1)}


def _state(trainer: L.Trainer, pl_module: L.LightningModule) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in pl_module.state_dict().items() if name not in OWN)
    names: dict[Tensor, str] = {parameter: name for name, parameter in pl_module.named_parameters()}
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            for kind, value in state.items():
                if isinstance(value, Tensor):
                    yield f"{kind} of {names[parameter]}", value


def _same_everywhere(tensor: Tensor) -> bool:
    differs = not torch.equal(_bits(tensor), _bits(_of_rank_zero(tensor)))
    return total(float(differs), tensor.device) == 0


def _of_rank_zero(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    if _several():
        torch.distributed.broadcast(copy, src=0)
    return copy


def _bits(tensor: Tensor) -> Tensor:
    """Equal to the bit: -0 is not 0, and NaN is NaN."""
    return tensor.contiguous().view(torch.uint8) if tensor.ndim else tensor.reshape(1).view(torch.uint8)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
