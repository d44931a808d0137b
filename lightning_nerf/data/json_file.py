"""Reading a JSON file that a stranger may have written: limits on its size, and errors of one line."""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any

from lightning_nerf.checks import BadArgument, MissingFile

MAX_BYTES = 128 * 2**20  # 100,000 frames with everything that tools write take half of it
MAX_CONTAINERS = 2_000_000  # lists and objects; a frame has six. An empty one is 3 bytes in the file, and 64 in memory
_LARGEST = 3.4028234663852886e38  # of float32, which poses and intrinsics are kept in

_repr = reprlib.Repr()  # bounded in depth and width, unlike repr
_repr.maxlevel = 4
_repr.maxstring = _repr.maxother = _repr.maxlong = 90


def read_json_object(path: Path, what: str = "", limit: int = 0) -> dict[str, Any]:
    """The object that a JSON file holds; UTF-8 with or without a byte order mark, UTF-16, UTF-32.

    Args:
        path: the file.
        what, limit: a key of which the file may hold at most ``limit``. They are counted before anything is parsed.

    Raises:
        FileNotFoundError: naming the JSON files that the folder has.
        ValueError: the file is too large, unreadable, or no object.
    """
    if not os.path.isfile(path):
        raise MissingFile(f"no file {shown(path)}; its folder has {_json_files(path.parent)}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadArgument(f"{shown(path)}: expected at most {MAX_BYTES} bytes, got {size}")
        content = path.read_bytes()
        count = content.count(f'"{what}"'.encode()) if what else 0
        if count > limit:
            raise BadArgument(f"{shown(path)}: expected at most {limit} times {what!r}, got {count}; thin the file out")
        containers = content.count(b"[") + content.count(b"{")
        if containers > MAX_CONTAINERS:
            raise BadArgument(f"{shown(path)}: expected at most {MAX_CONTAINERS} lists and objects, got {containers}")
        parsed = json.loads(content)
    except BadArgument:
        raise
    except RecursionError as error:
        raise BadArgument(f"{shown(path)}: cannot be read as JSON (nested too deeply)") from error
    except (ValueError, OSError) as error:
        raise BadArgument(f"{shown(path)}: cannot be read as JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise BadArgument(f"{shown(path)}: expected a JSON object, got {shorten(parsed)}")
    return parsed


def is_number(value: object) -> bool:
    """Is it a number that float32 can hold? A bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def shorten(value: object) -> str:
    """A value as an error can show it: about 100 printable characters, however large or deep the value is."""
    text = _repr.repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def shown(path: object) -> str:
    """A path or name as an error can show it: printable, and only the end of it where it is long."""
    text = "".join(c if c.isprintable() else "?" for c in str(path)[-250:])
    return text if len(str(path)) <= 250 else "..." + text


def _json_files(folder: Path) -> str:
    if not os.path.isdir(folder):
        return "no .json files"
    found = sorted(shown(p.name) for p in folder.glob("*.json"))
    more = f" and {len(found) - 10} more" if len(found) > 10 else ""
    return ", ".join(found[:10]) + more if found else "no .json files"
