from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_nerf.callbacks import PSNRLogger
from lightning_nerf.checkpoint_io import AtomicCheckpointIO
from lightning_nerf.checks import BadArgument
from lightning_nerf.cli import main
from lightning_nerf.data import NeRFDataModule, SyntheticScene
from lightning_nerf.estimators import OccupancyGrid
from lightning_nerf.fields import InstantNGPField
from lightning_nerf.modules import InstantNGP, NeRFModule, WarmupDecay
from lightning_nerf.optim import FusedAdam
from lightning_nerf.renderers import VolumeRenderer
from tests.modules.test_kills import same
from tests.modules.thirdparty import SGD, Blob, BlobModule
from tests.scenes import tiny_module, tiny_scene, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]
SMALL = {"samples_per_step": 1024, "max_rays": 256, "initial_rays": 32, "seed": 3}


def field(**options: Any) -> InstantNGPField:
    return InstantNGPField(**{"n_levels": 4, "log2_table_size": 10, "max_resolution": 64, "width": 16, **options})


def saved(module: NeRFModule, folder: Path, scene: Path, steps: int = 4, **options: Any) -> Path:
    fit = trainer(folder, max_steps=steps)
    fit.fit(module, tiny_scene(scene, **options))
    fit.save_checkpoint(folder / "it.ckpt")
    return folder / "it.ckpt"


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# -- written by a script -----------------------------------------------------------------------------------------------


def test_a_script_of_ten_lines_with_a_strangers_field(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import lightning as L
            from lightning_nerf import NeRFModule, OccupancyGrid, SyntheticScene
            from tests.modules.thirdparty import Blob

            def run(cache):
                module = NeRFModule(Blob(6, bias=0.5), OccupancyGrid(16, step_size=0.1), samples_per_step=1024,
                                    max_rays=256, initial_rays=32)
                trainer = L.Trainer(max_steps=3, logger=False, accelerator="cpu", enable_progress_bar=False,
                                    enable_model_summary=False, limit_val_batches=0)
                trainer.fit(module, SyntheticScene(24, 6, 2, cache_dir=cache))
                return module
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import script  # type: ignore[import-not-found]

    module = script.run(scene_cache)
    (path,) = tmp_path.rglob("*.ckpt")
    spec = read(path)["hyper_parameters"]
    assert spec["class_path"] == "lightning_nerf.modules.base.NeRFModule"
    blob = {"class_path": "tests.modules.thirdparty.Blob", "init_args": {"width": 6, "bias": 0.5, "net": None}}
    assert spec["init_args"]["field"] == blob
    assert spec["init_args"]["estimator"]["init_args"]["step_size"] == 0.1
    assert spec["init_args"]["renderer"]["class_path"] == "lightning_nerf.renderers.volume.VolumeRenderer"
    assert spec["init_args"]["optimizer"] == {"class_path": "lightning_nerf.modules.optimizers.adam"}

    loaded = NeRFModule.load_from_checkpoint(path)
    assert type(loaded.field) is Blob
    assert loaded.field.bias == 0.5
    assert loaded.hparams == module.hparams
    same(dict(module.state_dict()), dict(loaded.state_dict()), "state_dict")
    assert torch.equal(loaded.field.affine, module.field.affine)  # it is ready to render


@pytest.mark.parametrize(
    "make",
    [
        lambda: InstantNGP(field(), OccupancyGrid(16), **SMALL),
        lambda: InstantNGP(field=field(), renderer=VolumeRenderer(0.1), optimizer=SGD, **SMALL),
        lambda: InstantNGP(field(), optimizer=functools.partial(FusedAdam, lr=0.1, betas=(0.5, 0.9)), **SMALL),
        lambda: BlobModule(5, **SMALL),
    ],
)
def test_rebuilt_from_a_checkpoint(make: Any, tmp_path: Path) -> None:
    module = make()
    path = tmp_path / "it.ckpt"
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    module.losses[0].delta = 9.0
    for kind in (NeRFModule, type(module)):
        loaded = kind.load_from_checkpoint(path)
        assert type(loaded) is type(module)
        assert loaded.hparams == module.hparams
        assert loaded.samples_per_step == 1024
        assert loaded.renderer.early_stop_eps == module.renderer.early_stop_eps
        assert loaded.losses[0].delta == 0.1
        same(dict(module.state_dict()), dict(loaded.state_dict()), "state_dict")
        ours, theirs = (m._make_optimizer([torch.zeros(1, requires_grad=True)]) for m in (module, loaded))
        assert type(ours) is type(theirs)
        same([(*g["betas"], g["lr"]) for g in ours.param_groups if "betas" in g],
             [(*g["betas"], g["lr"]) for g in theirs.param_groups if "betas" in g], "options")  # fmt: skip
    with open(path, "rb") as file:
        assert NeRFModule.load_from_checkpoint(file, samples_per_step=512).samples_per_step == 512
    other = InstantNGP if isinstance(module, BlobModule) else BlobModule
    with pytest.raises(ValueError, match="class_path: expected a subclass of"):
        other.load_from_checkpoint(path)


def test_no_module_gets_in_by_save_hyperparameters(tmp_path: Path, scene_cache: Path) -> None:
    module = BlobModule(field=Blob(7), **SMALL)  # it calls save_hyperparameters()
    path = saved(module, tmp_path, scene_cache)
    assert set(read(path)["hyper_parameters"]) == {"class_path", "init_args"}
    assert BlobModule.load_from_checkpoint(path).field.net[0].out_features == 7


def test_a_checkpoint_without_arguments_takes_them_as_lightning_does(tmp_path: Path) -> None:
    module = tiny_module()
    buffer = io.BytesIO()
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}, buffer)
    buffer.seek(0)
    loaded = InstantNGP.load_from_checkpoint(buffer, field=field(), estimator=OccupancyGrid(16))
    same(dict(module.state_dict()), dict(loaded.state_dict()), "state_dict")


