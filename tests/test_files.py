from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from lightning_nerf import files
from lightning_nerf.files import whole_file


def write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def test_threads_and_processes_write_one_path_at_once(tmp_path: Path) -> None:
    """All of them succeed, and the file is always one of theirs, whole."""
    path, size = tmp_path / "last.ckpt", 100_000
    script = f"""
        import sys
        from pathlib import Path
        from lightning_nerf.files import whole_file
        for i in range(40):
            with whole_file(Path({str(path)!r})) as file:
                for _ in range(10):
                    file.write(bytes([int(sys.argv[1])]) * {size // 10})
    """
    others = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(n)]) for n in (1, 2)]
    errors: list[BaseException] = []

    def work(n: int) -> None:
        try:
            while any(p.poll() is None for p in others):
                write(path, bytes([n]) * size)
                content = path.read_bytes()
                assert len(content) == size
                assert len(set(content)) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [p.wait() for p in others] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def name_of(process: int, host: str | None = None, path: str = "it") -> str:
    return f".{path}.{files._host() if host is None else host}.{process}.01234567.part"


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(os.name != "posix", reason="asks for processes")
@pytest.mark.parametrize(
    ("name", "hours", "stays"),
    [
        (name_of(1), 100, True),  # it lives
        (name_of(os.getppid()), 0, True),
        (name_of(os.getpid()), 0, False),  # of a process that had this one's number
        (name_of(dead_process()), 0, False),
        (name_of(10**12), 0, False),  # a number that no process has
        (name_of(dead_process(), "89abcdef"), 1, True),  # of another host, which cannot be asked
        (name_of(dead_process(), "89abcdef"), 100, False),
        (".it.123.part", 0, True),  # as an earlier version named them
        (".it.123.part", 100, False),
        (name_of(dead_process(), path="it2"), 100, True),  # another file's
        ("it.part", 100, True),
    ],
    ids=[
        "one that lives", "the parent", "a number used again", "a dead one", "no number", "another host, young",
        "another host, old", "an earlier version, young", "an earlier version, old", "another file's", "no part of ours",
    ],
)  # fmt: skip
def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path: Path, name: str, hours: int, stays: bool) -> None:
    left = tmp_path / name
    left.write_text("half")
    os.utime(left, (time.time() - hours * 3600,) * 2)
    write(tmp_path / "it", b"whole")
    assert left.exists() == stays
    assert {p.name for p in tmp_path.iterdir()} == {"it", *([name] if stays else [])}


def test_a_file_that_is_being_written_here_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "it"
    with whole_file(path) as outer:
        outer.write(b"outer")
        write(path, b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["[a]*?.ckpt", "x" * 250, "ü" * 120])
def test_any_name_that_a_file_may_have(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"1")
    write(tmp_path / name, b"2")
    assert [p.name for p in tmp_path.iterdir()] == [name]
