"""The recipes that ship with the package, found by short name from any folder. Needs neither torch nor Lightning."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

MAX_SIZE, MAX_NODES, MAX_DEPTH = 2**18, 5000, 50  # a run's whole config.yaml: 10 kB, 300 nodes, 8 levels


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
        ValueError: the file is no recipe, see :func:`check_recipe`.
    """
    if _is_file(name):
        with open(name, "rb") as file:
            check_recipe(name, file.read(4 * MAX_SIZE + 1))
        return name
    shipped = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if _is_file(str(shipped)):
        return str(shipped)
    from lightning_nerf.checks import MissingFile

    shown = name if len(name) < 100 else f"{name[:100]}..."
    raise MissingFile(f"config {shown!r}: no such file, nor a shipped recipe; those are {', '.join(recipe_names())}")


ON_A_CPU = {
    "dnerf/": "-c synthetic/dynamic --data lightning_nerf.DNeRFData",
    "blender/vanilla_": "-c synthetic/vanilla --data lightning_nerf.BlenderData --data.downscale=8",
}
"""How to train the scenes of a recipe on a CPU that ``overlays/small`` does not fit, by how the recipe's name begins."""


def overlay_note(configs: Iterable[str], argument: str) -> str:
    """Which shipped overlay of these files sets an argument, and what recipe it goes after; "" if none does.

    Behind a recipe that is too large for a CPU and that the overlay does not fit, also the command to use there.

    Args:
        configs: paths and other words, as of a command line.
        argument: its name, without the keys above it.
    """
    folder = recipes_folder() / "overlays"
    configs = list(configs)
    for config in map(Path, configs):
        if config.parent != folder:
            continue
        text = config.read_text(encoding="utf-8")
        after = re.search(r"Comes after (?!a recipe)([\w/]+)", text)
        if after and re.search(rf"^ *{re.escape(argument)}:", text, re.MULTILINE):
            return f"; overlays/{config.stem}, which sets it, goes after {after[1]}{_on_a_cpu(configs)}"
    return ""


def _on_a_cpu(words: Sequence[str]) -> str:
    """The command that trains on a CPU the scenes of the recipe among these words, or an empty string."""
    for word in words:
        path = Path(word)
        name = f"{path.parent.name}/{path.stem}"
        if path.parent.parent != recipes_folder():
            continue
        for start, command in ON_A_CPU.items():
            if name.startswith(start):
                roots = [after for before, after in pairwise(words) if before == "--data.root"]
                roots += [word.partition("=")[2] for word in words if word.startswith("--data.root=")]
                root = shlex.quote(roots[-1]) if roots else "path/to/scene"
                return f"; on a CPU, in place of {name}: lightning-nerf fit {command} --data.root {root}"
    return ""


def check_recipe(name: str, content: bytes) -> None:
    """Refuse a file whose reading could fail without a reason or never end.

    Raises:
        ValueError: it is too large, no UTF-8 text, no YAML, nested too deeply, or holds no keys.
    """
    import yaml

    from lightning_nerf.checks import BadArgument

    what = f"config {name!r}: expected a recipe in YAML, got"
    try:
        text = content.decode("utf-8-sig")
        is_mapping = check_text(text, what)
    except UnicodeDecodeError as error:
        raise BadArgument(f"{what} a file that is no UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise BadArgument(f"{what} an error{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise BadArgument(f"{what} {str(error).splitlines()[0]}") from error
    if not is_mapping:
        raise BadArgument(f"{what} a text without keys")


def check_text(text: str, what: str = "a value: expected YAML, got") -> bool:
    """Refuse a text in YAML that would take too long; is it empty or a mapping?

    Aliases count as what they stand for: a few lines of them can stand for billions of values.

    Raises:
        ValueError: it is too large, or nested too deeply.
        yaml.YAMLError: it is no YAML.
    """
    import yaml

    from lightning_nerf.checks import BadArgument

    if len(text) > MAX_SIZE:
        raise BadArgument(f"{what} {len(text)} characters, more than {MAX_SIZE}")
    try:
        # The parser in Python: libyaml's gives the same events, and is not there on all machines.
        count, is_mapping = _count_nodes(yaml.parse(text, Loader=yaml.SafeLoader))
    except ValueError as error:
        raise BadArgument(f"{what} {error}") from error
    return is_mapping or count == 0


def checked_loader(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """A loader of YAML that refuses what :func:`check_text` refuses; short texts need no check."""

    def load_checked(text: str) -> Any:
        if len(text) > 200 or "*" in text:
            check_text(text)
        return load(text)

    return load_checked


def _count_nodes(events: Any) -> tuple[int, bool]:
    """Nodes of a document with its aliases written out, and whether it is a mapping.

    Raises:
        ValueError: they are too many, too deep, or one contains itself.
    """
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # the anchor of each, and the count at its start
    count, is_mapping = 0, False
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError(f"an alias, *{event.anchor}, within what it stands for")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            is_mapping = is_mapping or (not open_nodes and isinstance(event, yaml.MappingStartEvent))
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if count > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} values")
        if len(open_nodes) > MAX_DEPTH:
            raise ValueError(f"values nested deeper than {MAX_DEPTH}")
    return count, is_mapping


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a null character
        return False
