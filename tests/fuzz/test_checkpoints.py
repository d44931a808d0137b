"""Malformed and hostile checkpoints: a failure names its seed, and the seed makes the file again.

``LIGHTNING_NERF_FUZZ_EXAMPLES=10000 pytest -s tests/fuzz/test_checkpoints.py`` reads so many, from seed ``…_FIRST`` on.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_nerf import NeRFDataModule, NeRFModule
from lightning_nerf.checks import BadArgument
from lightning_nerf.data import SyntheticScene
from lightning_nerf.render.scene import load
from tests.callbacks.test_resume import Scores
from tests.fuzz.checkpoints import spoilt
from tests.fuzz.watch import HOSTILE_MODULE, nothing_done_outside
from tests.scenes import tiny_module, tiny_scene, trainer

EXAMPLES = int(os.environ.get("LIGHTNING_NERF_FUZZ_EXAMPLES", "100"))
FIRST = int(os.environ.get("LIGHTNING_NERF_FUZZ_FIRST", "0"))
SECONDS = 10  # after which it hangs
MEMORY = 16 * 2**30
DIFFERENCE = re.compile(r"  .+: came .+, expected .+|  and \d+ more")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.skipif(os.name != "posix", reason="signals")]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, scene_cache: Path) -> SimpleNamespace:
    """A real checkpoint of a run that goes on in its folder, and something beside it that must stay."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / HOSTILE_MODULE).with_suffix(".py").write_text("raise SystemExit('it was imported')")
    victim = folder / "victim"
    victim.mkdir()
    (victim / "thesis.tex").write_text("years")
    every = ModelCheckpoint(folder / "run/checkpoints", monitor="score", every_n_train_steps=1, save_last=True)
    fit = trainer(folder / "run", max_steps=2, enable_checkpointing=True, callbacks=[every, Scores()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(tiny_module(), tiny_scene(scene_cache))
        fit.save_checkpoint(folder / "real.ckpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(SyntheticScene, "prepare_data", lambda self: None)  # it would render any number of pictures
        content = torch.load(folder / "real.ckpt", weights_only=True)
        yield SimpleNamespace(folder=folder, content=content, victim=victim, cache=scene_cache)


class Hangs(BaseException):
    pass


@contextmanager
def bounded() -> Iterator[None]:
    """End what takes more than ten seconds, or asks for more memory than a small machine has."""

    def stop(*_: Any) -> None:
        raise Hangs

    former, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def resume(real: SimpleNamespace, path: Path) -> None:
    every = ModelCheckpoint(real.folder / "run/checkpoints", monitor="score", every_n_train_steps=1, save_last=True)
    fit = trainer(real.folder / "run", max_steps=3, enable_checkpointing=True, callbacks=[every, Scores()])
    fit.fit(tiny_module(), tiny_scene(real.cache), ckpt_path=path)


READERS = {
    "module": lambda real, path: NeRFModule.load_from_checkpoint(path),
    "data": lambda real, path: NeRFDataModule.load_from_checkpoint(path),
    "render": lambda real, path: load(path, [], ["--trainer.accelerator=cpu"]),
    "fit": resume,
}


def read(real: SimpleNamespace, seed: int) -> list[str]:
    """What went wrong, per reader."""
    path = real.folder / "spoilt.ckpt"
    content = spoilt(real.content, seed, real.victim)
    torch.save(content, path)
    if seed % 20 == 0:
        whole = bytearray(path.read_bytes())
        whole[seed * 7919 % len(whole)] ^= 0xFF
        path.write_bytes(whole)
    del content
    faults = []
    for name, reader in READERS.items():
        try:
            with nothing_done_outside(real.folder, real.cache), bounded():
                reader(real, path)
        except (BadArgument, FileNotFoundError) as error:
            first, *rest = str(error).split("\n")
            listed = "of another architecture" in first and len(rest) <= 13 and all(map(DIFFERENCE.fullmatch, rest))
            if rest and not listed:
                faults.append(f"seed {seed}, {name}: more than one line: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if str(error).startswith("EMAWeights: the checkpoint has"):  # says it all
                continue
            faults.append(f"seed {seed}, {name}: {type(error).__name__}: {error!s:.300}")
            if os.environ.get("LIGHTNING_NERF_FUZZ_TRACEBACK"):
                import traceback

                traceback.print_exc()
        if not (real.victim / "thesis.tex").is_file():
            faults.append(f"seed {seed}, {name}: removed a stranger's folder")
            real.victim.mkdir(exist_ok=True)
            (real.victim / "thesis.tex").write_text("years")
    return faults


def test_a_malformed_checkpoint_is_an_error_of_one_line_and_does_nothing(real: SimpleNamespace) -> None:
    faults: list[str] = []
    for seed in range(FIRST, FIRST + EXAMPLES):
        found = read(real, seed)
        faults += found
        for line in found:
            print(line, file=sys.stderr, flush=True)
    assert faults == []
