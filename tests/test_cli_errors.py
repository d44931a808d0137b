from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Union

import pytest
import torch

from lightning_nerf.callbacks import EMAWeights
from lightning_nerf.checks import BadArgument, check_integer
from lightning_nerf.cli import build, main
from lightning_nerf.cli_errors import BriefParser, brief, refusals_in_a_line
from lightning_nerf.cli_trainer import refused_settings
from lightning_nerf.data import BlenderData
from lightning_nerf.data.sources import BlenderSource
from lightning_nerf.ops.random import random_uniform
from tests.data.test_blender import write_split


def fit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> SystemExit:
    """``lightning-nerf fit`` as a user types it; it must end the program."""
    command = ["lightning-nerf", "fit", "-c", "blender/instant_ngp", "--trainer.accelerator=cpu", *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.field.widht=3", "model.field: lightning_nerf.fields.InstantNGPField has no argument 'widht'; did you mean"
         " 'width'?"),
        ("--model.samples_per_stp=3", "model: lightning_nerf.modules.InstantNGP has no argument 'samples_per_stp'; did you"
         " mean 'samples_per_step'?"),
        ("--trainer.max_stepz=3", "no key 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"),
        ("--model.field=[1]", "model.field: expected a class, as class_path and init_args"),
        ("--model.field=InstantNGPFeild", "model.field: no class 'InstantNGPFeild'; did you mean 'InstantNGPField'?"),
        ("--data=lightning_nref.data.BlenderData", "data: class_path 'lightning_nref.data.BlenderData': No module named"
         " 'lightning_nref'; did you mean 'lightning_nerf'?"),
        ("--trainer.max_step=3", "no key 'trainer.max_step'; did you mean 'trainer.max_steps'?"),  # no abbreviation
        ("--data.n_tes=3", "data: lightning_nerf.data.BlenderData has no argument 'n_tes'; did you mean 'n_test'?"),
        ("--data.downscale=two", "data.downscale: Expected a <class 'int'>. Got value: two"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_one_line(
    argument: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(monkeypatch, argument).code == 2
    assert capsys.readouterr().err == f"lightning-nerf: {message}\n"


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("synthetic/vanilla", "model.field: lightning_nerf.fields.VanillaField has no argument 'n_features'"),
        ("synthetic/instant_ngp", "data: lightning_nerf.data.SyntheticScene has no argument 'downscale'"),
    ],
)
def test_an_overlay_of_another_recipe_is_named(
    recipe: str, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-nerf", "fit", "-c", recipe, "-c", "overlays/small"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said == f"lightning-nerf: {reason}; overlays/small, which sets it, goes after blender/instant_ngp\n"


@pytest.mark.parametrize(
    ("recipe", "instead"),
    [
        ("dnerf/fast", "-c synthetic/dynamic --data lightning_nerf.DNeRFData"),
        ("dnerf/tnerf", "-c synthetic/dynamic --data lightning_nerf.DNeRFData"),
        ("blender/vanilla_occgrid", "-c synthetic/vanilla --data lightning_nerf.BlenderData --data.downscale=8"),
        ("blender/vanilla_hierarchical", "-c synthetic/vanilla --data lightning_nerf.BlenderData --data.downscale=8"),
    ],
)
@pytest.mark.parametrize("root", [["--data.root", "my/scene"], ["--data.root=my/scene"], []])
def test_an_overlay_that_does_not_fit_names_the_command_for_a_cpu(
    recipe: str, instead: str, root: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-nerf", "fit", "-c", recipe, "-c", "overlays/small", *root])
    with pytest.raises(SystemExit):
        main()
    folder = "my/scene" if root else "path/to/scene"
    said = capsys.readouterr().err
    assert said.endswith(f"; on a CPU, in place of {recipe}: lightning-nerf fit {instead} --data.root {folder}\n")
    build([*instead.split(), "--data.root", folder, "--trainer.accelerator=cpu", "--trainer.logger=false"])


@pytest.mark.parametrize("key", ["model.init_args.estimator.init_args.step_size", "model.estimator.step_size"])
def test_a_null_of_a_part_may_be_typed(key: str) -> None:
    words = ["-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    estimator = build([*words, "--model.estimator.step_size=0.5", f"--{key}=null"]).config.model.init_args.estimator
    assert estimator.init_args.step_size is None


@pytest.mark.parametrize("argument", ["--verbose=true", "-c", "--verbos=true"])
def test_no_key_of_another_command_is_suggested(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("verbose: true\n")
    assert fit(monkeypatch, argument, *([str(tmp_path / "config.yaml")] if argument == "-c" else [])).code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "verbos" in message
    assert "did you mean 'verbose'" not in message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.root=???", "root: required, give --data.root=path/to/scene"),
        ("--data.root=nowhere", "root: no folder nowhere"),
        ("--data.near=-1", r"near: expected a number in [0, inf), got -1.0"),
        ("--model.estimator.step_size=0", "step_size: expected a number in (0, inf), got 0.0"),  # wrapped by jsonargparse
        ("--trainer.devices=0", "`Trainer(devices='0')` value is not a valid input"),
        ("--trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches: expected an integer >= 1, got 0"),
        ("--trainer.max_steps=-2", "trainer.max_steps: expected an integer >= -1, got -2"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: expected an integer >= 1, got 0"),
        ("--trainer.log_every_n_steps=-1", "trainer.log_every_n_steps: expected an integer >= 0, got -1"),
        (f"--trainer.devices={2**63}", "trainer: Lightning cannot use these settings (OverflowError: "),
        ("--trainer.barebones=true", "trainer: Lightning cannot use these settings (ValueError: `Trainer(barebones=True, "),
        ("--trainer.max_time={x: 1}", "trainer: Lightning cannot use these settings (TypeError: 'x' is an invalid"),
        ("--seed_everything=-1", "seed_everything: expected an integer from 0 to 4294967295, got -1"),
        ("--seed_everything=4294967296", "seed_everything: expected an integer from 0 to 4294967295, got 4294967296"),
        ("--ckpt_path=nowhere.ckpt", "ckpt_path: no file nowhere.ckpt"),
        (f"--ckpt_path={5000 * 'a'}", f"ckpt_path: no file {5000 * 'a'}"),
        (f"--data.root={5000 * 'a'}", f"root: no folder {5000 * 'a'}"),
        (f"--trainer.logger.save_dir={5000 * 'a'}", "nothing can be written there, File name too long"),
        ("--trainer.logger.save_dir=/dev/null/x", "nothing can be written there, Not a directory (/dev/null): /dev/null/x"),
    ],
)
def test_a_wrong_value_is_one_line(argument: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = fit(monkeypatch, "--data.root=.", "--trainer.logger.save_dir=.", argument).code
    assert isinstance(text, str)  # hence exit code 1
    assert text.startswith("lightning-nerf: ")
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize("key", ["max_steps", "accumulate_grad_batches"])
def test_a_recipes_null_is_one_line(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nulls.yaml").write_text(f"trainer: {{{key}: null}}\n")
    text = str(fit(monkeypatch, "-c", str(tmp_path / "nulls.yaml")).code)
    assert text.startswith(f"lightning-nerf: trainer.{key}: expected an integer >= ")
    assert text.endswith(", got None")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ("overfit_batches: null", "trainer.overfit_batches: expected a number of batches, 0 for all, got None"),
        (
            "callbacks: [lightning_nerf.callbacks.EMAWeights, lightning_nerf.callbacks.EMAWeights]",
            "trainer.callbacks: expected one EMAWeights, got 2",
        ),
    ],
)
def test_what_lightning_would_answer_with_a_traceback_is_one_line(
    trainer: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.yaml").write_text(f"trainer: {{{trainer}}}\n")
    assert fit(monkeypatch, "-c", "more.yaml", "--data.root=.").code == f"lightning-nerf: {message}"


def test_a_callback_that_a_script_adds_to_a_recipes_own_is_named() -> None:
    arguments = ["-c", "synthetic/instant_ngp", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    with pytest.raises(BadArgument, match=r"^trainer\.callbacks: expected one EMAWeights, got 2$"):
        build(arguments, callbacks=[EMAWeights()])


def test_a_fault_of_a_part_in_the_trainers_constructor_keeps_its_traceback() -> None:
    with pytest.raises(TypeError), refused_settings():
        operation(None)  # type: ignore[call-arg]


@pytest.mark.parametrize("logger", ["CSVLogger", "WandbLogger"])
def test_a_cut_checkpoint_is_one_line(logger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    write_split(tmp_path)
    torch.save({"state_dict": {}}, "cut.ckpt")
    Path("cut.ckpt").write_bytes(Path("cut.ckpt").read_bytes()[:-50])
    arguments = ("--ckpt_path=cut.ckpt", f"--trainer.logger=lightning.pytorch.loggers.{logger}")
    text = str(fit(monkeypatch, "--data.root=.", *arguments, "--trainer.logger.save_dir=.").code)
    assert text.startswith("lightning-nerf: cut.ckpt cannot be read as a checkpoint (")
    assert "\n" not in text


def operation() -> None:
    [].index(3)  # type: ignore[arg-type]


def of_a_user() -> None:
    raise ValueError("of a class that is not ours")


def of_an_op() -> None:
    random_uniform(None, 0, 1, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bug", [operation, of_a_user, of_an_op, lambda: {}["key"]])
def test_a_bug_keeps_its_traceback(bug: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlenderSource, "read", lambda self, split: bug())
    with pytest.raises((ValueError, TypeError, KeyError)), refusals_in_a_line():
        BlenderData(tmp_path).setup("fit")


def test_a_check_that_ours_called_is_ours() -> None:
    with pytest.raises(SystemExit, match=r"^x: n_train: expected an integer >= 1, got 0$"), refusals_in_a_line("x"):
        BlenderData(".", n_train=0)
    with pytest.raises(SystemExit, match=r"^x: n: expected an integer >= 1, got 0$"), refusals_in_a_line("x"):
        check_integer("n", 0, 1)  # a part of the user's own may check its arguments in the same way


def test_what_is_not_understood_is_shown_whole() -> None:
    assert brief("something new") == "something new"
    assert brief("Errors:") == "Errors:"


@pytest.mark.parametrize(
    "reason", ["Option 'x' is not accepted", "module '' has no attribute 'x'", "No module named 'a.b.c'"]
)
def test_the_report_of_an_error_has_none(reason: str) -> None:
    """Where there is no class path, as for options before the command."""
    assert brief(f'Parser key "data":\n  {reason}').startswith("data: ")


def test_what_is_required_names_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {max_steps: 3}\n")
    monkeypatch.setattr("sys.argv", ["lightning-nerf", "fit", "-c", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "lightning-nerf: required, but given by no configuration and no argument: fit.data, fit.model; "
        "-c blender/instant_ngp names a recipe\n"
    )


@pytest.mark.parametrize("kind", ["BlenderData", "SyntheticScene"])
def test_every_option_of_a_class_has_its_help(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-nerf", "fit", f"--data.help={kind}"])
    with pytest.raises(SystemExit):
        main()
    options = re.split(r"\n  --data\.", capsys.readouterr().out)[1:]
    assert len(options) > 8
    for option in options:
        text = re.sub(r"^\w+ \w+(, --data\.\w+\+ \w+)?\s*", "", option)
        assert not text.startswith("(type"), option


class Described:
    """A user's class.

    Args:
        near, far: bounds of the rays.
        alone: a number.
    """

    def __init__(self, near: float = 0.0, far: float = 1.0, alone: int = 1) -> None: ...


def test_options_that_a_docstring_describes_together_have_their_help() -> None:
    parser = BriefParser()
    parser.add_class_arguments(Described, "data")
    helps = {action.dest: action.help for action in parser._actions}
    assert helps["data.near"] == helps["data.far"] == "bounds of the rays."
    assert helps["data.alone"] == "a number."


class Limited:
    def __init__(
        self,
        limit: Union[float, int, None] = None,  # noqa: UP007
        share: Union[float, int] = 0.5,  # noqa: UP007
        pair: tuple[float, int] = (0.5, 1),
    ) -> None:
        self.limit, self.share, self.pair = limit, share, pair


@pytest.mark.parametrize("given", ["file", "word"])
def test_a_whole_number_stays_one_whatever_the_order_of_its_union(given: str) -> None:
    parser = BriefParser()
    parser.add_class_arguments(Limited, "part")
    words = ["--part.limit=1", "--part.share=1.0", "--part.pair=[2, 3]"]
    written = "part: {limit: 1, share: 1.0, pair: [2, 3]}"
    config = parser.parse_args(words) if given == "word" else parser.parse_string(written)
    part = parser.instantiate_classes(config).part
    assert (repr(part.limit), repr(part.share), repr(part.pair)) == ("1", "1.0", "(2.0, 3)")
    assert parser.parse_args(["--part.limit=null"]).part.limit is None
