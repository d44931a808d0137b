"""NerfAcc itself, where it is installed with its CUDA extension: the second opinion of tests marked gpu."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def nerfacc() -> Any:
    """The module, or the test is skipped."""
    module = pytest.importorskip("nerfacc")
    try:
        info = torch.tensor([[0, 1]], device="cuda")
        module.inclusive_sum(torch.ones(1, device="cuda"), info)
    except (ImportError, AttributeError, RuntimeError) as error:  # no extension for this torch
        pytest.skip(f"nerfacc without its CUDA extension: {error}")
    return module
