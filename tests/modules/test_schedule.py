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


def test_a_fit_says_how_long_the_run_is_and_a_resumed_one_may_be_longer() -> None:
    def made(total_steps: int | None) -> tuple[torch.optim.Optimizer, WarmupDecay]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupDecay(optimizer, total_steps, warmup_steps=2, decay_start=0.5, final=0.1)

    given, filled = made(20), made(None)
    filled[1].spread_over(20)
    filled[1].spread_over(40)  # what was said stays
    for _ in range(20):
        assert given[0].param_groups[0]["lr"] == filled[0].param_groups[0]["lr"]
        assert given[1].get_last_lr() == filled[1].get_last_lr()
        for optimizer, schedule in (given, filled):
            optimizer.step()
            schedule.step()
    assert given[0].param_groups[0]["lr"] == pytest.approx(0.1)
    longer = made(40)
    longer[1].load_state_dict(given[1].state_dict())
    longer[1].step()
    assert longer[0].param_groups[0]["lr"] == pytest.approx(0.1 ** (1 / 20))
