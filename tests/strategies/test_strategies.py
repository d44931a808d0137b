"""``nerf_cuda_graph`` where there are no graphs, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import Precision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn

from lightning_nerf.cli import main
from lightning_nerf.executors import EagerExecutor
from lightning_nerf.strategies import (
    CUDAGraphDDPStrategy,
    CUDAGraphStrategy,
    ExecutorDDPStrategy,
    ExecutorStrategy,
    _replay,
)
from tests.executors.replay import replay_without_gpu
from tests.scenes import tiny_module, tiny_scene, trainer

ROOT = Path(__file__).parent.parent.parent


def test_the_names_are_known_once_a_module_is_imported() -> None:
    code = (
        "import sys, lightning_nerf; assert 'lightning' not in sys.modules;"
        "from lightning_nerf import InstantNGP;"
        "from lightning.pytorch.strategies import StrategyRegistry as registry;"
        "assert {'nerf_cuda_graph', 'nerf_cuda_graph_ddp'} <= set(registry.available_strategies())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_cpu_runs_eagerly_and_says_so_once(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(_replay, "rank_zero_info", said.append)
    states = []
    for strategy in ("auto", "nerf_cuda_graph"):
        torch.manual_seed(0)
        module = tiny_module()
        run = trainer(tmp_path, max_steps=12, strategy=strategy)
        run.fit(module, tiny_scene(scene_cache))
        run.test(module, datamodule=tiny_scene(scene_cache), verbose=False)
        states.append(module.state_dict())
    assert [message for message in said if "eagerly" in message] == said
    assert len(said) == 1
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_the_overlay_fits_on_a_cpu(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "lightning-nerf", "fit", "-c", "synthetic/instant_ngp", "-c", "overlays/cuda_graph",
        "--trainer.accelerator=cpu", "--trainer.max_steps=6", "--data.resolution=24", "--data.n_train=5",
        "--data.n_test=2", f"--data.cache_dir={scene_cache}", "--model.samples_per_step=1024",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    cli = main()
    assert isinstance(cli.trainer.strategy, CUDAGraphStrategy)
    (folder,) = (tmp_path / "runs/synthetic/instant_ngp").iterdir()
    assert json.loads((folder / "results.json").read_text())["steps"] == 6


class OwnPrecision(Precision):
    pass


def manual() -> L.LightningModule:
    module = tiny_module()
    module.automatic_optimization = False
    return module


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (tiny_module, {"detect_anomaly": True}, "detect_anomaly=True"),
        (tiny_module, {"plugins": [OwnPrecision()]}, "precision plugin OwnPrecision"),
        (lambda: tiny_module(optimizer=lambda groups: torch.optim.LBFGS(groups[0]["params"])), {}, "LBFGS"),
        (manual, {}, "automatic_optimization=False"),
        (BoringModel, {}, r"self\.executor\.step.*BoringModel"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*(doesn't have|no `val_dataloader`)")
def test_what_cannot_work_is_refused_by_name(
    tmp_path: Path,
    scene_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], L.LightningModule],
    options: dict[str, Any],
    words: str,
) -> None:
    replay_without_gpu(monkeypatch)
    run = trainer(tmp_path, max_steps=6, strategy="nerf_cuda_graph", **options)
    module = make()
    with pytest.raises((ValueError, TypeError), match=f"(?s)strategy='nerf_cuda_graph'.*{words}.*strategy='auto'"):
        run.fit(module, tiny_scene(scene_cache))
    torch.autograd.set_detect_anomaly(False)


@pytest.mark.parametrize("kind", [CUDAGraphStrategy, CUDAGraphDDPStrategy])
def test_messages_have_the_strategys_own_name(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    cpu = torch.device("cpu")
    ddp = {"parallel_devices": [cpu], "cluster_environment": LightningEnvironment()}
    strategy = kind(**(ddp if kind is CUDAGraphDDPStrategy else {"device": cpu}))
    name = kind.strategy_name
    said: list[str] = []
    monkeypatch.setattr(_replay, "rank_zero_info", said.append)
    monkeypatch.setattr(kind.__mro__[2], "setup", lambda self, trainer: None)  # Lightning's own would connect processes
    connector = SimpleNamespace(_num_nodes_flag=1)
    run = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING), _accelerator_connector=connector)
    strategy.setup(run)
    assert [message.split(":")[0] for message in said] == [name]
    monkeypatch.setattr(_replay, "_has_graphs", lambda device: True)
    for make in (BoringModel, manual):
        strategy._lightning_module = make()
        with pytest.raises((TypeError, ValueError), match=f"^strategy='{name}'"):
            strategy.setup(run)
    strategy._lightning_module = tiny_module()
    strategy.optimizers = [torch.optim.LBFGS([torch.zeros(1)])]
    with pytest.raises(ValueError, match=f"^strategy='{name}'.*LBFGS"):
        strategy.setup(run)


class Asking(L.Callback):
    """Asks as Lightning does before each batch of several processes."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process group may begin in this process, and nothing of it stays."""
    before = dict(os.environ)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures("group_of_one")
