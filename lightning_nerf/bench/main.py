"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_nerf.bench.table import Report, show, write_json
from lightning_nerf.cli_quiet import quiet

COMMANDS = {
    "ops": "each op: time, bytes or flops, share of the hardware's limit, and the peer where it is installed",
    "perceptron": "a wide perceptron forward and backward, beside plain torch and torch.compile",
    "step": "a recipe's training step: milliseconds, memory, kernels; and how they grow (--sweep)",
    "quality": "one run of a recipe: PSNR at marks of training seconds, then over all test views",
    "frame": "one frame of a trained scene: milliseconds, memory, PSNR against the training renderer",
}


def main(args: Sequence[str] | None = None) -> Report:
    """Run ``lightning-nerf bench ARGS``: print the report, write it where ``--output`` says, and return it."""
    args = list(sys.argv[2:] if args is None else args)
    top = argparse.ArgumentParser(
        prog="lightning-nerf bench",
        usage="lightning-nerf bench COMMAND [-h] [arguments]",
        description="\n".join(f"{name:10} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see above; each has a --help of its own")
    name = top.parse_args(args[:1]).command

    module = importlib.import_module(f"lightning_nerf.bench.{name}")  # `ops` and `perceptron` do without Lightning
    parser = argparse.ArgumentParser(
        prog=f"lightning-nerf bench {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the report there")
    options, rest = parser.parse_known_args(args[1:])
    if rest and name in ("ops", "perceptron"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        with quiet():
            report = module.run(options, rest)
    except FileNotFoundError as error:
        sys.exit(f"lightning-nerf bench: {error}")
    report = {"command": " ".join(["lightning-nerf", "bench", *args]), **report}
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        show(report)
        if options.output:
            write_json(options.output, report)
    return report
