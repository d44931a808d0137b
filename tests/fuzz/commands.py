"""The real command on a file of a stranger: in a folder of its own, watched, with limits on time and memory."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import imageio.v3 as iio
import torch
import yaml

from lightning_nerf.cameras.poses import spiral_poses
from lightning_nerf.data.analytic import AnalyticScene
from lightning_nerf.recipes import resolve_recipe
from tests.fuzz.camera_files import camera_file
from tests.fuzz.camera_files import mutated as mutated_cameras
from tests.fuzz.checkpoints import spoilt
from tests.fuzz.test_recipes import mutated as mutated_recipe
from tests.fuzz.watch import HOSTILE_MODULE

SECONDS = 10  # of a core, beyond what the same command takes with sound files, after which it hangs
WAITS = 120  # of the wall clock, after which it waits for something
MEMORY = 12 * 2**30
KINDS = ("checkpoint", "recipe", "camera file")
ROOT = Path(__file__).parents[2]
ANGLE, SIDE = 0.7, 16
START = """import resource
from pathlib import Path
from tests.fuzz.watch import report_to
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
report_to(Path({log!r}), Path({free!r}))
"""  # what Python runs first in the command's process


class Answer(NamedTuple):
    """How a command ended."""

    words: list[str]
    code: int
    text: str  # of both streams
    seconds: float  # of a core
    done: list[str]  # what the watch has seen


class Place:
    """A folder with a sound scene, recipe and checkpoint, and beside it a stranger's folder that must stay as it is."""

    usual: frozenset[str] = frozenset()  # what the watch sees with sound files

    def __init__(self, folder: Path) -> None:
        self.folder, self.inside, self.victim = folder, folder / "a" / "b", folder / "victim"
        self.home, self.sound = folder / "a" / "home", folder / "sound"
        for path in (self.inside, self.victim, self.home, self.sound / "scene", folder / "watch"):
            path.mkdir(parents=True)
        (self.victim / "thesis.tex").write_text("years")
        write_scene(self.sound / "scene")
        (self.sound / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(), sort_keys=False))
        start = START.format(memory=MEMORY, log=str(folder / "watch.log"), free=str(folder / "a"))
        (folder / "watch" / "sitecustomize.py").write_text(start)
        made = self.run(["fit", "-c", "recipe.yaml"], {}, keep="fit")
        assert made.code == 0, made.text
        self.normal, self.usual = made.seconds, frozenset(made.done)  # libraries look for fonts and make cache folders
        (checkpoint,) = (self.inside / "fit").glob("runs/**/*.ckpt")
        self.checkpoint = torch.load(checkpoint, weights_only=True)
        shutil.copy(checkpoint, self.sound / "sound.ckpt")

    def run(self, words: list[str], changed: dict[str, bytes], keep: str = "") -> Answer:
        """Run one command in a fresh folder with the sound files, some of them changed; fail where it removes any."""
        work = self.inside / (keep or "work")
        shutil.copytree(self.sound, work)
        for name, content in changed.items():
            (work / name).write_bytes(content)
        (work / HOSTILE_MODULE).with_suffix(".py").write_text(f"raise SystemExit('{HOSTILE_MODULE} ran')")
        before, log = contents(work), self.folder / "watch.log"
        log.write_text("")
        code, text, seconds = command(words, work, [self.folder / "watch", ROOT], self.home)
        after = contents(work)
        done = [line for line in log.read_text().splitlines() if line not in self.usual]
        done += [f"changed or removed {name}" for name, content in before.items() if after.get(name) != content]
        if contents(self.victim) != {"thesis.tex": b"years"}:
            done.append("changed a stranger's folder")
            shutil.rmtree(self.victim, ignore_errors=True)
            self.victim.mkdir()
            (self.victim / "thesis.tex").write_text("years")
        if not keep:
            shutil.rmtree(work)
        return Answer(words, code, text, seconds, done)

    def attempt(self, seed: int) -> tuple[Answer, list[str]]:
        """A command on one mutated file, the kinds in turn, and what is wrong with the answer."""
        draw = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        if kind == "checkpoint":
            torch.save(spoilt(self.checkpoint, seed, self.victim), self.folder / "spoilt.ckpt")
            changed = {"spoilt.ckpt": (self.folder / "spoilt.ckpt").read_bytes()}
            words = [draw.choice(("render", "render", "fit", "fit", "test", "validate", "predict"))]
            words += ["spoilt.ckpt"] if words == ["render"] else ["-c", "recipe.yaml", "--ckpt_path=spoilt.ckpt"]
            words += ["--trainer.max_steps=4"] if words[0] == "fit" else []
        elif kind == "recipe":
            changed = {"recipe.yaml": mutated_recipe((self.sound / "recipe.yaml").read_bytes(), draw)}
            words = [draw.choice(("fit", "fit", "fit", "test", "validate", "predict")), "-c", "recipe.yaml"]
            words += ["--trainer.max_steps=3"] if words[0] == "fit" else ["--ckpt_path=sound.ckpt"]
        else:
            name = f"scene/transforms_{draw.choice(('train', 'train', 'val', 'test'))}.json"
            sound = camera_file(draw) if draw.random() < 0.5 else json.loads((self.sound / name).read_bytes())
            changed = {name: mutated_cameras(sound, draw)}
            words = [draw.choice(("fit", "fit", "test", "render"))]
            words += ["sound.ckpt", "--path=train"] if words == ["render"] else ["-c", "recipe.yaml"]
            words += ["--ckpt_path=sound.ckpt"] if words[0] == "test" else []
        answer = self.run(words, changed)
        return answer, faults(answer, self.normal)