def test_whether_to_end_is_asked_seldom(tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay_without_gpu(monkeypatch)
    asked: list[int] = []
    ask = lambda loop: asked.append(loop.total_batch_idx)  # noqa: E731
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", ask)
    strategy = CUDAGraphDDPStrategy(process_group_backend="gloo")
    run = trainer(tmp_path, max_steps=70, strategy=strategy, callbacks=[Asking()])
    run.fit(tiny_module(), tiny_scene(scene_cache))
    assert asked == [0, 32, 64]
    run.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert asked == [0, 32, 64, 69]  # Lightning's own again


class Counting(EagerExecutor):
    steps = 0

    def step(self, program: Any, batch: Any) -> Any:
        self.steps += 1
        return super().step(program, batch)


def test_any_executor_by_object_and_by_name(tmp_path: Path, scene_cache: Path) -> None:
    by_object, by_name = Counting(), Counting()
    StrategyRegistry.register("counting", ExecutorStrategy, override=True, executor=by_name)
    for executor, strategy in [(by_object, ExecutorStrategy(by_object)), (by_name, "counting")]:
        run = trainer(tmp_path, max_steps=3, strategy=strategy)
        assert run.strategy.root_device == torch.device("cpu")
        run.fit(tiny_module(), tiny_scene(scene_cache))
        assert executor.steps == 3
    StrategyRegistry.remove("counting")


@pytest.mark.parametrize("kind", [ExecutorStrategy, ExecutorDDPStrategy])
def test_what_is_no_executor_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"executor: expected a lightning_nerf\.Executor, got str"):
        kind("eager")


def test_an_executor_strategy_drives_one_device_of_one_node(tmp_path: Path, scene_cache: Path) -> None:
    with pytest.raises(ValueError, match=r"strategy=ExecutorStrategy.*one device, got 2.*ExecutorDDPStrategy"):
        L.Trainer(accelerator="cpu", devices=2, strategy=ExecutorStrategy(Counting()), logger=False)
    run = trainer(tmp_path, max_steps=2, strategy=ExecutorStrategy(Counting()), num_nodes=2)
    with pytest.raises(ValueError, match=r"strategy=ExecutorStrategy.*num_nodes=2.*ExecutorDDPStrategy"):
        run.fit(tiny_module(), tiny_scene(scene_cache))


def test_several_nodes_are_refused(tmp_path: Path, scene_cache: Path) -> None:
    run = trainer(tmp_path, max_steps=2, strategy="nerf_cuda_graph", num_nodes=2)
    with pytest.raises(ValueError, match=r"strategy='nerf_cuda_graph'.*num_nodes=2.*nerf_cuda_graph_ddp"):
        run.fit(tiny_module(), tiny_scene(scene_cache))


