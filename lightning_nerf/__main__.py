"""``python -m lightning_nerf`` and the ``lightning-nerf`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    if sys.argv[1:2] == ["bench"]:
        from lightning_nerf.bench.main import main as bench

        bench()
    else:
        from lightning_nerf.cli import main as run

        run()


if __name__ == "__main__":
    main()
