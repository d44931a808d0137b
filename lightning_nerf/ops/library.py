"""The only module that touches the compiled library, and the few helpers by which an op file registers its parts.

An op exists in torch's dispatcher under ``torch.ops.lightning_nerf``. Its schema comes from the compiled library where one
is loaded, else from the op's Python file. The pure-torch reference is registered for every backend; the library's CPU and
CUDA kernels take precedence over it.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import pkgutil
import sysconfig
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "lightning_nerf"
Context = Any  # of autograd, on which an op keeps what it likes
Inputs = tuple[Any, ...]  # an op's arguments or their gradients, of many kinds

_fragment = torch.library.Library(NAMESPACE, "FRAGMENT")
_schemas: dict[str, str] = {}
_warned: set[str] = set()
load_error: str | None = None


def library_path() -> pathlib.Path:
    """Where the compiled library is: ``$LIGHTNING_NERF_LIBRARY``, else beside this package, else in site-packages.

    The last serves a source checkout (or an editable install) whose wheel is installed in the same environment.
    """
    override = os.environ.get("LIGHTNING_NERF_LIBRARY")
    if override:
        return pathlib.Path(override)
    beside = pathlib.Path(__file__).parents[1] / "_C.so"
    return beside if beside.is_file() else pathlib.Path(sysconfig.get_path("platlib"), "lightning_nerf", "_C.so")


def _load() -> bool:
    global load_error
    path = library_path()
    if not path.is_file():
        load_error = f"{path} does not exist"
        return False
    try:
        torch.ops.load_library(path)
    except Exception as error:  # built for a newer torch, or another platform: import must not raise, the references serve
        load_error = str(error.__cause__ or error)  # torch only says that it could not; the loader says why
        return False
    return True


loaded = _load()


def schemas() -> dict[str, str]:
    """Every op's name and schema, as its Python file states it; imports all of them."""
    for module in pkgutil.iter_modules([str(pathlib.Path(__file__).parent)]):
        importlib.import_module(f"lightning_nerf.ops.{module.name}")
    return dict(_schemas)


def has_kernel(name: str, key: str) -> bool:
    """Does the library bring op ``name`` for dispatch key ``key`` (CPU, CUDA)?"""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def _warn_slow(device: str) -> None:
    """Once per device type: an op fell back on its reference."""
    if device in _warned:
        return
    _warned.add(device)
    reason = f"the compiled library has no {device} kernels" if loaded else f"no compiled library: {load_error}"
    warnings.warn(
        f"lightning-nerf runs its pure-torch reference ops on {device}, 4 to 100 times slower than its kernels ({reason}). "
        "Install a wheel, or a C++ compiler (and nvcc for CUDA) and reinstall from source.",
        RuntimeWarning,
        stacklevel=3,
    )


def define(name: str, schema: str, reference: Callable[..., object], fake: Callable[..., object]) -> None:
    """Register op ``name``: schema ``(Tensor a, ...) -> ...`` without default arguments, reference and fake kernel.

    No defaults, because ``needs_input_grad`` drops trailing arguments that equal their default.
    """
    _schemas[name] = schema
    if not hasattr(getattr(torch.ops, NAMESPACE), name):
        _fragment.define(name + schema)

    def slow(*args: Any) -> Any:
        _warn_slow(next((a.device.type for a in args if isinstance(a, Tensor)), "cpu"))
        return reference(*args)

    _fragment.impl(name, slow, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_fragment)


def differentiable(name: str, setup_context: Callable[..., None], backward: Callable[..., object]) -> None:
    """Attach a derivative. A missing output gradient reaches ``backward`` as None instead of an N-sized zero tensor."""

    def setup(ctx: Context, inputs: Inputs, output: Any) -> None:
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=_fragment)


def once_differentiable(name: str, instead: str) -> None:
    """Make differentiating op ``name`` (some op's backward) an error instead of a silent zero."""

    def backward(ctx: Context, *grads: Any) -> Any:
        raise NotImplementedError(f"lightning_nerf::{name} has no derivative of its own; {instead}")

    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=lambda ctx, inputs, output: None, lib=_fragment
    )
