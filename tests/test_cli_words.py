from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_nerf import __version__, cli_words
from lightning_nerf.__main__ import COMMANDS, main
from lightning_nerf.cli_words import TRAINER_COMMANDS, Typed, checkpoint_in, configs_first, one_of, read
from lightning_nerf.render.main import parse as parse_render

RECIPE = "synthetic/instant_ngp"
RECIPES = (
    "blender/instant_ngp, blender/vanilla_hierarchical, blender/vanilla_occgrid, captures/unbounded_occ, "
    "captures/unbounded_prop, dnerf/fast, dnerf/tnerf, llff/instant_ngp, mipnerf360/unbounded, synthetic/dynamic, "
    "synthetic/instant_ngp, synthetic/unbounded, synthetic/vanilla"
)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command line is refused."""
    with pytest.raises(SystemExit) as caught:
        read(words)
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("lightning-nerf: ")
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("fit --trainer.max_steps=20 -c A", "fit -c A --trainer.max_steps=20"),
        ("fit --data.root X -c A", "fit -c A --data.root X"),
        ("-c A fit --data.root X", "fit -c A --data.root X"),
        ("--trainer.max_steps 20 fit -c A", "fit -c A --trainer.max_steps 20"),
        ("fit -c A --x=1 --config B --y=2 --config=C", "fit -c A --config B --config=C --x=1 --y=2"),
        ("fit --x=1 -cA", "fit -c A --x=1"),
        ("-c fit test", "test -c fit"),  # a recipe may be called as a command is
        ("fit --x=1 -c -c", "fit -c -c --x=1"),
        ("fit -c A --trainer.callbacks+=B", "fit -c A --trainer.callbacks+=B"),
        ("fit --help", "fit --help"),
        ("fit --model M --data.root=X", "fit --model M --data.root=X"),
        ("fit --model=M --data.root=X", "fit --model=M --data.root=X"),
    ],
)
def test_the_command_comes_first_then_configurations(typed: str, expected: str) -> None:
    assert read(typed.split()) == Typed(expected.split(), [], False)


def test_arguments_of_a_script_come_behind_configurations() -> None:
    assert configs_first(["--data.root", "X", "-c", "A"]) == ["-c", "A", "--data.root", "X"]


def test_allowed_packages_are_only_those_that_were_typed() -> None:
    assert read(["fit", "--allow", "a", "-c", "A", "--allow=b"]) == Typed(["fit", "-c", "A"], ["a", "b"], False)
    assert read(["fit", "-c", "A"]).allow == []


def test_resume_is_of_fit_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(["fit", "--resume", "-c", "A"]) == Typed(["fit", "-c", "A"], [], True)
    assert "--resume: expected the command fit, got test" in refused(capsys, "test", "-c", "A", "--resume")
    assert "leave out --resume or --ckpt_path" in refused(capsys, "fit", "-c", "A", "--resume", "--ckpt_path=last")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "expected a command (fit, validate, test, predict, process, render, doctor or bench)"),
        ("-c A", "expected a command"),
        ("fit", f"no recipe is named ({RECIPES}); for example: lightning-nerf fit -c {RECIPE}\n"),
        (
            "fit -c overlays/small",
            "overlays/small goes after a recipe, as in: lightning-nerf fit -c blender/instant_ngp -c ",
        ),
        ("fit --trainer.max_steps=3", f"lightning-nerf fit -c {RECIPE}\n"),
        ("fit --data.root X", "lightning-nerf fit -c blender/instant_ngp --data.root X\n"),
        ("test --data.root=X", "lightning-nerf test -c blender/instant_ngp --data.root X\n"),
        ("fit --data ./X", "lightning-nerf fit -c blender/instant_ngp --data.root=./X\n"),
        ("fit -c A --data=.", "lightning-nerf fit -c blender/instant_ngp --data.root=.\n"),
        (f"fit --data {5000 * 'a'}", f"lightning-nerf fit -c {RECIPE}\n"),
        ("fit -c A --allow", "--allow: expected a value"),
        ("test -c A --ckpt_path a.ckpt b.ckpt", "--ckpt_path: no file a.ckpt; expected one checkpoint or a run's folder"),
    ],
)
def test_what_is_missing_is_said_in_one_line(typed: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *typed.split())


@pytest.mark.parametrize("checkpoint", ["run 1", "run 1/checkpoints/a.ckpt"])
def test_a_checkpoint_without_a_recipe_names_its_runs_configuration(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("run 1/checkpoints/a.ckpt"), 1)
    Path("run 1/config.yaml").touch()
    said = refused(capsys, "test", "--ckpt_path", checkpoint)
    assert f"for example: lightning-nerf test -c 'run 1/config.yaml' --ckpt_path '{checkpoint}'\n" in said


def write(path: Path, seconds: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (seconds, seconds))
    return path


def test_of_several_checkpoints_the_newest_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = write(tmp_path / "run/checkpoints/a.ckpt", 200), write(tmp_path / "run/checkpoints/b.ckpt", 100)
    assert checkpoint_in(tmp_path / "run") == new
    assert checkpoint_in(old) == old
    for absent in (tmp_path / "absent", Path("a" * 5000)):
        assert checkpoint_in(absent) == absent
    assert one_of("--ckpt", [str(old)]) == str(old)
    assert capsys.readouterr().err == ""
    expected = ["fit", "-c", "A", "--ckpt_path", str(new), "--x=1"]
    assert read(["fit", "-c", "A", "--ckpt_path", str(new), str(old), "--x=1"]).words == expected
    assert capsys.readouterr().err == f"lightning-nerf: --ckpt_path: the newest of 2 files is {new}\n"
    with pytest.raises(SystemExit):
        checkpoint_in(write(tmp_path / "none/x.txt", 1).parent)
    assert "expected a checkpoint or a folder that holds one" in capsys.readouterr().err


def test_render_takes_a_runs_folder_and_several_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = write(tmp_path / "run/checkpoints/a.ckpt", 200), write(tmp_path / "run/checkpoints/b.ckpt", 100)
    for words in (
        [str(tmp_path / "run")], [str(old), str(new)], ["--ckpt", str(old), str(new)], [f"--ckpt={tmp_path / 'run'}"],
    ):  # fmt: skip
        options, rest = parse_render([*words, "--path", "orbit", "--data.root", "x"])
        assert options.ckpt == new
        assert options.path == "orbit"
        assert rest == ["--data.root", "x"]
    assert parse_render([str(old)])[0].ckpt == old
    assert parse_render(["--path", "orbit"])[0].ckpt is None
    with pytest.raises(SystemExit):
        parse_render([str(old), "--ckpt", str(new)])
    assert "the checkpoint is given twice" in capsys.readouterr().err


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *words])
    main()


def test_help_names_every_command_and_a_first_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_main(monkeypatch, "--help")
    text = capsys.readouterr().out
    for command in (*TRAINER_COMMANDS, *COMMANDS):
        assert f"\n  {command} " in text
    assert f"lightning-nerf fit -c {RECIPE}" in text
    assert max(map(len, text.splitlines())) < 110


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_main(monkeypatch, "--version")
    assert capsys.readouterr().out == f"lightning-nerf {__version__}\n"


def test_a_mistyped_command_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, "rendr")
    assert (
        capsys.readouterr().err == "lightning-nerf: no command 'rendr'; did you mean 'render'?; see lightning-nerf --help\n"
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_quick(option: str) -> None:
    """They load neither torch nor Lightning, which take seconds."""
    code = "import sys; from lightning_nerf.__main__ import main; main(); print({*sys.modules} & {'torch', 'lightning'})"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert time.perf_counter() - started < 5  # 0.03 s on an idle core


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_nerf.render.main.main", interrupted)
    with pytest.raises(SystemExit) as caught:
        run_main(monkeypatch, "render", "a.ckpt")
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nlightning-nerf render: interrupted\n"


def test_nearest_needs_some_likeness() -> None:
    assert cli_words.nearest("widht", ["width", "depth"]) == "; did you mean 'width'?"
    assert cli_words.nearest("zzz", ["width"]) == ""
