"""NerfAcc itself, where it is installed: the second opinion."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch


def pure_nerfacc() -> Any:
    """The module, of which only what is written in torch may be called; or the test is skipped."""
    for name in ("nerfacc.cameras", "nerfacc.estimators.prop_net"):  # whose imports warn: importorskip doesn't mind
        pytest.importorskip(name, exc_type=ImportError)
    return pytest.importorskip("nerfacc", exc_type=ImportError)


@functools.cache
def _complaint(module: Any) -> str | None:
    """Why its CUDA extension, which may be compiled by this call, does not work."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module.inclusive_sum(torch.ones(1, device="cuda"), torch.tensor([[0, 1]], device="cuda"))
    except (ImportError, AttributeError, RuntimeError) as error:  # no extension for this torch
        return str(error)
    return None


def nerfacc() -> Any:
    """The module with its CUDA extension, or the test is skipped."""
    module = pure_nerfacc()
    if complaint := _complaint(module):
        pytest.skip(f"nerfacc without its CUDA extension: {complaint}")
    return module
