"""``lightning-nerf doctor``: is this installation whole, and where it is not, what to do. Needs no Lightning to run."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from lightning_nerf import cpu_threads

# Ops without a CPU kernel by design: on a CPU their callers take other ops instead.
CUDA_ONLY = frozenset(
    {
        "fused_mlp",
        "fused_mlp_backward",
        "instant_ngp_field",
        "instant_ngp_field_backward",
        "instant_ngp_ray_densities",
        "instant_ngp_render",
        "wide_mlp",
        "wide_mlp_backward",
    }
)
_REINSTALL = "install a wheel, or a C++ compiler (and nvcc for CUDA), and reinstall from source"
_REBUILD = "reinstall on this machine: pip install --no-build-isolation --force-reinstall --no-deps ."


class Line(NamedTuple):
    """One line of the report. ``broken``: the installation does not do what it should; ``advice``: what to do about it."""

    text: str
    advice: str | None = None
    broken: bool = False


def report() -> list[Line]:
    """All checks, in the order in which they are printed."""
    lines = [
        Line(f"lightning-nerf: {importlib.import_module('lightning_nerf').__version__}"),
        Line(f"Python: {platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"),
    ]
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken install raises whatever it likes
        return [*lines, Line(f"torch: cannot be imported ({_first(error)})", "pip install 'torch>=2.10'", broken=True)]
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    lines += [Line(f"torch: {torch.__version__}, built for {built}"), *threads(), *lightning(), *drivers()]
    try:
        return [*lines, *library(), *gpus(), *optional()]
    except Exception as error:  # an older torch, files of two versions
        advice = "a file of this package or of torch is missing: reinstall both"
        return [*lines, Line(f"ops: cannot be imported ({_first(error)})", advice, broken=True), *optional()]


def lightning() -> list[Line]:
    """Can Lightning, and our command line on top of it, be imported?"""
    try:
        found = importlib.import_module("lightning")
    except Exception as error:
        advice = "the ops work without it, training does not: pip install 'lightning>=2.5'"
        return [Line(f"lightning: cannot be imported ({_first(error)})", advice, broken=True)]
    lines = [Line(f"lightning: {found.__version__}")]
    try:
        importlib.import_module("lightning_nerf.cli")
    except Exception as error:
        advice = "pip install --upgrade 'lightning>=2.5' 'jsonargparse[signatures]>=4.40' 'torchmetrics>=1.4'"
        lines.append(Line(f"lightning-nerf fit: cannot be imported ({_first(error)})", advice, broken=True))
    return lines


def threads() -> list[Line]:
    """Are there as many threads as CPUs, and do they leave a CPU to others while they wait?"""
    import torch

    count, cpus = torch.get_num_threads(), cpu_threads.usable_cpus()
    spin = cpu_threads.threads_spin()
    how = "spin" if spin else "sleep"
    text = f"CPU threads: {count} on {cpus} CPU{'s' * (cpus > 1)}; they {how} while they wait for each other"
    if count > cpus:
        return [Line(text, f"more threads than CPUs hinder each other: export OMP_NUM_THREADS={cpus}")]
    if spin and count > 1:
        return [Line(text, f"on a busy machine that is many times slower: export {cpu_threads.WAIT_POLICY}=passive")]
    if count > 1:
        text += f" (a script's only after: export {cpu_threads.WAIT_POLICY}=passive)"
    return [Line(text)]


def drivers() -> list[Line]:
    """The NVIDIA driver, and whether torch makes use of it."""
    import torch

    found = _nvidia_smi()
    if not found:
        return [Line("NVIDIA driver: none found (nvidia-smi does not run)")]
    text = f"NVIDIA driver: {found[0].split(',')[0]}, {len(found)} GPU" + "s" * (len(found) > 1)
    if torch.version.cuda is None:
        advice = "this torch was built without CUDA and uses the CPU: install a CUDA build to use the GPU (pytorch.org)"
        return [Line(text, advice)]
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = f"CUDA_VISIBLE_DEVICES={hidden!r} hides them" if hidden is not None else "the driver may be too old for it"
        advice = (
            f"torch (CUDA {torch.version.cuda}) finds no GPU: {why}; python -c 'import torch; torch.cuda.init()' says more"
        )
        return [Line(text, advice)]
    return [Line(text)]


def library() -> list[Line]:
    """Where the compiled library is, whether it loaded, and which ops have kernels."""
    import torch

    from lightning_nerf.ops import library

    path = library.library_path()
    if not library.loaded:
        chosen = bool(os.environ.get("LIGHTNING_NERF_LIBRARY"))
        if path.is_file():
            text = f"library: {path}, cannot be loaded ({_first(library.load_error)})"
            advice = f"it was built for another platform or a newer torch than {torch.__version__}; {_REINSTALL}"
        else:
            text, advice = f"library: {path}, no such file", _REINSTALL
        if chosen:
            advice = f"LIGHTNING_NERF_LIBRARY names it: correct or unset that; or {advice}"
        return [Line(text, f"slow references in pure torch serve in its place; {advice}", broken=True)]
    schemas = library.schemas()
    lines = [Line(f"library: {path}, loaded"), *_kernels("CPU", sorted(set(schemas) - CUDA_ONLY), needed=True)]
    lines += _kernels("CUDA", sorted(schemas), needed=torch.cuda.is_available())
    changed = [name for name in sorted(schemas) if _compiled(name) != _parsed(name, schemas[name])]
    if changed:
        text = f"library: it and this package differ in the signatures of {', '.join(changed)}"
        lines.append(Line(text, f"the library is of another version; {_REBUILD}", broken=True))
    return lines


def gpus() -> list[Line]:
    """Each GPU that torch sees: does a kernel of the library run there?"""
    import torch

    from lightning_nerf.ops import library

    if not torch.cuda.is_available():
        return [Line("GPUs: torch sees none; the CPU serves")]
    lines = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        text = f"GPU {index}: {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
        if not library.loaded or not library.has_kernel("random_uniform", "CUDA"):
            lines.append(Line(f"{text}, no kernels to run on it"))  # the library's own lines say why
            continue
        try:
            run_kernel(index)
        except Exception as error:
            advice = "look whether other programs use the GPU, and whether torch alone runs there"
            if "no kernel image" in str(error) or "unsupported toolchain" in str(error).lower():
                advice = f"the library holds no code for this architecture (sm_{major}{minor}): {_REBUILD}"
            lines.append(Line(f"{text}, kernels fail ({_first(error)})", advice, broken=True))
        else:
            lines.append(Line(f"{text}, kernels run"))
    return lines


def run_kernel(index: int) -> None:
    """Run a small kernel of the library on GPU ``index``; an error where it fails or computes something else than a CPU."""
    import torch

    from lightning_nerf.ops.random import make_key, random_uniform
    from lightning_nerf.ops.random import reference as expected

    got = random_uniform(make_key(7, device=f"cuda:{index}"), 0, 64, 4).cpu()  # the copy waits for the kernel
    if not torch.equal(got, expected(make_key(7), 0, 64, 4)):  # the same bits on every device
        raise RuntimeError("random_uniform gave wrong numbers")


def optional() -> list[Line]:
    """Packages that some features want; never an error."""
    wanted = [
        ("wandb", "wandb", "WandbLogger needs it: pip install wandb"),
        (
            "imageio_ffmpeg",
            "imageio-ffmpeg",
            "MP4 films need it or ffmpeg on PATH (GIF and PNG do not): pip install 'imageio[ffmpeg]'",
        ),
    ]
    return [
        Line(f"{name}: {_version(name)}") if find_spec(module) else Line(f"{name}: not installed", advice)
        for module, name, advice in wanted
    ]


def show(lines: Sequence[Line]) -> str:
    """The report as text: ``ok``, ``note`` or ``BROKEN`` in front of each line, advice below it."""
    rows = []
    for line in lines:
        mark = "BROKEN" if line.broken else "note" if line.advice else "ok"
        rows.append(f"{mark:6} {line.text}")
        if line.advice:
            rows.append(f"       -> {line.advice}")
    n = sum(line.broken for line in lines)
    rows.append("The installation is whole." if n == 0 else f"The installation is broken: {n} problem{'s' * (n > 1)}.")
    return "\n".join(rows)


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``lightning-nerf doctor``; exits with 1 where the installation is broken, else with 0."""
    parser = argparse.ArgumentParser(
        prog="lightning-nerf doctor",
        description="Versions, the compiled library, its kernels and the GPUs: what works, and what to do about the rest.",
        epilog="Exit code 1: the installation is broken. A CPU build of torch with CPU kernels is not.",
    )
    parser.parse_args(sys.argv[2:] if args is None else args)
    lines = report()
    print(show(lines))
    sys.exit(int(any(line.broken for line in lines)))


