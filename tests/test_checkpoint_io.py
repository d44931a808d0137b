from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from lightning_nerf.checkpoint_io import AtomicCheckpointIO, read_checkpoint


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


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kept", [0, 2, 100, 0.5, 0.99])
def test_a_cut_checkpoint_is_named(kept: float, tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "cut.ckpt"
    io.save_checkpoint({"x": torch.zeros(10_000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"cut.ckpt cannot be read as a checkpoint \(\w+: ."):
        io.load_checkpoint(path)
    with path.open("rb") as file, pytest.raises(ValueError, match=r"cut.ckpt.* cannot be read as a checkpoint"):
        read_checkpoint(file)


def test_no_code_is_run_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": Runs()}, "a.ckpt")
    with pytest.raises(ValueError, match=r"a.ckpt cannot be read as a checkpoint \(UnpicklingError: .*mkdir"):
        io.load_checkpoint("a.ckpt")
    assert not Path("ran").exists()
    assert io.load_checkpoint("a.ckpt", weights_only=False) == {"x": None}
    assert Path("ran").exists()
    torch.save(torch.zeros(1), "tensor.ckpt")
    with pytest.raises(ValueError, match=r"tensor.ckpt cannot be read as a checkpoint \(it holds a Tensor\)"):
        io.load_checkpoint("tensor.ckpt")
    with pytest.raises(FileNotFoundError, match="absent"):
        io.load_checkpoint("absent.ckpt")


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
