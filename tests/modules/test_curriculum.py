"""The curriculum over the times of a scene that moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument
from lightning_nerf.estimators import Estimator, Hierarchical
from lightning_nerf.losses import Photometric
from lightning_nerf.modules import DynamicNeRF
from lightning_nerf.types import Step
from tests.executors.replay import replay_without_gpu
from tests.modules.test_dynamic import FIRST, LAST, Said, ball, fitted, module
from tests.scenes import trainer

pytestmark = pytest.mark.filterwarnings("ignore:(The dirpath has changed|Checkpoint directory)")


@pytest.mark.parametrize("steps", [2**63, 2**70, 10**400])
def test_a_curriculum_of_any_length_opens_the_first_times(steps: int) -> None:
    assert float(module(curriculum_steps=steps).open_share()) == pytest.approx(0.05)


def test_a_curriculum_holds_for_a_users_own_loader(tmp_path: Path) -> None:
    scene = ball()
    batch = scene.draw(torch.tensor([0, 0, 0]), 200)
    scene.train_dataloader = lambda: torch.utils.data.DataLoader([batch] * 8, batch_size=None)  # type: ignore
    seen: list[Tensor] = []

    class Seen(Photometric):
        def forward(self, step: Any) -> Tensor:
            seen.append(step.batch.rays.times[step.counts])
            return super().forward(step)

    trainer(tmp_path, max_steps=4).fit(module(curriculum_steps=3, losses=[Seen()]), scene)
    assert float(seen[0].max()) <= FIRST + 0.05 * (LAST - FIRST)
    assert float(seen[3].max()) == LAST


@pytest.mark.filterwarnings("ignore:Total length of `ViewIndices`")
def test_steps_that_come_round_again_before_the_curriculum_ends_are_refused(tmp_path: Path) -> None:
    message = "overfit_batches: expected at least curriculum_steps = 3, or 0, got 2"
    with pytest.raises(BadArgument, match=message):
        trainer(tmp_path, max_steps=4, overfit_batches=2).fit(module(curriculum_steps=3), ball())
    trainer(tmp_path, max_steps=4, overfit_batches=4).fit(module(curriculum_steps=3), ball())


@pytest.mark.parametrize(("step", "latest"), [(0, 0.05), (50, 0.525), (99, 0.9905), (100, 1.0), (5000, 1.0)])
def test_a_step_draws_views_up_to_its_time(tmp_path: Path, step: int, latest: float) -> None:
    run = module(curriculum_steps=100)
    trainer(tmp_path, max_steps=1).fit(run, ball())
    run.key[2].fill_(step)
    run.n_rays.fill_(400)
    batch, every = run.draw(), super(DynamicNeRF, run).draw()
    assert batch.rays.times is not None
    assert torch.equal(batch.mask, every.mask)  # type: ignore[arg-type]
    assert int(batch.mask.sum()) == 400  # type: ignore[union-attr]
    assert torch.equal(batch.rays.far > batch.rays.near, every.mask)  # type: ignore[arg-type]
    assert float((batch.rays.times.max() - FIRST) / (LAST - FIRST)) <= latest
    n_open = int((torch.linspace(0, 1, 12) <= latest).sum())
    assert len(batch.rays.cameras.unique()) == n_open  # type: ignore[union-attr]
    assert torch.equal(batch.rgb, every.rgb) == (latest == 1.0)


@pytest.mark.parametrize(
    ("estimator", "max_rays", "samples"),
    [(None, 4096, 2048), (Hierarchical(8, 8), 512, 2048), (Hierarchical(2, 1), 512, 3 * 512)],
    ids=["grid", "rounds", "as many rays as there may be"],
)
def test_a_step_of_a_curriculum_has_as_many_samples_as_one_without(
    tmp_path: Path, estimator: Estimator | None, max_rays: int, samples: int
) -> None:
    """A tenth of the times is open."""
    said = Said()
    options = {} if estimator is None else {"estimator": estimator}
    run = module(curriculum_steps=800, samples_per_step=2048, max_rays=max_rays, **options)
    trainer(tmp_path, max_steps=40, callbacks=[said]).fit(run, ball())
    assert run.open_share() < 0.1
    assert 0.8 * samples < sum(said.samples[-8:]) / 8 <= 2048


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_a_graph_of_a_step_follows_the_curriculum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    if accelerator == "cpu":
        replay_without_gpu(monkeypatch)
    latest, replayed = list[float](), list[bool]()

    class Watched(Photometric):
        def forward(self, step: Step) -> Tensor:
            assert step.batch.rays.times is not None
            step.logs["latest"] = torch.where(step.counts, step.batch.rays.times, FIRST).max()
            return super().forward(step)

    class Read(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
            latest.append(float(outputs["latest"])), replayed.append(pl_module.executor.replayed)

    run = module(curriculum_steps=20, losses=[Watched()])
    options = {"accelerator": accelerator, "devices": 1, "strategy": "nerf_cuda_graph", "callbacks": [Read()]}
    trainer(tmp_path, max_steps=24, **options).fit(run, ball())
    assert replayed[10]
    assert replayed[-1]
    assert latest[0] == FIRST
    assert latest[10] == pytest.approx(FIRST + 5 / 11 * (LAST - FIRST))  # the last view before 0.525
    assert latest[-1] == LAST


def test_without_a_curriculum_all_views_are_drawn_from_the_start(tmp_path: Path) -> None:
    run = module()
    trainer(tmp_path, max_steps=1).fit(run, ball())
    assert run.curriculum_steps == 0
    batch, every = run.draw(), super(DynamicNeRF, run).draw()
    assert torch.equal(batch.rays.far, every.rays.far)


def test_a_fit_with_a_curriculum_trains_on_early_times_alone_at_first(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Seen(Photometric):
        def forward(self, step: Any) -> Tensor:
            seen.append(step.batch.rays.times[step.counts])
            return super().forward(step)

    trained = fitted(tmp_path, 20, curriculum_steps=10, losses=[Seen()])
    latest = [float(times.max()) if len(times) else FIRST for times in seen]
    assert latest[0] <= FIRST + 0.05 * (LAST - FIRST)
    assert latest[4] < (FIRST + LAST) / 2
    assert max(latest[10:]) == LAST
    assert torch.isfinite(trained.render_view("test", 0, ball()).rgb).all()
