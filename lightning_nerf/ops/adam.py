"""Adam's step on the device: check the gradients, then update weights, moments, average and fp16 copy in one kernel.

:class:`lightning_nerf.optim.FusedAdam` is the optimizer; these are its two kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_tensor
from lightning_nerf.ops import library

ENDED, NOW, BAD, SKIPPED = range(4)  # entries of `control`


def make_control(device: torch.device | str | None = None) -> Tensor:
    """What the two ops keep from step to step, [4] int32 on the parameters' device; entry ``SKIPPED`` counts those."""
    return torch.zeros(4, dtype=torch.int32, device=device)


def adam_begin_(grads: Sequence[Tensor], steps: Sequence[Tensor], control: Tensor, *, check_grads: bool = True) -> None:
    """Begin a step: count it, and note whether any gradient is Inf or NaN. In place, one launch per 32 tensors.

    Args:
        grads: float32 tensors of any shape, contiguous.
        steps: for each gradient its parameter's step count, 0-d float32; each grows by one.
        control: see :func:`make_control`.
        check_grads: False: only count.
    """
    _check_lists(control, grads=grads, steps=steps)
    for step in steps:
        check_tensor("steps", step, (), torch.float32)
    torch.ops.lightning_nerf.adam_begin_(grads, steps, control, check_grads)


def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    control: Tensor,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    emas: Sequence[Tensor] = (),
    ema_decay: float = 0.0,
    ema_share: float = 1.0,
    ema_every: int = 1,
    halves: Sequence[Tensor] = (),
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    zero_grads: bool = False,
    last: bool = True,
) -> None:
    r"""Adam, algorithm 1 of the paper with an L2 penalty, in place, one launch per 32 tensors. Per element, at step t:

    .. math::
        g &= \text{grad} / \text{grad_scale} + \text{weight_decay} \cdot p \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        p &\leftarrow p - \text{lr} \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \text{eps}} \\
        a &\leftarrow a + \max\left(\frac{1 - d}{1 - d^t}, \frac{1}{s t}\right) (p - a)

    The last line's first fraction is the exponential moving average from 0, already divided by its weights' sum
    ``1 - d^t``: the mean of the weights so far in the first steps, then of about the last ``1 / (1 - d)``. The second, for
    ``ema_share`` s < 1, keeps it to about the last share s of all steps so far, while that is shorter: weights of the first
    hundred steps are far from anything, and the best average grows with the run. With ``ema_every`` = k it moves in every
    k-th step only, by ``max((1 - d^k) / (1 - d^t), k / (s t))``, and equals p in steps 1 to k; it never moves by more than
    the difference.

    Where ``found_inf`` is nonzero, or :func:`adam_begin_` met a non-finite gradient, nothing changes but what
    ``zero_grads`` and ``halves`` ask for, and the step is taken out of the counts. A step is one ``adam_begin_`` over all
    parameters, then ``adam_`` for each group of options. Nothing here waits for the device.

    Args:
        params: float32 tensors of any shape, contiguous; as ``grads``, ``exp_avgs`` (m), ``exp_avg_sqs`` (v), ``emas`` (a).
        steps: 0-d float32 each: t, this step included.
        control: see :func:`make_control`.
        lr: a number, or a 0-d float32 tensor on the device, which is read at execution (a CUDA graph burns numbers in).
        beta1, beta2, eps, weight_decay: numbers.
        emas: averages, or nothing. ``ema_decay`` (d) in [0, 1), ``ema_share`` (s) in (0, 1], ``ema_every`` >= 1.
        halves: fp16 tensors that receive a copy of the new p, or nothing; an entry of no elements: none for this parameter.
        grad_scale: 0-d float32, or None for 1.
        found_inf: 0-d float32, or None for 0.
        zero_grads: leave the gradients zero.
        last: whether this is the step's last group.

    Not differentiable. The caller tells autograd of the change: ``torch.autograd.graph.increment_version(params)``.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015. The average is that of tiny-cuda-nn's
    ``EmaOptimizer`` (Mueller 2021): section 3 of the paper, initialization bias, applied to the weights. A window in
    proportion to the run: Karras et al., "Analyzing and improving the training dynamics of diffusion models", CVPR 2024,
    section 3.1 (power function averages).
    """
    _check_lists(control, grads=grads, params=params, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps)
    if emas:
        _check_lists(control, grads=grads, emas=emas)
        if not (0 <= ema_decay < 1 and 0 < ema_share <= 1 and ema_every >= 1):
            raise BadArgument(
                "expected 0 <= ema_decay < 1, 0 < ema_share <= 1 and ema_every >= 1, "
                f"got {ema_decay}, {ema_share} and {ema_every}"
            )
    for half in halves:
        if half.dtype is not torch.float16:
            raise BadArgument(f"halves: expected dtype torch.float16, got {half.dtype}")
    rate = lr if isinstance(lr, Tensor) else None
    for name, scalar in (("lr", rate), ("grad_scale", grad_scale), ("found_inf", found_inf)):
        if scalar is not None:
            check_tensor(name, scalar, (), torch.float32)
    torch.ops.lightning_nerf.adam_(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        emas,
        halves,
        steps,
        control,
        rate,
        grad_scale,
        found_inf,
        0.0 if rate is not None else lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        ema_decay,
        ema_share,
        ema_every,
        zero_grads,
        last,
    )


