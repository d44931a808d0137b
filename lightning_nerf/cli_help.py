"""``fit --help`` and its siblings at once: the text is kept in the cache folder, for it takes seconds to make.

It is made from the signatures of the Trainer, the module and the data module, or from what a command imports: torch and
Lightning, which take most of that time. The text is made anew when any of what it is made from changes.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from importlib import metadata
from pathlib import Path

_MADE_BY = ("torch", "lightning", "pytorch-lightning", "jsonargparse", "typeshed-client", "docstring-parser")


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether words such as ``fit --help`` or ``bench ops -h`` ask for the help of a command, and for nothing else."""
    *command, option = words or [""]
    return option in ("-h", "--help") and 0 < len(command) < 3 and all(word.isalpha() for word in command)


def show_help(words: Sequence[str], make: Callable[[], None]) -> None:
    """Print the kept help of a command and exit as argparse does; have ``make`` print it where none is kept.

    Args:
        words: the command and the option for help.
        make: prints the help on ``sys.stdout``, and may exit.
    """
    path = help_file("-".join(words[:-1]))
    kept = None
    with suppress(OSError, UnicodeDecodeError):
        kept = path.read_text(encoding="utf-8")
    if kept is not None:
        print(kept, end="")
        sys.exit(0)
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            make()
    except SystemExit as ended:
        if ended.code in (0, None):
            _keep(path, text.getvalue())
        raise
    finally:
        print(text.getvalue(), end="")


def help_file(command: str) -> Path:
    """Where the help of a command is kept, for this terminal's width and what is installed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lightning-nerf", "help")
    return folder / f"{command}-{_stamp()}-{shutil.get_terminal_size().columns}.txt"


def _keep(path: Path, text: str) -> None:
    """Write the file, whole or not at all; without a word where nothing can be written."""
    command, stamp, _ = path.stem.rsplit("-", 2)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        for other in path.parent.glob(f"{command}-*.txt"):
            if not other.name.startswith(f"{command}-{stamp}-"):
                other.unlink()


def _stamp() -> str:
    """A hash of the versions and of this package's files: their names, sizes and times."""
    parts = [sys.version]
    for name in _MADE_BY:
        with suppress(metadata.PackageNotFoundError):
            parts.append(f"{name} {metadata.version(name)}")
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        status = file.stat()
        parts.append(f"{file.relative_to(package)} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
