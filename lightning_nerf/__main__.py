"""``python -m lightning_nerf`` and the ``lightning-nerf`` command."""

from __future__ import annotations

import importlib
import os
import sys
import textwrap

from lightning_nerf import cli_help, cpu_threads
from lightning_nerf.cli_words import TRAINER_COMMANDS, nearest, refuse
from lightning_nerf.recipes import recipe_names

# Modules are imported when a command asks for them: `--help` has to be quick, and `doctor` has to run without Lightning.
COMMANDS = {
    "process": "lightning_nerf.process.main",
    "render": "lightning_nerf.render.main",
    "doctor": "lightning_nerf.doctor",
    "bench": "lightning_nerf.bench.main",
}
_ABOUT = {
    "process": "camera poses of your own photos or video, to train on",
    "render": "pictures and films of a trained scene, from any camera",
    "doctor": "is the installation whole, and if not, what to do",
    "bench": "times and qualities: ops, perceptron, step, quality, frame",
}
_HELP = """usage: lightning-nerf COMMAND [arguments]

Neural radiance fields for PyTorch Lightning.

commands:
{commands}

first steps:
  lightning-nerf fit -c synthetic/instant_ngp                             # nothing to download
  lightning-nerf fit -c blender/instant_ngp --data.root path/to/scene     # your own pictures
  lightning-nerf render RUN_FOLDER --path orbit --out orbit.gif           # the folder that fit prints

recipes (-c):
{recipes}

lightning-nerf COMMAND --help lists the arguments of a command; lightning-nerf --version prints the version."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with one line and code 130."""
    words = sys.argv[1:]
    command = words[0] if words else ""
    cpu_threads.sleep_while_waiting()  # before a command imports torch
    if command in ("-h", "--help"):
        print(help_text())
    elif command == "--version":
        print(f"lightning-nerf {importlib.import_module('lightning_nerf').__version__}")
    elif command and not command.startswith("-") and command not in (*TRAINER_COMMANDS, *COMMANDS):
        refuse(f"no command {command!r}{nearest(command, (*TRAINER_COMMANDS, *COMMANDS))}; see lightning-nerf --help")
    elif cli_help.asks_for_help(words):
        cli_help.show_help(words, lambda: run(command))
    else:
        run(command)


def run(command: str) -> None:
    """Run one command; whatever is not in ``COMMANDS`` is LightningCLI's."""
    try:
        importlib.import_module(COMMANDS.get(command, "lightning_nerf.cli")).main()
    except KeyboardInterrupt:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of a fit's processes the first one speaks
            print(f"\nlightning-nerf {command}: interrupted", file=sys.stderr)
        sys.exit(130)


def help_text() -> str:
    """What ``lightning-nerf --help`` prints."""
    rows = {**TRAINER_COMMANDS, **_ABOUT}
    commands = "\n".join(f"  {name:10} {text}" for name, text in rows.items())
    recipes = textwrap.fill(", ".join(recipe_names()), 100, initial_indent="  ", subsequent_indent="  ")
    return _HELP.format(commands=commands, recipes=recipes)


if __name__ == "__main__":
    main()