# -- the data module ---------------------------------------------------------------------------------------------------


class Tutorial(SyntheticScene):
    def __init__(self, cache: Path) -> None:
        super().__init__(24, 6, 2, cache_dir=cache)
        self.save_hyperparameters()


def test_a_data_module_that_saves_hyperparameters_changes_no_checkpoint(tmp_path: Path, scene_cache: Path) -> None:
    """As Lightning's tutorials have it; nor do its keys clash with those of the module."""
    logger = CSVLogger(tmp_path)
    fit = trainer(tmp_path, max_steps=1, logger=logger)
    fit.fit(tiny_module(), Tutorial(scene_cache))
    fit.save_checkpoint(tmp_path / "it.ckpt")
    assert type(NeRFDataModule.load_from_checkpoint(tmp_path / "it.ckpt")) is Tutorial
    assert "InstantNGP" in logger.experiment.hparams["class_path"]


# -- what has no name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"optimizer": lambda groups: FusedAdam(groups, lr=0.1)}, "optimizer"),
        ({"lr_scheduler": lambda optimizer: WarmupDecay(optimizer, 24)}, "lr_scheduler"),
        ({"field": Blob(net=torch.nn.Linear(3, 4))}, r"field\.net"),
    ],
)
@pytest.mark.filterwarnings("ignore:EMAWeights does nothing")
def test_what_has_no_name_is_missed_by_loading_and_by_nothing_else(
    options: dict[str, Any], name: str, tmp_path: Path, scene_cache: Path
) -> None:
    path = saved(tiny_module(**options), tmp_path, scene_cache)
    with pytest.raises(
        ValueError, match=f"^{name}: the checkpoint has no name for it.*pass {name.split('.')[0].strip(chr(92))}="
    ):
        InstantNGP.load_from_checkpoint(path)
    given = next(iter(options))
    InstantNGP.load_from_checkpoint(path, **{given: options[given]})
    resumed = trainer(tmp_path, max_steps=6)
    resumed.fit(tiny_module(**options), tiny_scene(scene_cache), ckpt_path=path)
    assert resumed.global_step == 6


def test_a_modules_class_without_a_name_is_missed_by_loading_and_by_nothing_else(tmp_path: Path, scene_cache: Path) -> None:
    class Local(InstantNGP):
        pass

    path = saved(Local(field(), OccupancyGrid(16), **SMALL), tmp_path, scene_cache)
    with pytest.raises(ValueError, match=r"class_path: the checkpoint has none.*Local.*state_dict"):
        InstantNGP.load_from_checkpoint(path)
    trainer(tmp_path, max_steps=6).fit(Local(field(), OccupancyGrid(16), **SMALL), tiny_scene(scene_cache), ckpt_path=path)


def test_what_a_constructor_does_with_none_stays_its_own(tmp_path: Path) -> None:
    module = BlobModule(5, **SMALL)
    assert module.hparams["init_args"]["field"] is None
    assert InstantNGP().hparams["init_args"]["estimator"]["init_args"]["resolution"] == 128


