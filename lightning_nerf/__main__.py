"""``python -m lightning_nerf`` and the ``lightning-nerf`` command."""

from __future__ import annotations

import importlib
import sys

# Whatever is not here is LightningCLI's. Imported when asked for: `doctor` has to run where Lightning does not.
COMMANDS = {"bench": "lightning_nerf.bench.main", "doctor": "lightning_nerf.doctor", "render": "lightning_nerf.render.main"}


def main() -> None:
    """Run the command line."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    importlib.import_module(COMMANDS.get(command, "lightning_nerf.cli")).main()


if __name__ == "__main__":
    main()
