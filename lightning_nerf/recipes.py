"""The recipes that ship with the package, found by short name from any folder."""

from __future__ import annotations

from pathlib import Path

from lightning_nerf.checks import MissingFile


def recipes_folder() -> Path:
    """The wheel's recipes; in a source checkout, the ones at its top level."""
    package = Path(__file__).parent
    shipped = package / "recipes"
    return shipped if shipped.is_dir() else package.parent / "recipes"


def recipe_names() -> list[str]:
    """Short names, such as ``blender/instant_ngp``."""
    folder = recipes_folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def resolve_recipe(name: str) -> str:
    """The path of a config: ``name`` itself where it is a file, else the shipped recipe of that name.

    Raises:
        FileNotFoundError: it is neither; the message lists the shipped names.
    """
    if Path(name).is_file():
        return name
    shipped = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return str(shipped)
    raise MissingFile(f"config {name!r}: no such file, nor a shipped recipe; those are {', '.join(recipe_names())}")