# -- another architecture, another scene -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"field": field(n_levels=8)}, [r"field\.n_levels: came 4, expected 8", r"table'\]: came \[.*\], expected \["]),
        ({"field": field(max_resolution=48)}, [r"field\.max_resolution: came 64, expected 48"]),
        ({"field": field(density_bias=0.5)}, [r"field\.density_bias: came -1\.0, expected 0\.5"]),
        ({"field": Blob()}, [r"field: came .*InstantNGPField, expected .*Blob"]),
        (
            {"estimator": OccupancyGrid(8)},
            [r"estimator\.resolution: came 16, expected 8", r"estimator\.occs'\]: came \[4096\]"],
        ),
    ],
)
def test_another_architecture_is_refused_by_name(
    other: dict[str, Any], says: list[str], tmp_path: Path, scene_cache: Path
) -> None:
    path = saved(tiny_module(), tmp_path, scene_cache)
    for run in ("fit", "test"):
        with pytest.raises(ValueError, match="checkpoint: of another architecture than this InstantNGP") as error:
            getattr(trainer(tmp_path, max_steps=6), run)(
                tiny_module(**other), datamodule=tiny_scene(scene_cache), ckpt_path=path
            )
        for line in says:
            error.match(line)
    with pytest.raises(ValueError, match="another architecture"):
        InstantNGP.load_from_checkpoint(path, **other)


def test_settings_may_change(tmp_path: Path, scene_cache: Path) -> None:
    path = saved(tiny_module(), tmp_path, scene_cache)
    grid = OccupancyGrid(resolution=16, warmup_steps=16, step_size=0.1, threshold=0.02)
    module = tiny_module(field=field(fused=False), estimator=grid, samples_per_step=1024, huber_delta=0.2)
    fit = trainer(tmp_path, max_steps=6)
    fit.fit(module, tiny_scene(scene_cache), ckpt_path=path)
    assert fit.global_step == 6


def test_strict_loading_can_be_turned_off(tmp_path: Path, scene_cache: Path) -> None:
    path = saved(tiny_module(), tmp_path, scene_cache)
    module = tiny_module(field=field(density_bias=0.5))
    module.strict_loading = False
    trainer(tmp_path).test(module, tiny_scene(scene_cache), ckpt_path=path, verbose=False)
    assert InstantNGP.load_from_checkpoint(path, strict=False, field=field(density_bias=0.5)).field.density_bias == 0.5


def test_another_scene_is_refused_by_name(tmp_path: Path, scene_cache: Path) -> None:
    path = saved(tiny_module(), tmp_path, scene_cache)
    other = tiny_scene(scene_cache, aabb=[[-2, -2, -2], [2, 2, 2]])
    with pytest.raises(ValueError, match=r"scene_box: the checkpoint's is \[\[-1\.12.*expected \[\[-2\.0"):
        trainer(tmp_path, max_steps=6).fit(tiny_module(), other, ckpt_path=path)
    with pytest.raises(ValueError, match=r"scene_box: the data module's is \[\[-2\.0.*expected \[\[-1\.12"):
        trainer(tmp_path).test(InstantNGP.load_from_checkpoint(path), other)


# -- LightningCLI ------------------------------------------------------------------------------------------------------

ARGUMENTS = [
    "-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.max_steps=4",
    '--trainer.callbacks=[{"class_path": "lightning_nerf.callbacks.EMAWeights"}]',
    "--trainer.enable_progress_bar=false", "--data.resolution=24", "--data.n_train=6",
    "--data.n_test=2",
]  # fmt: skip
MODEL = ["--model.samples_per_step=1024", "--model.field.log2_table_size=10", "--model.estimator.resolution=16"]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments])
    return main()


