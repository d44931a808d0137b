from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nerf.ops.draw_rays import background_reference, draw_background
from lightning_nerf.ops.random import STREAM_BACKGROUND, make_key, random_uniform
from tests.ops.harness import DEVICES, assert_detected, check_op


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [0, 1, 1000])
@pytest.mark.parametrize(("step", "random_steps"), [(0, 0), (6, 7), (7, 7), (2**40, 2**63 - 1)])
def test_background_gives_the_bits_of_the_reference(device: str, n: int, step: int, random_steps: int) -> None:
    args = (make_key(2**35 + 3, rank=1, step=step), n, random_steps, 0.25, 0.5, 1.0)
    check_op("draw_background", background_reference, args, device=device, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_backgrounds_are_random_first_and_then_the_color(device: str) -> None:
    color = (0.25, 0.5, 1.0)
    for step, steps, wanted, random in [(6, 7, color, True), (7, 7, color, False), (10**6, 0, None, True)]:
        key = make_key(3, step=step).to(device)
        drawn = draw_background(key, 50, color=wanted, random_steps=steps)
        expected = torch.tensor([color]).expand(50, 3).to(device)
        assert torch.equal(drawn, random_uniform(key, STREAM_BACKGROUND, 50, 3) if random else expected)


def test_the_comparison_detects_one_step_too_many() -> None:
    def mutated(key: Tensor, n: int, random_steps: int, *color: float) -> Tensor:
        return background_reference(key, n, random_steps + 1, *color)

    args = (make_key(0, step=7), 20, 7, 0.0, 0.0, 0.0)
    assert_detected(lambda: check_op("draw_background", mutated, args, device="cpu", rtol=0, atol=0, opcheck=False))


def test_bad_arguments_of_backgrounds_are_named() -> None:
    with pytest.raises(ValueError, match=r"key: expected dtype torch.int64"):
        draw_background(make_key(0).int(), 1, color=None)
    with pytest.raises(ValueError, match=r"n: expected 0 <= n < 2\*\*31, got -1"):
        draw_background(make_key(0), -1, color=None)
    with pytest.raises(ValueError, match="random_steps: expected >= 0, got -1"):
        draw_background(make_key(0), 1, color=None, random_steps=-1)
