"""A module inside a field may state a multiple of the optimizer's learning rate for its own parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_nerf.callbacks import EMAWeights
from lightning_nerf.checks import BadArgument
from lightning_nerf.fields import DeformedField, InstantNGPField
from lightning_nerf.modules.optimizers import adam, configure, parameter_groups
from tests.scenes import trainer


def field(factor: float) -> DeformedField:
    canonical = InstantNGPField(n_levels=2, log2_table_size=8, max_resolution=32)
    return DeformedField(canonical, width=16, hidden_layers=1, skip=None, warp_rate_factor=factor)


class Tied(nn.Module):
    """One weight in two places, and an inner factor below an outer one."""

    def __init__(self) -> None:
        super().__init__()
        self.rate_factor = 2.0
        self.first, self.second, self.third = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.third.rate_factor = 0.0  # type: ignore[assignment]
        self.first.bias.requires_grad_(False)


def test_a_factor_of_one_leaves_one_group_for_the_field() -> None:
    (group,) = parameter_groups([("field", field(1.0)), ("losses", nn.ModuleList())])
    assert group["name"] == "field"
    expected = list(field(1.0).parameters())
    assert [p.shape for p in group["params"]] == [p.shape for p in expected]  # in the order of older checkpoints


def test_what_states_a_factor_has_a_group_of_its_own() -> None:
    moved = field(0.1)
    groups = {group["name"]: group for group in parameter_groups([("field", moved)])}
    assert list(groups) == ["field", "field.warp"]
    assert {id(p) for p in groups["field.warp"]["params"]} == {id(p) for p in moved.warp.parameters()}
    assert sum(len(group["params"]) for group in groups.values()) == len(list(moved.parameters()))


def test_inner_factors_win_and_shared_parameters_are_trained_once() -> None:
    groups = parameter_groups([("field", Tied())])
    assert [(group["name"], group["rate_factor"], len(group["params"])) for group in groups] == [
        ("field", 2.0, 2),
        ("field.third", 0.0, 2),
    ]


@pytest.mark.parametrize("make", [adam, lambda groups: torch.optim.SGD(groups, lr=0.01)])
def test_rates_are_multiples_through_the_schedule(make: object, tmp_path: Path) -> None:
    configured = configure(
        trainer(tmp_path, max_steps=100, callbacks=[EMAWeights()]),
        parameter_groups([("field", field(0.1))]),
        make,  # type: ignore[arg-type]
        None,
    )
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]  # type: ignore[index, call-overload]
    for _ in range(3):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[1] == pytest.approx(0.1 * rates[0])
        assert rates[0] > 0
        before = [group["params"][0].detach().clone() for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        scheduler.step()
        moved = [
            (group["params"][0].detach() - b).abs().max() for group, b in zip(optimizer.param_groups, before, strict=True)
        ]
        assert float(moved[1] / moved[0]) == pytest.approx(0.1, rel=1e-2)


@pytest.mark.parametrize("factor", [-1.0, float("nan"), "fast"])
def test_other_factors_are_refused(factor: object) -> None:
    with pytest.raises(BadArgument, match="warp_rate_factor: expected"):
        field(factor)  # type: ignore[arg-type]
    module = nn.Linear(1, 1)
    module.rate_factor = factor  # type: ignore[assignment]
    with pytest.raises(BadArgument, match=r"field\.rate_factor: expected"):
        parameter_groups([("field", module)])
