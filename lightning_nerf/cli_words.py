"""What a user typed, in the order in which LightningCLI has to read it. Needs neither torch nor Lightning."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, NoReturn

from lightning_nerf.recipes import recipe_names

TRAINER_COMMANDS = {
    "fit": "train by a recipe; ends with a test of the final weights",
    "validate": "score a checkpoint on the validation views",
    "test": "score a checkpoint on the held-out views",
    "predict": "write every held-out view as a PNG file",
}
_CONFIG = ("-c", "--config")
_ASKS_FOR_HELP = ("-h", "--help", "--print_config")


class Typed(NamedTuple):
    """A command line of ``fit``, ``validate``, ``test`` or ``predict``."""

    words: list[str]  # for LightningCLI: the command, its configurations, all other arguments
    allow: list[str]  # packages whose classes a checkpoint may name
    resume: bool  # go on from the newest checkpoint of this recipe's runs


def read(words: Sequence[str]) -> Typed:
    """Put the command first and configurations before arguments, so that arguments win wherever they stand.

    Exits with code 2 and one line if the command or its recipe is missing.
    """
    command, rest = split_command(words)
    allow, rest = _taken(rest, "--allow")
    typed = Typed([command, *configs_first(_one_checkpoint(rest))], allow, "--resume" in rest)
    typed = typed._replace(words=[word for word in typed.words if word != "--resume"])
    if typed.resume and command != "fit":
        refuse(f"--resume: expected the command fit, got {command}; --ckpt_path takes a checkpoint or a run's folder")
    if typed.resume and _values(rest, "--ckpt_path"):
        refuse("--resume: it looks for the checkpoint itself; leave out --resume or --ckpt_path")
    _check_recipe(command, typed.words[1:])
    return typed


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command, which may stand behind options, and all other words."""
    for i, word in enumerate(words):
        if word in TRAINER_COMMANDS and (i == 0 or words[i - 1] not in _CONFIG):
            return word, [*words[:i], *words[i + 1 :]]
    known = ", ".join(TRAINER_COMMANDS)
    raise refuse(f"expected a command ({known}, process, render, doctor or bench); lightning-nerf --help has examples")


def configs_first(words: Sequence[str]) -> list[str]:
    """The same words with each ``-c NAME`` in front of all others, in their order."""
    configs: list[str] = []
    others: list[str] = []
    takes_next = False
    for word in words:
        is_short = word.startswith("-c") and not word.startswith("--") and word != "-c"  # -cNAME
        if takes_next or word in _CONFIG or is_short or word.startswith("--config="):
            configs += ["-c", word[2:].removeprefix("=")] if is_short else [word]
            takes_next = word in _CONFIG and not takes_next
        else:
            others.append(word)
    return configs + others


def refuse(message: str) -> NoReturn:
    """Exit with code 2 and one line."""
    print(f"lightning-nerf: {message}", file=sys.stderr)
    sys.exit(2)


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the most similar name, or an empty string."""
    matches = get_close_matches(name, sorted({*names} - {name}), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def newest(files: Iterable[Path]) -> Path | None:
    """The file that was written last."""
    return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)


def checkpoint_in(path: Path) -> Path:
    """The newest checkpoint below a folder, such as a run's; any other path itself.

    Exits with code 2 and one line if the folder has none.
    """
    if not os.path.isdir(path):  # Path.is_dir raises where the name is too long
        return path
    found = newest(file for file in path.rglob("*.ckpt") if file.is_file())
    if found is None:
        refuse(f"{path}: expected a checkpoint or a folder that holds one, got a folder without any *.ckpt")
    return found


def one_of(name: str, files: Sequence[str]) -> str:
    """The newest of the checkpoints that a pattern such as ``run/checkpoints/*.ckpt`` stood for; says which it is."""
    if len(files) == 1:
        return files[0]
    missing = next((file for file in files if not os.path.exists(file)), None)
    if missing is not None:
        refuse(f"{name}: no file {missing}; expected one checkpoint or a run's folder, got {len(files)} words")
    found = str(newest(map(Path, files)))
    print(f"lightning-nerf: {name}: the newest of {len(files)} files is {found}", file=sys.stderr)
    return found


def without(words: Sequence[str], option: str) -> list[str]:
    """The words without an option and its value."""
    return _taken(words, option)[1]


def _one_checkpoint(words: Sequence[str]) -> list[str]:
    if "--ckpt_path" not in words:
        return list(words)
    start = words.index("--ckpt_path") + 1
    end = start
    while end < len(words) and not words[end].startswith("-"):
        end += 1
    return [*words[:start], *([one_of("--ckpt_path", words[start:end])] if end > start else []), *words[end:]]


def _taken(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """The values of a repeatable option, and the words without it."""
    values: list[str] = []
    others: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word.startswith(f"{option}="):
            values.append(word.removeprefix(f"{option}="))
        elif word == option:
            values.append(next(remaining, ""))
        else:
            others.append(word)
    if not all(values):
        refuse(f"{option}: expected a value, got none")
    return values, others


def _values(words: Sequence[str], option: str) -> list[str]:
    following = [after for word, after in pairwise(words) if word == option]
    return following + [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]


def _check_recipe(command: str, words: Sequence[str]) -> None:
    for folder in _values(words, "--data"):
        if "/" in folder or os.path.isdir(folder):
            refuse(
                f"--data: expected a class, got the path {folder}; for a scene's folder: "
                f"lightning-nerf {command} -c blender/instant_ngp --data.root={folder}"
            )
    asks = any(word.startswith(_ASKS_FOR_HELP) or ".help" in word for word in words)
    is_named = any(word in _CONFIG or word.startswith("--config=") for word in words[:1]) or _values(words, "--model")
    configs = [value for option in _CONFIG for value in _values(words, option)]
    if configs and not asks and all(Path(value).parent.name == "overlays" for value in configs):
        name = f"overlays/{Path(configs[0]).stem}"
        refuse(f"{command}: {name} goes after a recipe, as in: lightning-nerf {command} -c blender/instant_ngp -c {name}")
    if asks or is_named:
        return
    root = next(iter(_values(words, "--data.root")), None)
    example = "-c synthetic/instant_ngp" if root is None else f"-c blender/instant_ngp --data.root {root}"
    for checkpoint in _values(words, "--ckpt_path"):
        folders = [Path(checkpoint), *Path(checkpoint).parents[:2]]  # a run's folder, or what is below it
        if run := next((folder for folder in folders if (folder / "config.yaml").is_file()), None):
            example = shlex.join(["-c", str(run / "config.yaml"), "--ckpt_path", checkpoint])
    recipes = ", ".join(name for name in recipe_names() if not name.startswith("overlays/"))
    refuse(f"{command}: no recipe is named ({recipes}); for example: lightning-nerf {command} {example}")