def test_the_command_line_and_a_script_write_the_same(
    tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = f"--data.cache_dir={scene_cache}"
    cli = command(monkeypatch, "fit", *ARGUMENTS, *MODEL, data)
    (path,) = tmp_path.rglob("*.ckpt")
    checkpoint = read(path)
    spec = checkpoint["hyper_parameters"]
    assert set(spec) == {"class_path", "init_args"}
    assert spec["init_args"]["optimizer"]["class_path"] == "lightning_nerf.optim.adam.FusedAdam"
    assert spec["init_args"]["field"]["init_args"]["log2_table_size"] == 10

    script = InstantNGP.load_from_checkpoint(path)
    assert script.hparams == cli.model.hparams
    assert script._make_optimizer([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"] == 0.02
    same(dict(script.state_dict()), checkpoint["state_dict"], "state_dict")

    # The command line's model is what runs: the checkpoint has to fit it, and may have had other settings.
    with pytest.raises(SystemExit, match=r"field\.log2_table_size: came 10, expected 11"):
        command(monkeypatch, "fit", *ARGUMENTS, *MODEL, data, f"--ckpt_path={path}", "--model.field.log2_table_size=11")
    more = command(monkeypatch, "fit", *ARGUMENTS, *MODEL, data, f"--ckpt_path={path}", "--trainer.max_steps=6",
                   "--model.huber_delta=0.2")  # fmt: skip
    assert more.model.losses[0].delta == 0.2
    assert more.trainer.global_step == 6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"state_dict": {}}, "checkpoint: of another architecture"),
        ({"state_dict": None}, "state_dict: expected a dict, got NoneType"),
        ({"loops": {"fit_loop": 5}}, "loops.fit_loop: expected a dict, got 5"),
        ({"optimizer_states": [5]}, r"optimizer_states\[0\]: expected a dict with 'state' and 'param_groups'"),
        ({"pytorch-lightning_version": None}, "pytorch-lightning_version: expected a version, got None"),
        ({"wandb_run_id": "../../x", "callbacks": [1]}, "callbacks: expected a dict, got list"),
    ],
)
def test_the_command_line_refuses_a_malformed_checkpoint_in_a_line(
    change: dict[str, Any], says: str, tmp_path: Path, scene_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*ARGUMENTS, *MODEL, f"--data.cache_dir={scene_cache}"]
    command(monkeypatch, "fit", *arguments, "--trainer.max_steps=1")
    (path,) = tmp_path.rglob("*.ckpt")
    torch.save({**read(path), **change}, "bad.ckpt")
    with pytest.raises(SystemExit, match=f"^lightning-nerf: .*{says}"):
        command(monkeypatch, "fit", *arguments, "--ckpt_path=bad.ckpt")


# -- resuming and testing ----------------------------------------------------------------------------------------------


def test_testing_a_checkpoint_is_testing_the_module(tmp_path: Path, scene_cache: Path) -> None:
    module, scene = tiny_module(), tiny_scene(scene_cache)
    path = saved(module, tmp_path, scene_cache, steps=30)
    scores = []
    for tested, ckpt_path in [(module, None), (tiny_module(), path), (InstantNGP.load_from_checkpoint(path), None)]:
        (result,) = trainer(tmp_path, callbacks=[PSNRLogger()]).test(tested, scene, ckpt_path=ckpt_path, verbose=False)
        scores.append(result["test/psnr"])
    assert scores[0] == scores[1] == scores[2]


def module_for_resuming() -> InstantNGP:
    torch.manual_seed(0)
    return tiny_module(lr_scheduler=functools.partial(WarmupDecay, total_steps=24))


def test_resumed_from_the_middle_of_a_run(tmp_path: Path, scene_cache: Path) -> None:
    """Weights, averages, moments, schedule, grid, ray budget: all of the checkpoint, to the bit."""
    every = ModelCheckpoint(tmp_path / "whole", every_n_train_steps=7, save_top_k=-1, save_last=True)
    fit = trainer(tmp_path, max_steps=24, enable_checkpointing=True, callbacks=[every])
    fit.fit(module_for_resuming(), tiny_scene(scene_cache))
    fit.save_checkpoint(tmp_path / "whole.ckpt")
    assert type(fit.strategy.checkpoint_io) is AtomicCheckpointIO
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == ["epoch=0-step=14.ckpt", "epoch=0-step=21.ckpt", "epoch=0-step=7.ckpt", "last.ckpt"]

    whole = read(tmp_path / "whole.ckpt")
    for step in (7, 14, 21):
        path = tmp_path / "whole" / f"epoch=0-step={step}.ckpt"
        fresh = InstantNGP.load_from_checkpoint(path) if step == 14 else module_for_resuming()
        every = ModelCheckpoint(tmp_path / "again", every_n_train_steps=7)
        again = trainer(tmp_path, max_steps=24, enable_checkpointing=True, callbacks=[every])
        again.fit(fresh, tiny_scene(scene_cache), ckpt_path=path)
        again.save_checkpoint(tmp_path / "again.ckpt")
        resumed = read(tmp_path / "again.ckpt")
        for key in ("state_dict", "raw_weights", "optimizer_states", "lr_schedulers", "global_step", "hyper_parameters"):
            same(whole[key], resumed[key], f"{step}: {key}")


