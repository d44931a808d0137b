"""Mutated recipes: the command line takes one, or refuses it in a few lines and within seconds; it never crashes.

``python -m tests.fuzz.test_recipes N [SEED]`` tries N recipes and prints those that crash or take long.
"""

from __future__ import annotations

import copy
import inspect
import io
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from lightning_nerf.cli import build
from lightning_nerf.cli_errors import refusals_in_a_line
from lightning_nerf.recipes import resolve_recipe
from tests.fuzz.watch import nothing_done_outside

SECONDS = 10
SHIPPED = ("synthetic/instant_ngp", "blender/instant_ngp", "overlays/cuda_graph")
WORDS = (
    "",
    "x",
    "???",
    "auto",
    "last",
    "true",
    "1e3",
    "a" * 5000,
    "\x01",
    "../..",
    "${trainer}",
    "é",
    "a.b.c",
    "nan",
    "~",
    "-1",
)
NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.5, 1e-300, 1e308, 2**31, 2**63, -(2**63), 10**40, float("inf"), float("nan"))
CLASSES = (
    "", ".", "a..b", "lightning_nerf", "lightning_nerf.", "lightning_nerf.no.such", "builtins.int", "torch.nn.Linear",
    "lightning_nerf.fields.InstantNGPField", "lightning_nerf.estimators.OccupancyGrid", "lightning_nerf.data.BlenderData",
    "lightning_nerf.callbacks.RunResults", "lightning.Trainer", "InstantNGP", "x" * 3000, "torch.float32",
)  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Anything that YAML can hold."""
    kind = draw.randrange(9 if depth < 3 else 4)
    if kind == 0:
        return draw.choice((None, True, False))
    if kind == 1:
        return draw.choice(NUMBERS)
    if kind in (2, 3):
        return draw.choice(WORDS)
    if kind == 4:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 5:
        return {draw.choice(WORDS[:9]): value(draw, depth + 1) for _ in range(draw.randrange(3))}
    if kind == 6:
        return {"class_path": draw.choice((*CLASSES, value(draw, 3)))}
    if kind == 7:
        return {"class_path": draw.choice(CLASSES), "init_args": value(draw, depth + 1)}
    nested: Any = 0
    for _ in range(draw.choice((5, 5, 30, 60))):
        nested = [nested]
    return nested


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Each container of a tree with each of its keys."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    return [place for key in keys for place in [(tree, key), *places(tree[key])]]


def mutate_tree(tree: Any, draw: random.Random) -> None:
    """Change one place of a recipe."""
    container, key = draw.choice(places(tree))
    kind = draw.randrange(6)
    if kind <= 1:
        container[key] = value(draw)
    elif kind == 2:
        del container[key]
    elif kind == 3 and isinstance(container, dict):
        name = str(key)
        at = draw.randrange(len(name) + 1)
        container[draw.choice((name[:at] + name[at + 1 :], name.upper(), f"{name}.x", f"{name}+", ""))] = container.pop(key)
    elif kind == 4:
        other, there = draw.choice(places(tree))
        container[key] = copy.deepcopy(other[there])
    else:
        tree.setdefault("trainer", {})
        if isinstance(tree["trainer"], dict):
            tree["trainer"][draw.choice(list(inspect.signature(L.Trainer.__init__).parameters)[1:])] = value(draw)


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change the file itself: a byte, a line, its end."""
    at = draw.randrange(len(content))
    kind = draw.randrange(6)
    if kind == 0:
        return content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return (
            content[:at]
            + draw.choice((b"\t", b"&a ", b"*a ", b"{", b"[", b"'", b": ", b"- ", b"!!python/name:os ", b"\n"))
            + content[at:]
        )
    lines = content.splitlines(keepends=True)
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    if kind == 3:
        lines[i], lines[j] = lines[j], lines[i]
    elif kind == 4:
        lines.insert(i, lines[j])
    else:
        del lines[i]
    return b"".join(lines)


def mutant(seed: int) -> bytes:
    """A recipe that ships, with one to three changes."""
    draw = random.Random(seed)
    return mutated(Path(resolve_recipe(draw.choice(SHIPPED))).read_bytes(), draw)


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A recipe with one to three changes, of its values or of its text."""
    if draw.random() < 0.3:
        for _ in range(draw.randint(1, 3)):
            content = mutate_bytes(content, draw) or b"x"
        return content
    tree = yaml.safe_load(content)
    for _ in range(draw.randint(1, 3)):
        if places(tree):
            mutate_tree(tree, draw)
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode()


@contextmanager
def restored() -> Iterator[None]:
    """What a Trainer's flags change for the whole process."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_anomaly_enabled(False)
        torch.backends.cudnn.benchmark = False
        os.environ.clear()
        os.environ.update(environment)


def attempt(seed: int, folder: Path) -> str:
    """What is wrong with the answer to a mutant; an empty string: nothing."""
    path = folder / "recipe.yaml"
    path.write_bytes(mutant(seed))
    started = time.perf_counter()
    said, fault = io.StringIO(), ""
    with restored(), redirect_stderr(said), redirect_stdout(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with nothing_done_outside(folder), refusals_in_a_line():
                build(["-c", str(path), "--trainer.accelerator=cpu", "--trainer.logger=false"])
        except SystemExit as end:
            text = f"{said.getvalue()}{end.code}"
            if end.code in (0, None) or len(text) > 5000 or text.count("\n") > 12 or "Traceback" in text:
                fault = f"exit code {end.code!r}: {text[:2000]}"
        except BaseException:
            fault = traceback.format_exc()
    seconds = time.perf_counter() - started
    left = sorted(each.name for each in folder.iterdir() if each != path)
    fault = fault or (f"left in the folder: {left}" if left else "")
    return fault or (f"{seconds:.1f} s" if seconds > SECONDS else "")


@pytest.mark.parametrize("seed", range(0, 40, 10))
def test_a_mutated_recipe_is_taken_or_refused(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    faults = {i: fault for i in range(seed, seed + 10) if (fault := attempt(i, tmp_path))}
    assert not faults, "\n".join(f"{i}: {fault}" for i, fault in faults.items())


if __name__ == "__main__":
    count, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for i in range(first, first + count):
            if answer := attempt(i, Path(place)):
                print(f"== {i}\n{answer}", flush=True)
            if i % 100 == 99:
                print(f"{i + 1 - first} recipes", flush=True)
