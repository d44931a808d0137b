"""Batches of a loader of one's own, handed to training steps: learned from, skipped, or refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_nerf.data.batches import checked_batch
from lightning_nerf.modules import InstantNGP
from lightning_nerf.types import RayBatch, Rays
from tests.fuzz.strategies import INF, NAN, bounded, fuzz, spaced, tensors
from tests.scenes import tiny_module, tiny_scene, trainer

PLACES = (-1.0, 0.0, 0.3, 4.0, 1e-45, 1e30, 3e38, INF, -INF, NAN)
COLORS = (0.0, 0.5, 1.0, -1.0, 1e30, 3e38, INF, NAN)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


@st.composite
def batches(draw: st.DrawFn) -> RayBatch:
    """R rays, none included, from proper ones to such as have nothing finite about them."""
    n = draw(st.integers(0, 6))

    def some(shape: tuple[int, ...], usual: float, strange: tuple[float, ...]) -> Tensor:
        how = draw(st.sampled_from(["usual", "some strange", "strange"]))
        values = {"usual": (usual,), "some strange": (usual, usual, *strange), "strange": strange}[how]
        return draw(tensors(shape, values, "cpu"))

    origins = some((n, 3), 0.0, PLACES)
    directions = some((n, 3), 1.0, PLACES)
    near, far = some((n,), 0.0, PLACES), some((n,), 3.0, PLACES)
    times, footprint = (draw(st.none() | tensors((n,), PLACES, "cpu")) for _ in range(2))
    cameras = draw(st.none() | st.just(torch.arange(n)))
    rgb = some((n, 3), 0.5, COLORS)
    alpha = draw(st.none() | st.just(some((n,), 1.0, COLORS)))
    masks = st.lists(st.booleans(), min_size=n, max_size=n).map(lambda m: torch.tensor(m, dtype=torch.bool))
    mask = draw(st.none() | st.just(torch.zeros(n, dtype=torch.bool)) | masks)
    return RayBatch(Rays(origins, directions, near, far, times, cameras, footprint), rgb, alpha, mask)


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[Any, str]:
    """A batch one of whose tensors has another shape, dtype or device, or is none; and that one's name."""
    batch = draw(batches())
    name = draw(
        st.sampled_from(["origins", "directions", "near", "far", "times", "cameras", "footprint", "rgb", "alpha", "mask"])
    )
    value = batch.rays._asdict().get(name, batch._asdict().get(name))
    value = torch.ones(len(batch.rgb)) if value is None else value
    change = draw(st.sampled_from([*DTYPES, "longer", "flat", "more", "meta", "spaced", None, 3, "text", [[0.0] * 3]]))
    if isinstance(change, torch.dtype):
        value = value.to(change)
    elif change == "longer":
        value = value.new_zeros(len(value) + 1, *value.shape[1:])
    elif change in ("flat", "more"):
        value = value.flatten() if change == "flat" else value[..., None]
    elif change in ("meta", "spaced"):
        value = value.to("meta") if change == "meta" else spaced(value)
    else:
        value = change
    rays = batch.rays._replace(**{name: value}) if name in batch.rays._fields else batch.rays
    return batch._replace(rays=rays, **({} if name in batch.rays._fields else {name: value})), name


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory, scene_cache: Any) -> InstantNGP:
    """In the middle of a fit, with a grid that it has learned."""
    fit = trainer(tmp_path_factory.mktemp("fit"), max_steps=20)
    module = tiny_module(samples_per_step=256)
    fit.fit(module, tiny_scene(scene_cache))
    return module


def step(module: InstantNGP, batch: Any) -> None:
    """A training step as the Trainer makes it; afterwards nothing that is learned is NaN or Inf."""
    (optimizer,) = module.trainer.optimizers
    optimizer.zero_grad()
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    optimizer.step()
    for name, tensor in module.state_dict().items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
    for state in optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())


@fuzz
@given(st.data())
def test_strange_values(module: InstantNGP, data: st.DataObject) -> None:
    batch = data.draw(batches())
    with bounded():
        step(module, batch)


@fuzz
@given(st.data())
def test_wrong_tensors(module: InstantNGP, data: st.DataObject) -> None:
    batch, name = data.draw(spoilt())
    refusal = None
    try:
        with bounded():
            step(module, batch)
    except (ValueError, TypeError) as error:
        refusal = str(error)
    named = "origins|directions" if name == "origins" else name  # the first says how many rays there are
    assert refusal is None or re.search(rf"\bbatch\.(rays\.)?({named})\b", refusal), refusal


@pytest.mark.parametrize("batch", [None, "rays", {"rays": 1}, (1, 2), 1.5, [torch.zeros(3)]])
def test_what_is_no_batch(module: InstantNGP, batch: Any) -> None:
    with pytest.raises(TypeError, match=r"^batch: expected"):
        step(module, batch)


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e30])
def test_a_ray_without_direction_has_no_samples(module: InstantNGP, length: float) -> None:
    """And not 10^9 of the cell that it begins in."""
    rays = Rays(torch.zeros(4, 3), torch.full((4, 3), length), torch.zeros(4), torch.full((4,), 1e8))
    batch = RayBatch(rays, torch.zeros(4, 3), None, None)
    assert module.training_step(batch, 0)["n_samples"] == 0


def test_rays_that_the_mask_leaves_out_have_no_samples(module: InstantNGP) -> None:
    batch = module.datamodule.draw(module.key, 64)
    assert module.training_step(batch._replace(mask=None), 0)["n_samples"] > 0
    assert module.training_step(batch._replace(mask=torch.zeros(64, dtype=torch.bool)), 0)["n_samples"] == 0


@pytest.mark.parametrize("mask", [None, torch.tensor([True, True, False, True])])
def test_a_ray_without_a_finite_time_is_left_out(mask: torch.Tensor | None) -> None:
    times = torch.tensor([float("nan"), 3.0, 4.0, float("inf")])
    rays = Rays(torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4), torch.ones(4), times)
    batch = checked_batch(RayBatch(rays, torch.zeros(4, 3), None, mask))
    assert batch.rays.times is not None
    assert batch.rays.times.tolist() == [0.0, 3.0, 4.0, 0.0]
    assert batch.mask is not None
    assert batch.mask.tolist() == [False, True, mask is None, False]
    assert torch.equal(batch.rays.far > batch.rays.near, batch.mask)


def test_a_proper_batch_is_learned_from(module: InstantNGP) -> None:
    before = module.field.position_encoding.table.detach().clone()
    step(module, module.datamodule.draw(module.key, 64))
    assert not torch.equal(before, module.field.position_encoding.table)
