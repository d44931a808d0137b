"""Files that a camera file names, found where they are now: captures move between machines, and their paths do not."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_nerf.checks import BadArgument
from lightning_nerf.data.json_file import shown

SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_LONGEST = 64  # parts of a path that are tried


def find_file(folder: str | Path, name: str) -> Path | None:
    """A file by its path from ``folder``, with or without suffix."""
    path = os.path.join(folder, name)  # pathlib takes ten times as long, and raises for names that are too long
    found = next((path + suffix for suffix in SUFFIXES if os.path.isfile(path + suffix)), None)
    return None if found is None else Path(found)


class FileFinder:
    """Finds files of a capture, also where their paths are those of another machine.

    A path that does not exist is resolved by the longest part of its end that exists in the capture's folder, and a
    picture's at last by its name in ``images``.

    Args:
        folder: of the camera file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[Path, str] = {}  # of files that are where their paths say
        self._resolved: dict[str, Path] = {}

    def find(self, name: str, is_picture: bool = False) -> Path | None:
        """The file of a name; None: there is none."""
        found = find_file(self.folder, name)
        if found is not None:
            self._names[found] = name
            return found
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")][-_LONGEST:]
        tails = ["/".join(parts[i:]) for i in range(len(parts))]
        tails += [f"images/{parts[-1]}"] if parts and is_picture else []
        for tail in tails:
            if (found := find_file(self.folder, tail)) is not None:
                self._resolved[name] = found
                return found
        return None

    def report(self, where: str) -> None:
        """Tell the user which paths were resolved.

        Raises:
            BadArgument: one became a file that another path has already.
        """
        if not self._resolved:
            return
        for name, path in self._resolved.items():
            if path in self._names:
                raise BadArgument(
                    f"{where}: {shown(name)} does not exist, and the file of its name here, {shown(path)}, is that of "
                    f"{shown(self._names[path])}; correct the paths"
                )
            self._names[path] = name
        name, path = next(iter(self._resolved.items()))
        rank_zero_info(
            f"{where}: {len(self._resolved)} paths do not exist here; took the files of their names in "
            f"{shown(self.folder)}, e.g. {shown(os.path.relpath(path, self.folder))} for {shown(name)}"
        )


def find_mask(root: Path, image: Path) -> Path | None:
    """The mask of a picture in a ``masks`` folder beside its ``images`` folder; None: there is none.

    ``images_4/a/b.jpg`` has ``masks_4/a/b.*`` or, as COLMAP names them, ``masks_4/a/b.jpg.png``; else the same in
    ``masks``.
    """
    parts = list(Path(os.path.relpath(image, root)).parts)
    is_inside = len(parts) > 1 and parts[0].startswith("images")
    folders = ["masks" + parts[0].removeprefix("images"), "masks"] if is_inside else ["masks"]
    for folder in dict.fromkeys(folders):
        inside = "/".join([folder, *parts[is_inside:]])
        if (root / folder).is_dir() and (mask := find_file(root, inside) or find_file(root, os.path.splitext(inside)[0])):
            return mask
    return None
