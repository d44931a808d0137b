"""Modules that a user wrapped with ``torch.compile``: compiled all the same, under the names that checkpoints have."""

from __future__ import annotations

from typing import Any

from torch import nn

_INNER = "_orig_mod"  # the name of the module within torch.compile's wrapper


def unwrap_compiled(module: Any) -> Any:
    """The module within a wrapper of ``torch.compile``, whose calls are compiled from now on; anything else itself.

    The wrapper has another class, and another name for each weight. ``nn.Module.compile`` changes neither. This does what
    that method would have done with the wrapper's options.
    """
    if not is_wrapper(module):
        return module
    inner = getattr(module, _INNER)
    inner._compiled_call_impl = module.dynamo_ctx(inner._call_impl)
    return inner


def unwrap_all(module: nn.Module, *_: object) -> None:
    """Put :func:`unwrap_compiled` in place of each submodule. Takes what torch's hooks are called with."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if not is_wrapper(parent) and is_wrapper(child):
                parent._modules[name] = unwrap_compiled(child)


def strip_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights by the names that they have without ``torch.compile``."""
    return {_plain(name): weight for name, weight in weights.items()}


def strip_in_place(module: nn.Module, weights: dict[str, Any], prefix: str, *_: object) -> None:
    """As :func:`unwrap_all`, and rename what is about to be loaded as :func:`strip_names` does."""
    unwrap_all(module)
    for name in [name for name in weights if name.startswith(prefix)]:
        weights[prefix + _plain(name.removeprefix(prefix))] = weights.pop(name)


def is_wrapper(module: Any) -> bool:
    """Whether ``torch.compile`` made this module out of another one."""
    return isinstance(module, nn.Module) and _INNER in module._modules and hasattr(module, "dynamo_ctx")


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _INNER)