def test_what_is_not_for_the_strategies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one device, got 2.*nerf_cuda_graph_ddp"):
        L.Trainer(accelerator="cpu", devices=2, strategy="nerf_cuda_graph", logger=False)
    with pytest.raises(ValueError, match="warmup_steps"):
        CUDAGraphStrategy(warmup_steps=0)
    with pytest.raises(ValueError, match="find_unused_parameters"):
        CUDAGraphDDPStrategy(find_unused_parameters=True)
    with pytest.raises(ValueError, match="ddp_comm_hook"):
        CUDAGraphDDPStrategy(ddp_comm_hook=print)


DDP = """
import sys, warnings
from pathlib import Path
import torch
from tests.scenes import tiny_module, tiny_scene, trainer
from lightning_nerf.callbacks import OccupancyGridUpdate
import lightning as L

folder, cache, strategy = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
class Keep(L.Callback):
    def __init__(self):
        self.keys, self.grads = [], None
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.keys.append(module.key[:2].tolist() + [trainer.fit_loop.epoch_loop.total_batch_idx])
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.grads = [p.grad.clone() for p in module.parameters()]
keep = Keep()
torch.manual_seed(0)
module = tiny_module()
run = trainer(folder, max_steps=5, devices=2, strategy=strategy, accumulate_grad_batches=2,
              callbacks=[OccupancyGridUpdate(every_n_steps=3), keep])
rank = run.global_rank
if rank == 1:
    torch.nn.init.normal_(module.field.color_net[0].weight)  # rank 0's must be taken
run.fit(module, tiny_scene(cache))
torch.save({"keys": keep.keys, "grads": keep.grads, "state": module.state_dict()}, folder / f"{strategy}.{rank}.pt")
"""


EXECUTOR_DDP = """
import sys
from pathlib import Path
import torch
from tests.scenes import tiny_module, tiny_scene, trainer
from tests.strategies.test_strategies import Counting
from lightning_nerf.strategies import ExecutorDDPStrategy

folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
executor, module = Counting(), tiny_module()
run = trainer(folder, max_steps=3, devices=2, strategy=ExecutorDDPStrategy(executor, find_unused_parameters=False))
run.fit(module, tiny_scene(cache))
torch.save({"steps": executor.steps, "rank": int(module.key[1]), "weights": list(module.parameters())},
           folder / f"{run.global_rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_have_an_executor_each(tmp_path: Path, scene_cache: Path) -> None:
    (tmp_path / "run.py").write_text(EXECUTOR_DDP)
    tiny_scene(scene_cache).setup("fit")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "run.py", str(tmp_path), str(scene_cache)]
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment, timeout=300)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert [rank["steps"] for rank in ranks] == [3, 3]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    for a, b in zip(*(rank["weights"] for rank in ranks), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path, scene_cache: Path) -> None:
    """Eagerly, over gloo: the same weights and grid on both ranks, other rays, and what DDP's wrapper would give."""
    (tmp_path / "run.py").write_text(DDP)
    tiny_scene(scene_cache).setup("fit")  # rendered once, not by both
    ranks: dict[str, list[Any]] = {}
    for strategy in ("nerf_cuda_graph_ddp", "ddp"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, "run.py", str(tmp_path), str(scene_cache), strategy],
            check=True, cwd=tmp_path, env=environment, timeout=300,
        )  # fmt: skip
        ranks[strategy] = [torch.load(tmp_path / f"{strategy}.{rank}.pt") for rank in range(2)]
    for first, second in ranks.values():
        assert [key[1] for key in first["keys"]] == [0] * 10
        assert [key[1] for key in second["keys"]] == [1] * 10
        for name, value in first["state"].items():
            if name not in ("key", "n_rays"):  # each rank's own
                assert torch.equal(value, second["state"][name]), name
    ours, wrapped = ranks["nerf_cuda_graph_ddp"][0], ranks["ddp"][0]
    for a, b in zip(ours["grads"], wrapped["grads"], strict=True):
        assert a.shape == b.shape
        assert float(a.abs().max()) > 0