def _check_lists(control: Tensor, grads: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    """Same number of tensors in each list, all contiguous float32 on one device, those of one parameter of one size."""
    check_tensor("control", control, (4,), torch.int32)
    for name, tensors in (("grads", grads), *lists.items()):
        if len(tensors) != len(grads):
            raise BadArgument(f"{name}: expected {len(grads)} tensors, as many as grads, got {len(tensors)}")
        for i, (t, grad) in enumerate(zip(tensors, grads, strict=True)):
            if t.dtype is not torch.float32 or not t.is_contiguous() or t.device != control.device:
                raise BadArgument(
                    f"{name}[{i}]: expected contiguous torch.float32 on {control.device}, got {t.dtype} on {t.device} with "
                    f"strides {t.stride()}"
                )
            if name != "steps" and t.shape != grad.shape:
                raise BadArgument(f"{name}[{i}]: expected shape {list(grad.shape)}, as its gradient, got {list(t.shape)}")


def begin_reference(grads: list[Tensor], steps: list[Tensor], control: Tensor, check_grads: bool) -> None:
    now = control[ENDED] + 1
    control[NOW].copy_(now)
    for step in steps:
        step += 1
    if check_grads:
        for grad in grads:
            control[BAD].copy_(torch.where(grad.isfinite().all(), control[BAD], now))


def reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    emas: list[Tensor],
    halves: list[Tensor],
    steps: list[Tensor],
    control: Tensor,
    lr_tensor: Tensor | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    ema_decay: float,
    ema_share: float,
    ema_every: int,
    zero_grads: bool,
    last: bool,
) -> None:
    skip = control[BAD] == control[NOW]
    if found_inf is not None:
        skip = skip | (found_inf.reshape(()) != 0)

    def write(target: Tensor, value: Tensor) -> None:
        target.copy_(torch.where(skip, target, value))

    for i, (p, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        t = steps[i].double()
        g = grad if grad_scale is None else grad / grad_scale
        g = g + weight_decay * p
        write(m, m + (1 - beta1) * (g - m))
        write(v, beta2 * v + (1 - beta2) * g * g)
        step_size = ((lr if lr_tensor is None else lr_tensor.double()) / (1 - beta1**t)).to(p.dtype)
        write(p, p - step_size * (m / (v.sqrt() / (1 - beta2**t).sqrt().to(p.dtype) + eps)))
        if emas:
            weight = torch.maximum((1 - ema_decay**ema_every) / (1 - ema_decay**t), ema_every / (ema_share * t))
            weight = torch.where(t % ema_every == 0, weight.clamp(max=1.0), 0.0)
            write(emas[i], torch.where(t <= ema_every, p, emas[i] + weight.to(p.dtype) * (p - emas[i])))
        if halves and halves[i].numel():
            halves[i].copy_(p)
        if zero_grads:
            grad.zero_()
        steps[i].sub_(skip.to(steps[i].dtype))  # adam_begin_ had counted it
    if last:
        control[ENDED].copy_(control[NOW])
        control[SKIPPED].add_(skip)


library.define(
    "adam_begin_",
    "(Tensor[] grads, Tensor(a!)[] steps, Tensor(b!) control, bool check_grads) -> ()",
    begin_reference,
    lambda grads, steps, control, check_grads: None,
)
library.define(
    "adam_",
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] emas, "
    "Tensor(f!)[] halves, Tensor(g!)[] steps, Tensor(h!) control, Tensor? lr_tensor, Tensor? grad_scale, "
    "Tensor? found_inf, float lr, float beta1, float beta2, float eps, float weight_decay, float ema_decay, "
    "float ema_share, int ema_every, bool zero_grads, bool last) -> ()",
    reference,
    lambda *args: None,
)
