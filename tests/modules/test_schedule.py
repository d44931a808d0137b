from __future__ import annotations

import pytest
import torch

from lightning_nerf.modules import WarmupDecay


def rates(steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = WarmupDecay(optimizer, steps, **options)
    values = []
    for _ in range(steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_rises_holds_and_decays_as_told() -> None:
    values = rates(100, warmup_steps=10, decay_start=0.5, final=0.01)
    assert values[0] == pytest.approx(0.02)
    assert values[5] == pytest.approx(2 * 0.505)
    assert values[10:51] == pytest.approx([2.0] * 41)
    assert values[75] == pytest.approx(2 * 0.1)
    assert values[100] == pytest.approx(2 * 0.01)


def test_a_longer_run_has_the_same_shape() -> None:
    assert rates(400, warmup_steps=40)[::4] == pytest.approx(rates(100, warmup_steps=10))


def test_warm_up_takes_at_most_a_tenth() -> None:
    assert rates(100, warmup_steps=100) == pytest.approx(rates(100, warmup_steps=10))


@pytest.mark.parametrize("options", [{"warmup_steps": -1}, {"decay_start": 0.05}, {"final": 0.0}])
def test_bad_arguments_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        rates(10, **options)