def faults(answer: Answer, normal: float) -> list[str]:
    """Did it do anything else than its work, end in a traceback, or say too much?"""
    found = list(answer.done)
    if answer.code not in (0, 1, 2):
        found.append(f"exit code {answer.code}")
    if "Traceback" in answer.text:
        found.append(f"a traceback: {answer.text.strip().splitlines()[-1]}")
    if HOSTILE_MODULE + " ran" in answer.text:
        found.append("it imported a module of the current folder")
    if answer.seconds > normal + SECONDS:
        found.append(f"{answer.seconds:.1f} s")
    if answer.code and not any(line.startswith("lightning-nerf") for line in answer.text.splitlines()):
        found.append("it doesn't say why it ended")
    if answer.code and (len(answer.text) > 8000 or answer.text.count("\n") > 40):
        found.append(f"{len(answer.text)} characters in {answer.text.count(chr(10))} lines")
    return found


def command(words: list[str], folder: Path, paths: list[Path], home: Path) -> tuple[int, str, float]:
    """Exit code, output and seconds of a core of ``python -m lightning_nerf``."""
    (home / "tmp").mkdir(exist_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HOME": str(home), "TMPDIR": str(home / "tmp"),
        "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    line = [sys.executable, "-m", "lightning_nerf", *words]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(
        line, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            text = process.communicate(timeout=WAITS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            text = process.communicate()[0]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return process.returncode, text.decode(errors="replace"), seconds


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for what runs leave."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "runs" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def write_scene(folder: Path) -> None:
    """Six views to train on, one to validate on and two to test on, of 16 pixels a side."""
    scene = AnalyticScene(0)
    for split, n_views, turn in (("train", 6, 0.0), ("val", 1, 0.3), ("test", 2, 0.5)):
        frames = []
        for i, c2w in enumerate(spiral_poses(n_views, 4.0, (-10.0, 70.0), turn).numpy()):
            iio.imwrite(folder / f"{split}_{i}.png", scene.render(c2w, ANGLE, SIDE))
            frames.append({"file_path": f"{split}_{i}", "transform_matrix": [*c2w.tolist(), [0.0, 0.0, 0.0, 1.0]]})
        text = json.dumps({"camera_angle_x": ANGLE, "frames": frames})
        (folder / f"transforms_{split}.json").write_text(text)
    for i, c2w in enumerate(spiral_poses(4, 4.0, (-10.0, 60.0)).numpy()):  # those that tests/fuzz/camera_files.py names
        iio.imwrite(folder / f"r_{i}.png", scene.render(c2w, ANGLE, SIDE)[:6, :8])


def small_recipe() -> dict[str, Any]:
    """``synthetic/instant_ngp`` on the small scene, with few steps of few samples."""
    recipe = yaml.safe_load(Path(resolve_recipe("synthetic/instant_ngp")).read_text())
    trainer, model = recipe["trainer"], recipe["model"]["init_args"]
    trainer |= {"accelerator": "cpu", "max_steps": 2, "log_every_n_steps": 1}
    trainer["callbacks"] = [c for c in trainer["callbacks"] if not c["class_path"].endswith("Turntable")]
    model |= {"samples_per_step": 1024, "max_rays": 256, "initial_rays": 64}
    model["field"]["init_args"] |= {"n_levels": 4, "log2_table_size": 10, "max_resolution": 64, "width": 16}
    model["estimator"]["init_args"] |= {"resolution": 16, "step_size": 0.05}
    return recipe | {"data": {"class_path": "lightning_nerf.data.BlenderData", "init_args": {"root": "scene"}}}
