"""Commands in the documentation run, page by page, on scenes and models small enough for a CPU; their flags exist."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_nerf import __main__ as command_line
from lightning_nerf.data import SyntheticDynamicScene, SyntheticScene
from lightning_nerf.ops import library
from tests.pages import PAGES, blocks, read
from tests.test_docs_recipes import described

OURS = re.compile(r"^(?:lightning-nerf|python -m lightning_nerf) ")
TINY_SCENE: dict[str, Any] = {"resolution": 24, "n_train": 5, "n_test": 2, "n_val": 1}
TINY_MODEL = {"samples_per_step": 1024, "max_rays": 256, "initial_rays": 32}
TINY_FIELDS = {
    "instant_ngp": {"log2_table_size": 10},
    "dynamic": {"log2_table_size": 10, "time_log2_table_size": 8},
    "vanilla": {"width": 16, "hidden_layers": 2, "skip": 0, "view_width": 8},
}
TINY_ESTIMATORS = {
    "hierarchical": {"n_coarse": 8, "n_fine": 8},
    "unbounded": {"n_fine": 8},
    "grid": {"resolution": 16, "step_size": 0.05},
}
STEPS = 6
FLAG = re.compile(r"(?<![\w-])--[A-Za-z][\w.-]*")


def tiny_model(recipe: str) -> dict[str, Any]:
    """Arguments of the module of a recipe that make it small."""
    field = TINY_FIELDS[next((kind for kind in TINY_FIELDS if kind in recipe), "instant_ngp")]
    estimator = TINY_ESTIMATORS[next((kind for kind in TINY_ESTIMATORS if kind in recipe), "grid")]
    parts = {"field": field, "estimator": estimator}
    return TINY_MODEL | {f"{part}.init_args.{k}": v for part, values in parts.items() for k, v in values.items()}


def smaller(words: list[str]) -> list[str]:
    """A command's arguments with those behind them that make it small; of two values the last counts."""
    if words == ["--help"]:
        return words
    command, end = words[0], []
    if command != "doctor" and words[:2] not in (["bench", "ops"], ["bench", "perceptron"]):
        end += ["--trainer.accelerator=cpu"]
    if "-c" in words:
        recipe = words[words.index("-c") + 1]
        end += [f"--model.init_args.{name}={value}" for name, value in tiny_model(recipe).items()]
    if "--data" in words:  # of another class, whose pictures have the size that they have
        end += [f"--data.{name}={value}" for name, value in TINY_SCENE.items() if name != "resolution"]
    elif any(word.startswith("synthetic/") for word in words):
        end += [f"--data.{name}={value}" for name, value in TINY_SCENE.items()]
    if command == "render":
        end += ["--n_frames=2", "--resolution", "32", "18"]
    elif command == "fit":
        end += [f"--trainer.max_steps={STEPS + STEPS * bool({'--ckpt_path', '--resume'} & {*words})}"]
    elif words[:2] == ["bench", "ops"]:
        end += ["--device=cpu", "--rays=64", "--points=64", "--repeats=1"]
    elif words[:2] == ["bench", "perceptron"]:
        end += ["--device=cpu", "--rows=4", "--repeats=1"]
    elif words[:2] == ["bench", "step"]:
        end += ["--from=2", "--to=4", "--trainer.max_steps=40", *(["--values=512"] if "--sweep" in words else [])]
    elif words[:2] == ["bench", "quality"]:
        end += [f"--trainer.max_steps={STEPS}"]
    elif words[:2] == ["bench", "frame"]:
        end += ["--repeats=1", *([f"--steps={STEPS}"] if "--steps" in words else [])]
    return [*words, *end]


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one line as a shell would, in this process; an error where it fails."""
    if assigned := re.fullmatch(r"(\w+)=(\S+)", line):
        monkeypatch.setenv(*assigned.groups())
        return
    assert OURS.match(line), f"{line!r}: no command of this project; put '<!-- not run: why -->' above its block"
    words = shlex.split(OURS.sub("", line), comments=True)
    words = [path for word in words for path in sorted(glob.glob(os.path.expandvars(word))) or [word]]
    output = None
    if ">" in words:
        *words, _, output = words
    printed = main(smaller(words), monkeypatch)
    if output is not None:
        Path(output).write_text(printed)


def main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``lightning-nerf ARGUMENTS`` prints; an error where it exits with another code than 0."""
    monkeypatch.setattr(sys, "argv", ["lightning-nerf", *arguments])
    code = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            command_line.main()
        except SystemExit as end:
            code = end.code
    if "wandb" in sys.modules:  # which otherwise ends its run with the process
        sys.modules["wandb"].finish()
    assert not code, f"lightning-nerf {' '.join(arguments)}\n{printed.getvalue()}\n{code}"
    return printed.getvalue()


def lines(text: str) -> list[str]:
    """A block's commands, without comments."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.slow
@pytest.mark.skipif(not library.loaded, reason="no compiled library")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a test run has a folder of its own
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # where a W&B run goes on
@pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no last")  # a first start
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.is_run for block in blocks(page, "bash"))])
def test_commands_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene_cache: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(scene_cache))
    monkeypatch.setenv("WANDB_MODE", "offline")
    scene = (SyntheticDynamicScene if "dynamic" in page else SyntheticScene)(**TINY_SCENE)
    scene.prepare_data()
    folder = scene.source.root  # type: ignore[attr-defined]
    for place in sorted(set(re.findall(r"path/to/\w+", read(page)))):
        shutil.copytree(folder, place)
    for block in filter(lambda block: block.is_run, blocks(page, "yaml", "json")):
        path = Path(block.comment.removeprefix("file: "))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    for block in filter(lambda block: block.is_run, blocks(page, "bash")):
        for line in lines(block.text):
            run(line, monkeypatch)


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each command, as its ``--help`` names them."""
    benchmarks = [f"bench {name}" for name in ("ops", "perceptron", "step", "quality", "frame")]
    commands = ["fit", "test", "process", "render", "doctor", *benchmarks]
    with pytest.MonkeyPatch.context() as patch:
        return {name: set(FLAG.findall(main([*name.split(), "--help"], patch))) for name in commands}


@pytest.mark.parametrize("page", PAGES)
def test_flags_exist(page: str, flags: dict[str, set[str]]) -> None:
    keys = {key for rows in described().values() for key in rows}
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE))
    spans += [line for block in blocks(page, "bash") for line in lines(block.text)]
    for span in spans:
        if not OURS.match(span) and not span.startswith("--"):
            continue  # another program's
        command = next((name for name in flags if OURS.sub("", span).startswith(f"{name} ")), None)
        known = set().union(*flags.values()) if command is None else flags[command]
        if command not in (None, "process", "doctor", "bench ops", "bench perceptron"):
            known = known | flags["fit"]
        for flag in FLAG.findall(span):
            if flag.endswith(".help"):  # of LightningCLI, for every class
                continue
            if flag.startswith(("--model.", "--data.")):
                assert flag.rpartition(".")[2] in keys, f"{span}: docs/recipes.md has no key for {flag}"
            else:  # what follows a second dot are arguments of whichever logger or callback is meant
                assert ".".join(flag.split(".")[:2]) in known, f"{span}: no flag {flag}"
