"""Programs that stand for ffmpeg where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Writes what it was called with, and then all that came in.
FAKE = """
import sys
frames = sys.stdin.buffer.read()
with open(sys.argv[-1], "wb") as film:
    film.write("\\n".join(sys.argv[1:]).encode() + b"\\n\\n" + frames)
"""
FAILS = """
import sys
sys.stdin.buffer.read(1)
print("configuration: ...", "Unknown encoder 'libx264'", sep="\\n", file=sys.stderr)
sys.exit(8)
"""


def put_on_path(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``program`` be the only ffmpeg that there is."""
    path = folder / "ffmpeg"
    path.write_text(f"#!{sys.executable}{program}")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # importing it fails


def content(film: Path) -> tuple[list[str], bytes]:
    """What a fake film holds: the arguments, the frames."""
    words, _, frames = film.read_bytes().partition(b"\n\n")
    return words.decode().split("\n"), frames
