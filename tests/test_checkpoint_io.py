from __future__ import annotations

import functools
import http.server
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nerf.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_nerf.checks import BadArgument, BadFile


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


# -- what a stranger wrote ---------------------------------------------------------------------------------------------


def aliases(depth: int) -> list[Any]:
    value: list[Any] = [0]
    for _ in range(depth):
        value = [value] * 10
    return value


def cycle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["x"] = value
    return value


def save_nested(depth: int, path: Path) -> None:
    """A list in a list and so on, deeper than Python's pickler goes."""
    torch.save({"x": []}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            pickled = b"\x80\x02}X\x01\x00\x00\x00x" + b"]" * (depth + 1) + b"a" * depth + b"s."
            archive.writestr(name, pickled if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (aliases(30), "more than 1,000,000 lists and dicts"),
        (cycle(), "nested more than 100 deep"),
        (100_000, "nested more than 100 deep"),
        (torch.zeros(1).expand(2**40), r"a tensor of 1,099,511,627,776 elements, of which the file has 1"),
        (torch.empty(3, device="meta"), "a tensor without values"),
    ],
    ids=["aliases", "cycle", "deep", "expanded", "meta"],
)
def test_what_unfolds_to_any_size_is_refused_at_once(tmp_path: Path, value: Any, says: str) -> None:
    path = tmp_path / "bomb.ckpt"
    if isinstance(value, int):
        save_nested(value, path)
    else:
        torch.save({"x": value}, path)
    start = time.monotonic()
    with pytest.raises(BadArgument, match=rf"bomb.ckpt cannot be read as a checkpoint \(it .*{says}"):
        read_checkpoint(path)
    assert time.monotonic() - start < 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of ``tmp_path``."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_two_urls_of_one_name_are_two_files(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        AtomicCheckpointIO().save_checkpoint({"x": name}, tmp_path / name / "last.ckpt")
    for name in ("a", "b", "a"):
        assert read_checkpoint(f"{server}/{name}/last.ckpt") == {"x": name}
    AtomicCheckpointIO().save_checkpoint({"x": "new"}, tmp_path / "a" / "last.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(f"{server}/a/last.ckpt") == {"x": "new"}
    assert not (tmp_path / "cache").exists()


def test_a_url_runs_no_code(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Runs()}, "a.ckpt")
    with pytest.raises(BadArgument, match=r"a.ckpt cannot be read as a checkpoint \(UnpicklingError: .*mkdir"):
        read_checkpoint(f"{server}/a.ckpt")
    assert not Path("ran").exists()


def test_a_url_that_leads_nowhere_is_named(server: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"404.*absent.ckpt"):
        read_checkpoint(f"{server}/absent.ckpt")
    with pytest.raises(BadFile, match=r"cannot be fetched.*Connection refused.*127.0.0.1:9/"):
        read_checkpoint("http://127.0.0.1:9/a.ckpt")
    for odd in ("http://[", "zzz://a/b.ckpt", "simplecache::zzz://b"):
        with pytest.raises(BadArgument, match="cannot be"):
            read_checkpoint(odd)


# -- removing ----------------------------------------------------------------------------------------------------------


def test_a_runs_own_checkpoints_are_removed(tmp_path: Path) -> None:
    former, io = tmp_path / "run" / "step=1.ckpt", AtomicCheckpointIO()
    AtomicCheckpointIO().save_checkpoint({"x": 1}, former)  # by the process that this one goes on from
    for name in ("step=2.ckpt", "step=3.ckpt"):
        io.save_checkpoint({"x": 2}, tmp_path / "run" / name)
    (tmp_path / "run" / "best.ckpt").symlink_to("step=3.ckpt")
    for name in ("step=2.ckpt", "best.ckpt", "step=1.ckpt", "absent.ckpt"):
        io.remove_checkpoint(str(tmp_path / "run" / name))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step=3.ckpt"]


OTHERS = {
    "a folder": "{tmp}/victim",
    "a local URL": "local://{tmp}/victim",
    "a file URL": "file://{tmp}/victim",
    "through dots": "{tmp}/run/../victim",
    "through a link": "{tmp}/run/link/thesis.tex",
    "another run's checkpoint": "{tmp}/victim/best.ckpt",
    "a folder of its own": "{tmp}/run/images",
    "a file that is no checkpoint": "{tmp}/run/notes.ckpt",
    "another ending": "{tmp}/run/scene.zip",
    "its own folder": "{tmp}/run",
    "a folder by its end": "{tmp}/run/images/",
    "a remote one": "memory://victim/best.ckpt",
}


@pytest.mark.parametrize("path", OTHERS.values(), ids=OTHERS)
def test_what_it_did_not_write_stays(tmp_path: Path, path: str) -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, tmp_path / "run/step=1.ckpt")
    AtomicCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "victim/best.ckpt")
    AtomicCheckpointIO().save_checkpoint({"x": 1}, "memory://victim/best.ckpt")
    (tmp_path / "victim/thesis.tex").write_text("years")
    (tmp_path / "run/images").mkdir()
    (tmp_path / "run/notes.ckpt").write_text("mine")
    torch.save({}, tmp_path / "run/scene.zip")
    (tmp_path / "run/link").symlink_to(tmp_path / "victim")
    before = sorted(tmp_path.rglob("*"))
    with pytest.warns(UserWarning, match="is not removed: it is no checkpoint of this run"):
        io.remove_checkpoint(path.format(tmp=tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    assert read_checkpoint("memory://victim/best.ckpt") == {"x": 1}


def test_remote_checkpoints_of_its_own_are_removed() -> None:
    io = AtomicCheckpointIO()
    io.save_checkpoint({"x": 1}, "memory://run/a.ckpt")
    io.remove_checkpoint("memory://run/a.ckpt")
    with pytest.raises(FileNotFoundError):
        read_checkpoint("memory://run/a.ckpt")
