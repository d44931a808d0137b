"""float16 copies of parameters, and who keeps them up to date."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nerf.optim import FusedAdam, HalfMirror
from lightning_nerf.optim.mirror import mirrors
from tests.ops.harness import DEVICES, rand


def parameter(device: str = "cpu") -> nn.Parameter:
    return nn.Parameter(rand(6, 2, seed=0).to(device))


def mirrored(device: str = "cpu") -> tuple[nn.Parameter, HalfMirror, Tensor]:
    p = parameter(device)
    mirror = HalfMirror.made_for(p)
    return p, mirror, mirror.current(p)


def holds(mirror: HalfMirror, p: Tensor) -> bool:
    return mirror.copy is not None and torch.equal(mirror.copy, p.detach().half())


def test_a_parameter_has_at_most_one() -> None:
    p, other = parameter(), parameter()
    assert HalfMirror.of(p) is None
    mirror = HalfMirror.made_for(p)
    assert HalfMirror.of(p) is mirror is HalfMirror.made_for(p)
    assert HalfMirror.of(other) is None
    assert mirrors([other, p]) == [(p, mirror)]
    assert mirror.copy is None
    assert not mirror.is_current(p)
    assert mirror.writable(p) is None


@pytest.mark.parametrize("device", DEVICES)
def test_the_copy_is_renewed_in_place_where_the_parameter_has_changed(device: str) -> None:
    p, mirror, working = mirrored(device)
    assert working.dtype == torch.float16
    assert not working.requires_grad
    assert mirror.is_current(p)
    with torch.no_grad():
        p.add_(1)
    assert not mirror.is_current(p)
    assert not holds(mirror, p)
    assert mirror.current(p) is working
    assert mirror.is_current(p)
    assert holds(mirror, p)


def test_what_has_no_version_is_seen_when_told() -> None:
    p, mirror, working = mirrored()
    p.data.add_(1)
    assert mirror.is_current(p)  # nothing tells
    mirror.mark_stale()
    assert not mirror.is_current(p)
    assert mirror.current(p) is working
    assert holds(mirror, p)


def test_a_copy_that_was_written_with_its_parameter_is_left_alone() -> None:
    p, mirror, working = mirrored()
    with torch.no_grad():
        p.add_(1)
    working.fill_(7)
    mirror.mark_written(p)
    assert mirror.is_current(p)
    assert (mirror.current(p) == 7).all()


OPTIMIZERS: dict[str, Any] = {
    "Adam": torch.optim.Adam,
    "Adam, fused": lambda params: torch.optim.Adam(params, fused=True),
    "SGD, fused": lambda params: torch.optim.SGD(params, lr=0.1, fused=True),
    "Adagrad": torch.optim.Adagrad,
    "FusedAdam": FusedAdam,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_copy_outlives_a_step(device: str, kind: str) -> None:
    """That of an optimizer which writes both is current at once, any other's is stale."""
    (p, mirror, working), bystander = mirrored(device), parameter(device)
    other = mirrored(device)
    optimizer = OPTIMIZERS[kind]([p, bystander])
    for step in range(3):
        p.grad, bystander.grad = torch.ones_like(p), torch.ones_like(p)
        optimizer.step()
        assert mirror.is_current(p) == (kind == "FusedAdam"), step
        assert (getattr(optimizer, "writes_mirrors", False)) == (kind == "FusedAdam")
        assert other[1].is_current(other[0])
        assert mirror.current(p) is working
        assert holds(mirror, p)


def test_an_optimizer_that_says_it_writes_them_is_believed() -> None:
    class Writes(torch.optim.SGD):
        writes_mirrors = True

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            for q, mirror in mirrors(self.param_groups[0]["params"]):
                assert mirror.writable(q) is not None
                mirror.copy.copy_(q)  # type: ignore[union-attr]
                mirror.mark_written(q)

    p, mirror, _ = mirrored()
    p.grad = torch.ones_like(p)
    Writes([p], lr=0.1).step()
    assert mirror.is_current(p)
    assert holds(mirror, p)


def test_a_step_that_is_skipped_leaves_a_copy_that_is_current() -> None:
    p, mirror, _ = mirrored()
    before = p.detach().clone()
    optimizer = FusedAdam([p])
    p.grad = torch.full_like(p, float("inf"))
    optimizer.step()
    assert int(optimizer.skipped) == 1
    assert torch.equal(p, before)
    assert mirror.is_current(p)
    assert holds(mirror, p)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"])
def test_a_copied_parameter_has_a_copy_of_its_own(make: Any) -> None:
    p, mirror, working = mirrored()
    with torch.no_grad():
        p.add_(1)  # stale: what is copied must not be taken for current
    clone = make(p)
    theirs = HalfMirror.made_for(clone)
    assert theirs is not mirror
    assert theirs.current(clone) is not working
    assert holds(theirs, clone)
    with torch.no_grad():
        clone.add_(1)
    assert holds(theirs, clone) is False
    assert not mirror.is_current(p)


def test_data_of_another_kind_gives_the_copy_up() -> None:
    p, mirror, working = mirrored()
    p.data = p.data + 1
    mirror.follow(p)
    assert mirror.copy is working
    assert mirror.current(p) is working
    assert holds(mirror, p)
    half, of_half, _ = mirrored()
    half.data = half.data.half()
    of_half.follow(half)
    assert of_half.copy is None


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_that_a_validation_made_serves_training(device: str) -> None:
    p = parameter(device)
    mirror = HalfMirror.made_for(p)
    with torch.inference_mode():
        working = mirror.current(p)
    assert not working.is_inference()
    with torch.no_grad():
        p.mul_(2)
    with torch.inference_mode():
        assert mirror.current(p) is working
    assert holds(mirror, p)
