"""Parts of a user's own that break their promises: a fit names the part, what it gave and what was expected."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, BadType
from lightning_nerf.estimators import Estimator
from lightning_nerf.executors import Executor
from lightning_nerf.losses import Loss, Photometric
from lightning_nerf.renderers import Renderer, VolumeRenderer
from lightning_nerf.renderers.frame import FrameRenderer
from lightning_nerf.strategies import ExecutorStrategy
from lightning_nerf.types import FieldOutput, PackedSamples, Placement, RayBatch, Rays, Round, Step
from tests.executors.fits import PlainField
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")
COUNT = 4


class Four(Estimator):
    """Four samples on each active ray, and then what the user's mistake makes of them."""

    fixed_count = COUNT

    def __init__(self, spoil: Callable[[PackedSamples], Any] = Placement, count: Any = COUNT) -> None:
        super().__init__()
        self.spoil, self.fixed_count = spoil, count

    def bind(self, scene_box: Any) -> Four:
        return self

    def place(
        self,
        rays: Rays,
        query: Any = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        active = (rays.near < rays.far).int()
        offsets = torch.cat([active.new_zeros(1), COUNT * active.cumsum(0)]).int()
        index = active.nonzero()[:, 0].int().repeat_interleave(COUNT)
        t = torch.linspace(1, 5, COUNT + 1)
        starts, ends = t[:-1].repeat(int(active.sum())), t[1:].repeat(int(active.sum()))
        tail = 0 if capacity is None else capacity - len(starts)
        lists = (torch.nn.functional.pad(each, (0, tail)) for each in (starts, ends, index))
        return self.spoil(PackedSamples(*lists, offsets, torch.ones(len(active), dtype=torch.bool)))


def changed(**changes: Callable[[Tensor], Tensor]) -> Callable[[PackedSamples], Placement]:
    def change(s: PackedSamples) -> Placement:
        return Placement(s._replace(**{name: function(getattr(s, name)) for name, function in changes.items()}))

    return change


PLACEMENTS: dict[str, tuple[Callable[[PackedSamples], Any], str]] = {
    "bare samples": (lambda s: s, "Four.place: expected Placement, got PackedSamples"),
    "nothing": (lambda s: None, "Four.place: expected Placement, got NoneType"),
    "a bare tuple": (lambda s: Placement(tuple(s)), "Four.place: samples: expected PackedSamples, got tuple"),
    "float64": (changed(t_starts=Tensor.double), "Four.place: samples.t_starts: expected dtype torch.float32"),
    "a short list": (changed(t_ends=lambda t: t[1:]), r"Four.place: samples.t_ends: expected shape \[2048\], got \[2047\]"),
    "int64 rays": (changed(ray_indices=Tensor.long), "Four.place: samples.ray_indices: expected dtype torch.int32"),
    "int64 offsets": (changed(offsets=Tensor.long), "Four.place: samples.offsets: expected dtype torch.int32"),
    "offsets of fewer rays": (changed(offsets=lambda t: t[1:]), r"Four.place: samples.offsets: expected shape \[1025\]"),
    "kept of fewer rays": (
        changed(kept=lambda t: t[1:]),
        r"Four.place: samples.kept: expected shape \[1024\], got \[1023\]",
    ),
    "kept as numbers": (changed(kept=Tensor.int), "Four.place: samples.kept: expected dtype torch.bool"),
    "offsets past the list": (
        changed(offsets=lambda t: 1000 * t),
        "offsets: expected 0 at first, never falling, at most N",
    ),
    "offsets below 0": (changed(offsets=lambda t: t - 5), "offsets: expected 0 at first, never falling, at most N = 2048"),
    "falling offsets": (changed(offsets=lambda t: t.flip(0)), "offsets: expected 0 at first, never falling, at most N"),
    "rays below 0": (changed(ray_indices=lambda t: t - 1), "ray_indices: expected 0 to 1023, also in the tail, got"),
    "rays of nobody in the tail": (
        changed(ray_indices=lambda t: torch.cat([t[:-1], t.new_tensor([999_999])])),
        r"ray_indices: expected 0 to 1023, also in the tail, got \[0, 999999\]",
    ),
    "rounds in a list": (lambda s: Placement(s, []), "Four.place: rounds: expected tuple, got list"),  # type: ignore[arg-type]
    "rounds that are pairs": (
        lambda s: Placement(s, ((s, s.t_starts),)),  # type: ignore[arg-type]
        r"Four.place: rounds\[0\]: expected Round, got tuple",
    ),
    "a round with rays of nobody": (
        lambda s: Placement(s, (Round(s._replace(ray_indices=s.ray_indices + 1024), s.t_starts),)),
        r"Four.place: rounds\[0\].samples.ray_indices: expected 0 to 1023, also in the tail, got",
    ),
    "a round with too few weights": (
        lambda s: Placement(s, (Round(s, s.t_starts[1:]),)),
        r"Four.place: rounds\[0\].weights: expected shape \[2048\], got \[2047\]",
    ),
    "a round whose output is a tensor": (
        lambda s: Placement(s, (Round(s, s.t_starts, s.t_starts),)),  # type: ignore[arg-type]
        r"Four.place: rounds\[0\].output: expected FieldOutput or None, got Tensor",
    ),
    "features that are text": (
        lambda s: Placement(s, (), "x"),  # type: ignore[arg-type]
        "Four.place: evaluated: expected Evaluated or NoneType|Four.place: evaluated: expected Evaluated or None, got str",
    ),
}


def fit(tmp_path: Path, cache: Path, strategy: Any = "auto", **parts: Any) -> None:
    module = tiny_module(**{"field": PlainField(), "estimator": Four(), **parts})
    trainer(tmp_path, max_steps=1, strategy=strategy, limit_val_batches=0).fit(module, tiny_scene(cache))


@pytest.mark.parametrize("row", PLACEMENTS)
def test_a_placement_that_breaks_its_promises_is_named(row: str, tmp_path: Path, scene_cache: Path) -> None:
    spoil, message = PLACEMENTS[row]
    with pytest.raises(BadArgument, match=message):
        fit(tmp_path, scene_cache, estimator=Four(spoil))


def test_a_frame_looks_at_placements_too() -> None:
    rays = Rays(torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(3), torch.ones(3))
    frames = FrameRenderer(PlainField(), Four(changed(ray_indices=lambda t: t + 9)), VolumeRenderer())
    with pytest.raises(BadArgument, match="ray_indices: expected 0 to 2, also in the tail"):
        frames.rays(rays)


@pytest.mark.parametrize("count", [0, -1, 2.5, "4", True])
def test_a_fixed_count_is_a_count(count: Any, tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(BadArgument, match=r"Four\.fixed_count: expected an integer >= 1, got"):
        fit(tmp_path, scene_cache, estimator=Four(count=count))


class Of(Loss):
    """Any function of a step."""

    def __init__(self, function: Callable[[Step], Any], needs_weights: bool = False) -> None:
        super().__init__()
        self.function, self.needs_weights = function, needs_weights

    def forward(self, step: Step) -> Tensor:
        return self.function(step)


class Nameless(Of):
    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


def logging(name: str, value: Any) -> Callable[[Step], Tensor]:
    def function(step: Step) -> Tensor:
        step.logs[name] = value
        return step.render.rgb.sum()

    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda step: step.render.rgb.sum(1),
            r"losses: of: expected a 0-d tensor of a real number, got torch.float32 of shape",
        ),
        (lambda step: step.render.rgb.sum()[None], r"losses: of: expected a 0-d tensor .* of shape \[1\]"),
        (
            lambda step: step.render.rgb.sum() * 1j,
            "losses: of: expected a 0-d tensor of a real number, got torch.complex64",
        ),
        (lambda step: 1.0, "losses: of: expected a 0-d tensor, got float"),
        (lambda step: None, "losses: of: expected a 0-d tensor, got NoneType"),
        (lambda step: (step.render.rgb.sum(), {}), "losses: of: expected a 0-d tensor, got tuple"),
        (logging("loss", torch.zeros(())), r"step.logs\['loss'\]: expected another name"),
        (logging("mine", 1.5), r"step.logs\['mine'\]: expected a 0-d tensor, got float"),
        (logging("mine", torch.zeros(3)), r"step.logs\['mine'\]: expected a 0-d tensor .* of shape \[3\]"),
    ],
)
def test_a_loss_that_is_no_number_is_named(function: Any, message: str, tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(BadArgument, match=message):
        fit(tmp_path, scene_cache, losses=[Photometric(), Of(function)])


def test_losses_without_a_name_are_named() -> None:
    with pytest.raises(BadType, match=r"losses\[0\]: Nameless.__init__ has to call super\(\).__init__\(\) first"):
        tiny_module(losses=[Nameless()])
    with pytest.raises(BadArgument, match="name: expected another one than loss, mse, n_rays, n_samples, got ''"):
        Photometric(name="")


class Drawn(Renderer):
    """Anything for a render."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(
        self, output: FieldOutput, samples: PackedSamples, *, background: Tensor | None = None, return_weights: bool = False
    ) -> Any:
        return self.change(VolumeRenderer()(output, samples, background=background))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tuple, "Drawn.forward: expected Render, got tuple"),
        (lambda render: None, "Drawn.forward: expected Render, got NoneType"),
        (lambda render: render, "renderer: Drawn keeps no weights, which the loss 'of' needs"),
    ],
)
def test_a_renderer_that_keeps_no_weights_is_named(change: Any, message: str, tmp_path: Path, scene_cache: Path) -> None:
    losses = [Photometric(), Of(lambda step: step.render.weights.sum(), needs_weights=True)]  # type: ignore[union-attr]
    with pytest.raises(BadArgument, match=message):
        fit(tmp_path, scene_cache, renderer=Drawn(change), losses=losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tuple, "output: expected FieldOutput, got tuple"),
        (lambda out: None, "output: expected FieldOutput, got NoneType"),
        (lambda out: out._replace(extras=None), "output.extras: expected dict, got NoneType"),
        (lambda out: out._replace(density=out.density[:, None]), r"density: expected shape \[1\], got \[1, 1\]"),
        (lambda out: out._replace(density=out.density.double()), "density: expected dtype .* got torch.float64"),
        (lambda out: out._replace(density=None), "density: expected a tensor, got NoneType"),
    ],
)
def test_a_fields_output_is_named_as_the_field_names_it(change: Any, message: str) -> None:
    one, ray = torch.ones(1), torch.zeros(1, dtype=torch.int32)
    samples = PackedSamples(one, one + 1, ray, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([True]))
    with pytest.raises(BadArgument, match=message):
        VolumeRenderer()(change(FieldOutput(one, torch.ones(1, 3))), samples)


class Steps(Executor):
    """Anything for a step's result."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def step(self, program: Any, batch: RayBatch | None) -> Any:
        program.name_step()
        return self.change(program.step_loss(batch))

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        fn(*reads)


@pytest.mark.parametrize(
    ("change", "came"),
    [
        (lambda out: None, "NoneType"),
        (lambda out: out[0], "Tensor"),
        (lambda out: (out[0], None), "tuple"),
        (lambda out: (None, out[1]), "tuple"),
        (lambda out: (1.0, out[1]), "tuple"),
        (lambda out: (*out, 1), "tuple"),
    ],
)
def test_an_executor_gives_a_loss_and_logs(change: Any, came: str, tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(BadType, match=f"Steps.step: expected a loss and a dict of logs, got {came}"):
        fit(tmp_path, scene_cache, strategy=ExecutorStrategy(Steps(change)))


def test_parts_that_keep_their_promises_train(tmp_path: Path, scene_cache: Path) -> None:
    losses = [Photometric(), Of(lambda step: step.render.weights.sum(), needs_weights=True)]  # type: ignore[union-attr]
    fit(tmp_path, scene_cache, strategy=ExecutorStrategy(Steps(list)), losses=losses)