def _kernels(key: str, names: Sequence[str], needed: bool) -> list[Line]:
    from lightning_nerf.ops import library

    missing = [name for name in names if not library.has_kernel(name, key)]
    text = f"{key} kernels: {len(names) - len(missing)} of {len(names)} ops"
    if not missing:
        return [Line(text)]
    if len(missing) < len(names):
        text += f"; missing: {', '.join(missing)}"
    if needed:
        why = "nvcc was not there when it was built" if len(missing) == len(names) and key == "CUDA" else "it is incomplete"
        return [Line(text, f"slow references in pure torch serve in their place: {why}; {_REBUILD}", broken=True)]
    return [Line(f"{text} (none are needed: torch sees no GPU)")]


def _compiled(name: str) -> str:
    import torch

    return str(getattr(torch.ops.lightning_nerf, name).default._schema)


def _parsed(name: str, schema: str) -> str:
    import torch

    return str(torch._C.parse_schema(f"lightning_nerf::{name}{schema}"))


def _nvidia_smi() -> list[str]:
    """``driver, name`` of each GPU; empty where nvidia-smi does not run."""
    command = ["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [row.strip() for row in done.stdout.splitlines() if row.strip()] if done.returncode == 0 else []


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _first(error: object) -> str:
    """The first line of a message, which may be pages long."""
    text = str(error).strip().splitlines()
    return (
        f"{type(error).__name__}: {text[0]}" if text and isinstance(error, Exception) else text[0] if text else repr(error)
    )
