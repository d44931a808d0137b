"""Each private name of Lightning that the package uses exists in the installed version and does what is relied upon."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

import lightning_nerf
from lightning_nerf import lightning_names
from lightning_nerf.optim import FusedAdam

PACKAGE = Path(lightning_nerf.__file__).parent
OWNERS = r"(?:trainer|loop|pl_module|strategy|call|connector)\._[a-z]\w+"
IMPORTED = r"from lightning(?:\.[\w.]*)? import [^\n]*\b_[a-z]\w+"
PRIVATE = re.compile(rf"self\._trainer\b|{OWNERS}|{IMPORTED}")


def test_no_other_file_uses_a_private_name_of_lightning() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path.name != "lightning_names.py" and (names := PRIVATE.findall(path.read_text()))
    }
    assert found == {}


class Counts(L.LightningModule):
    """Writes down what the Trainer says of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[int, int, int, bool]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        names, trainer = lightning_names, self.trainer
        self.seen.append(
            (
                names.batches_done(trainer),
                names.batch_of_epoch(trainer),
                names.logged_step(trainer),
                names.accumulates(trainer),
            )
        )
        return self.weight.square()

    def train_dataloader(self) -> list[int]:
        return list(range(4))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def trainer(tmp_path: Path) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, default_root_dir=tmp_path, **quiet)  # type: ignore[arg-type]


def test_counts_go_on_over_epochs(trainer: L.Trainer) -> None:
    module = Counts()
    assert lightning_names.attached_trainer(module) is None
    trainer.fit(module)
    assert [done for done, *_ in module.seen] == list(range(8))
    assert [batch for _, batch, *_ in module.seen] == [0, 1, 2, 3] * 2
    assert [step for *_, step, _ in module.seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [more for *_, more in module.seen] == [True, False] * 4
    assert lightning_names.attached_trainer(module) is trainer


def test_flags_are_read(trainer: L.Trainer) -> None:
    assert lightning_names.num_nodes(trainer) == 1
    assert not lightning_names.detects_anomaly(trainer)
    assert not lightning_names.fast_dev_run(trainer)
    assert lightning_names.overfit_batches(trainer) == 0
    assert lightning_names.device_of(trainer).type == "cpu"
    assert lightning_names.datamodule(trainer) is None
    assert lightning_names.scaler_of(trainer.precision_plugin) is None
    assert lightning_names.detects_anomaly(L.Trainer(accelerator="cpu", detect_anomaly=True, logger=False))


def test_optimizers_that_unscale_are_told() -> None:
    parameters = [nn.Parameter(torch.ones(()))]
    assert lightning_names.unscales_by_itself(FusedAdam(parameters))
    assert not lightning_names.unscales_by_itself(torch.optim.SGD(parameters, 0.1))


def test_ddp_options_are_found() -> None:
    strategy = DDPStrategy(find_unused_parameters=True)
    assert dict(lightning_names.wrapper_options(strategy)) == {"find_unused_parameters": True}
    assert not lightning_names.syncs_layers(strategy)


def test_the_profiler_is_silenced_and_restored(trainer: L.Trainer) -> None:
    before = trainer.profiler.profile  # type: ignore[attr-defined]
    lightning_names.silence_profiler(trainer)
    assert trainer.profiler.profile("x") is trainer.profiler.profile("y")  # type: ignore[attr-defined]
    lightning_names.restore_profiler(trainer)
    assert trainer.profiler.profile == before  # type: ignore[attr-defined]


def test_sigterm_is_asked_for_seldom_and_again_always(trainer: L.Trainer) -> None:
    loop, asked = trainer.fit_loop.epoch_loop, []
    loop._broadcast_sigterm_tensor = lambda: asked.append(1)  # type: ignore[method-assign]
    lightning_names.ask_for_sigterm_every(trainer, 4)
    for i in range(8):
        loop.batch_progress.total.ready = i + 1
        loop._broadcast_sigterm_tensor()
    assert len(asked) == 2
    lightning_names.ask_for_sigterm_always(trainer)
    assert loop._broadcast_sigterm_tensor.__func__ is type(loop)._broadcast_sigterm_tensor  # type: ignore[attr-defined]
