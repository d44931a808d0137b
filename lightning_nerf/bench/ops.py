"""Times each op by itself, beside the time that its bytes, flops, gathers or atomics take at the hardware's limit.

CUDA: device time, and NerfAcc's where it is installed. CPU: kernel and pure-torch reference.
limit_ms is the largest of work / rate; `limits` gives the rates (those of an H200, else measured at the start; gathers and
atomics are known for an H200 only). Gathers and atomics count random ones: on ray-like points, where neighbors share
cells, an op may pass 100 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from lightning_nerf.bench import drop_in
from lightning_nerf.bench.cases import CASES, Case, setting
from lightning_nerf.bench.table import Report
from lightning_nerf.bench.timing import Limits, environment, limits_of, median_seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="timed calls; default 100 on CUDA, 9 on a CPU")
    parser.add_argument("--only", default="", metavar="NAME", help="rows whose name contains this")
    parser.add_argument("--rays", type=int, help="default 131072 on CUDA, 4096 on a CPU")
    parser.add_argument("--points", type=int, help="of encodings and fields; default 2^18 on CUDA, 2^15 on a CPU")


def run(options: argparse.Namespace, rest: Sequence[str]) -> Report:
    """The report."""
    cuda = options.device == "cuda"
    repeats = options.repeats or (100 if cuda else 9)
    limits = limits_of(options.device)
    s = setting(options.device, options.rays or (131072 if cuda else 4096), options.points or (2**18 if cuda else 2**15))
    rows = []
    for cases in (*CASES, drop_in.rendered, drop_in.sampling, drop_in.updating):
        for case in cases(s):
            if options.only in case.name:
                rows.append(_row(case, limits, options.device, repeats))
    if not rows:
        sys.exit(f"lightning-nerf bench ops: no op is called {options.only!r}")
    return {
        "environment": environment(options.device),
        "limits": {f"{name}_per_second": rate for name, rate in limits._asdict().items()},
        "rays": len(s.rays.origins),
        "samples": s.n,
        "ops": rows,
    }


def _row(case: Case, limits: Limits, device: str, repeats: int) -> Report:
    seconds = median_seconds(case.run, device, repeats)
    floor = limits.seconds(case.work)
    row: Report = {
        "op": case.name,
        "n": case.items,
        "ms": 1000 * seconds,
        "ns_per_n": 1e9 * seconds / case.items,
        **{f"M_{name}": amount / 1e6 if amount else None for name, amount in case.work._asdict().items()},
        "limit_ms": 1000 * floor,
        "percent_of_limit": 100 * floor / seconds,
    }
    if case.reference is not None and device == "cpu":
        reference = median_seconds(case.reference, device, max(1, repeats // 3))
        row.update(reference_ms=1000 * reference, speedup=reference / seconds)
    if case.peer is not None:
        try:
            peer = median_seconds(case.peer, device, repeats)
            row.update(nerfacc_ms=1000 * peer, speedup=peer / seconds)
        except Exception as error:  # its extension may fail to compile
            print(f"{case.name}: NerfAcc failed ({error})", file=sys.stderr)
    return row
