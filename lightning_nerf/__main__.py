"""``python -m lightning_nerf`` and the ``lightning-nerf`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from lightning_nerf.cli import main as run

    run()


if __name__ == "__main__":
    main()
