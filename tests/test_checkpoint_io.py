from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lightning_nerf.checkpoint_io import AtomicCheckpointIO


def test_saves_and_loads(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    path = tmp_path / "new" / "a.ckpt"
    for value in (1, 2):
        io.save_checkpoint({"x": torch.tensor(value)}, path)
        assert io.load_checkpoint(path)["x"] == value
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Unwilling:
    def __reduce__(self) -> str:
        raise RuntimeError("cannot be written")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match="cannot be written"):
        io.save_checkpoint({"x": torch.zeros(1000), "y": Unwilling()}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, tmp_path / "step=1.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=1.ckpt")
    io.save_checkpoint({"x": 2}, tmp_path / "last.ckpt")
    assert io.load_checkpoint(tmp_path / "step=1.ckpt") == {"x": 1}
    assert io.load_checkpoint(tmp_path / "last.ckpt") == {"x": 2}


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    """The process dies when half of the file is written; what is left over goes with the next write."""
    script = """
        import os, signal, sys, torch
        from lightning_nerf.checkpoint_io import AtomicCheckpointIO
        io = AtomicCheckpointIO()
        io.save_checkpoint({"x": 1}, sys.argv[1])
        def half(value, file):
            file.write(b"PK half a checkpoint"); file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        torch.save = half
        io.save_checkpoint({"x": 2}, sys.argv[1])
    """
    path = tmp_path / "last.ckpt"
    code = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], check=False).returncode
    assert code == -signal.SIGKILL
    io = AtomicCheckpointIO()
    assert io.load_checkpoint(path) == {"x": 1}
    leftovers = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(leftovers) == 1
    assert not leftovers[0].startswith("last")
    assert not leftovers[0].endswith(".ckpt")
    io.save_checkpoint({"x": 3}, path)
    assert list(tmp_path.iterdir()) == [path]
