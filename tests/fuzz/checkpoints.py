"""Checkpoints that a stranger might have written: a real one, spoilt in a few places."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.watch import HOSTILE_MODULE

DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]
BOMB: list[Any] = [0]
for _ in range(40):
    BOMB = [BOMB] * 8
CYCLE: list[Any] = []
CYCLE.append(CYCLE)

NAMES = (
    "", "x", "..a.b", ".", "a.", "os.system", "os._exit", "builtins.eval", "subprocess.Popen", "sys.exit", "torch.load",
    "torch.hub.load", "lightning_nerf.files.os._exit", "lightning_nerf.cli.main", "lightning_nerf.__main__.main",
    "lightning_nerf.fields.InstantNGPField", "lightning_nerf.data.synthetic.SyntheticScene",
    "lightning_nerf.data.BlenderData",
    "torch.optim.SGD", "torch.optim.lr_scheduler.LambdaLR", "torch.nn.Linear", "torch.float16", "antigravity.x",
    f"{HOSTILE_MODULE}.Field", f"{HOSTILE_MODULE}.run", "unittest.__main__.main", "a" * 2000, "\0", "no.such.thing",
    "lightning_nerf.estimators.OccupancyGrid", "lightning_nerf.modules.base.NeRFModule", "lightning.Trainer",
)  # fmt: skip


def plain(victim: Path) -> list[Callable[[], Any]]:
    """What takes a place: made anew each time, since one may go into several places."""
    numbers = (None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), 1j)
    paths = (
        str(victim),
        f"local://{victim}",
        f"file://{victim}",
        f"{victim.parent}/x/../{victim.name}",
        "~",
        "http://[",
        "/",
    )
    spec = {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": {"class_path": "os._exit"}}}
    tensors = (
        torch.zeros(()), torch.full((2, 3), float("nan")), torch.zeros(1).expand(2**40), torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, 3).to_sparse(), torch.zeros(4096, 2), torch.empty(3, device="meta"), torch.zeros(16, 8).half(),
    )  # fmt: skip
    made: list[Any] = [*numbers, *paths, *NAMES, [], {}, [[]], (), b"x", {1: 2}, DEEP, BOMB, CYCLE, spec, {"unnamed": 3}]
    made += [{"class_path": name, "init_args": args} for name in NAMES for args in ({}, None, [1], {"x": 1}, {1: 2})]
    made += [{"class_path": name} for name in NAMES]
    return [*(lambda value=value: value for value in made), *(lambda t=t: t for t in tensors)]


def spoilt(content: dict[str, Any], seed: int, victim: Path) -> dict[str, Any]:
    """A copy of a checkpoint with one to three places changed, removed, renamed or exchanged."""
    draw = random.Random(seed)
    content = copy.deepcopy(content)
    values = plain(victim)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place, key = _anywhere(content, draw)
        action = draw.choice(("replace", "replace", "replace", "remove", "rename", "add", "exchange", "number"))
        value = draw.choice(values)()
        if action == "remove":
            del place[key]
        elif action == "rename" and isinstance(place, dict):
            place[draw.choice((5, "", "x", None, ("a",), "class_path", "init_args", "_instantiator"))] = place.pop(key)
        elif action == "add" and isinstance(place, dict):
            place[draw.choice(("x", "class_path", "optimizer", "lr_scheduler", "reset", "step", "optimizers", 7))] = value
        elif action == "exchange":
            other, name = _anywhere(content, draw)
            if name in other if isinstance(other, dict) else name < len(other):
                place[key] = copy.deepcopy(other[name])
        elif action == "number" and isinstance(place[key], (int, float)):
            place[key] = draw.choice(
                (-place[key], place[key] + 1, str(place[key]), float("nan"), -1, 2**40, place[key] * 0.5)
            )
        else:
            place[key] = value
    return content


def _anywhere(content: dict[str, Any], draw: random.Random) -> tuple[Any, Any]:
    """A container and a key or index in it: each section of the checkpoint alike often, then deeper by chance."""
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw.choice(keys)
        deeper = place[key]
        if (
            not isinstance(deeper, (dict, list))
            or len(deeper) == 0
            or draw.random() < 0.12
            or deeper is BOMB
            or deeper is CYCLE
        ):
            return place, key
        place = deeper