def test_a_checkpoint_io_of_ones_own_is_kept(tmp_path: Path, scene_cache: Path) -> None:
    class Mine(TorchCheckpointIO):
        pass

    fit = trainer(tmp_path, max_steps=1, plugins=[Mine()])
    with warnings.catch_warnings():
        fit.fit(tiny_module(), tiny_scene(scene_cache))
    assert type(fit.strategy.checkpoint_io) is Mine


# -- what a stranger wrote ---------------------------------------------------------------------------------------------


def hyper(**arguments: Any) -> dict[str, Any]:
    return {"hyper_parameters": {"class_path": "lightning_nerf.modules.instant_ngp.InstantNGP", "init_args": arguments}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hyper_parameters": None}, "hyper_parameters: expected a dict, got NoneType"),
        ({"hyper_parameters": [1]}, "hyper_parameters: expected a dict, got list"),
        ({"hyper_parameters": {"class_path": "..a.b", "init_args": {}}}, "class_path: .*'..a.b', which is not to be found"),
        ({"hyper_parameters": {"class_path": "a.b", "init_args": None}}, "class_path: .*'a.b', which is not to be found"),
        ({"hyper_parameters": {"_instantiator": "os.system"}}, "function that is to make the module; none is called"),
        ({"hyper_parameters": {"field": 3}}, "NeRFModule: cannot be made of the checkpoint"),
        (hyper(samples_per_step="many"), "samples_per_step: expected an integer"),
        (hyper(field={"class_path": "lightning_nerf.fields.InstantNGPField", "init_args": None}), r"field.init_args: "),
        (hyper(optimizer={"class_path": "os._exit"}), "optimizer: .*functions are never taken from one; pass optimizer="),
        (hyper(lr_scheduler={"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": {
            "class_path": "os._exit"}}}), r"lr_scheduler\.lr_lambda: .*functions are never taken"),
        ({"state_dict": None}, "state_dict: expected a dict, got NoneType"),
        ({"state_dict": {}}, "of another architecture"),
        ({"nerf_parts": 3}, "nerf_parts: expected a dict"),
        ({"nerf_parts": {"field": {"class_path": ""}}}, "field: came '', expected lightning_nerf.fields"),
        ({"nerf_parts": {"field": {"class_path": " \n"}}}, r"field: came ' \\n', expected lightning_nerf.fields"),
        ({"nerf_parts": {"field": {"class_path": "\0"}}}, r"field: came '\\x00', expected lightning_nerf.fields"),
    ],
)  # fmt: skip
def test_a_malformed_checkpoint_is_an_error_of_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    module = tiny_module()
    content: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    torch.save({**content, **change}, tmp_path / "it.ckpt")
    with pytest.raises(BadArgument, match=says):
        NeRFModule.load_from_checkpoint(tmp_path / "it.ckpt")


@pytest.mark.parametrize(
    "box",
    [
        [[0.0, 0, 0], [1, float("nan"), 1]],
        [[0.0, 0, 0], [1, float("inf"), 1]],
        [[0.0, 0, 0], [1, 0, 1]],
    ],
)
def test_a_box_that_is_none_is_refused(box: list[list[float]], tmp_path: Path) -> None:
    module = tiny_module()
    weights = {**module.state_dict(), "field.aabb": torch.tensor(box)}
    torch.save({"state_dict": weights, "hyper_parameters": dict(module.hparams)}, tmp_path / "it.ckpt")
    with pytest.raises(BadArgument, match=r"field\.aabb: expected a minimum corner"):
        InstantNGP.load_from_checkpoint(tmp_path / "it.ckpt")


def test_a_fresh_process_imports_no_package_unasked(tmp_path: Path) -> None:
    """Modules that a checkpoint names are not imported to see what they hold; a command of a shell knows none of them."""
    package = tmp_path / "strange_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(
        "from pathlib import Path; from lightning_nerf import InstantNGP\n"
        "Path('ran').touch()\nclass Mine(InstantNGP): ...\n"
    )
    module = tiny_module()
    spec = {**module.hparams, "class_path": "strange_package.module.Mine"}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": spec}, tmp_path / "it.ckpt")
    script = """
        from pathlib import Path
        from lightning_nerf import NeRFModule
        from lightning_nerf.checks import BadArgument
        try:
            NeRFModule.load_from_checkpoint("it.ckpt")
        except BadArgument as error:
            assert "--allow strange_package (in Python allow=['strange_package'])" in str(error), error
        else:
            raise AssertionError
        assert not Path("ran").exists()
        print(type(NeRFModule.load_from_checkpoint("it.ckpt", allow=["strange_package"])).__name__)
    """
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "Mine\n"), done.stderr
