"""Where an op's kernel cannot serve: under function transforms and forward-mode differentiation."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether ``torch.func`` (grad, jacrev, jvp, vmap) or ``torch.autograd.forward_ad`` is at work in this thread.

    Kernels have first derivatives in reverse mode only. Forward mode would even lose its tangents in silence. So the public
    functions compute by their pure-torch references then, which torch can transform in any way. Tells in 0.1 us.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
