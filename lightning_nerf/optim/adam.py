"""An optimizer whose whole step is two kernels and no wait: check, then update, average, copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nerf.checks import BadArgument, check_integer, check_number
from lightning_nerf.ops.adam import SKIPPED, adam_, adam_begin_, make_control
from lightning_nerf.optim.mirror import HalfMirror

_OWN = ("capturable", "fused", "ema_decay", "ema_share", "ema_every")  # options that load_state_dict leaves alone


class FusedAdam(torch.optim.Optimizer):
    """Adam, equal to :class:`torch.optim.Adam` within rounding, and with it what a training step would do beside.

    One launch checks all gradients, one per parameter group updates weights and moments and, where wanted, the running
    average of the weights, an fp16 copy and the gradients. Nothing waits for the device, so a CUDA graph can capture it;
    the state is there after the first step. Rates may be numbers or 0-d float32 tensors on the parameters' device, which
    are read when the kernel runs.

    **Skipped steps.** Where a gradient is not finite, or a ``GradScaler`` or :attr:`idle` says so, a step changes no
    weight, moment, average or count; :attr:`skipped` counts those. Schedulers and ``global_step`` go on.

    **Average.** With ``ema_decay``, ``state[p]["ema"]`` is the exponential moving average of the weights after each step,
    free of the bias towards its start (:func:`lightning_nerf.ops.adam.adam_` gives the formula): usable after one step.
    Training goes on from the raw weights; :class:`lightning_nerf.callbacks.EMAWeights` evaluates the averaged ones.

    **fp16 copy.** A parameter with a :class:`~lightning_nerf.optim.HalfMirror` has the new value written there too.

    >>> import torch
    >>> from lightning_nerf import FusedAdam
    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = FusedAdam([weight], lr=0.1, ema_decay=0.9)
    >>> weight.square().sum().backward()
    >>> optimizer.step()
    >>> weight.data, optimizer.averaged()[weight]
    (tensor([0.9000]), tensor([0.9000]))

    Args:
        params: float32 tensors, or groups of them with options of their own, all on one device.
        lr: rate.
        betas: decay of the first and the second moment, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: L2 penalty.
        ema_decay: in [0, 1), or None for no average.
        ema_share: in (0, 1], share of all steps so far that the average spans at most; 1: ``ema_decay`` alone decides.
        ema_every: average each so many steps, over which the decay is ``ema_decay ** ema_every``. Each costs 8 bytes of
            traffic per weight, beside 28 for the rest.
        skip_non_finite: skip steps with an Inf or NaN in any gradient; else only a ``GradScaler`` can make one skipped.

    ``zero_grads``, an attribute, False at first: leave the gradients zero, in the same kernel. Under a ``GradScaler``
    gradients are otherwise left as they are, scaled.
    """

    _step_supports_amp_scaling = True  # a GradScaler then sets grad_scale and found_inf before step
    skips_bad_steps = True  # so that it gets no StepGuard
    writes_mirrors = True  # or they would be taken for stale after each step

    idle: Tensor | None = None
    """0-d float32 on the parameters' device: a step for which it is not 0 is skipped. Each step sets it to 1."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        ema_decay: float | None = None,
        ema_share: float = 1.0,
        ema_every: int = 1,
        skip_non_finite: bool = True,
    ) -> None:
        self.skip_non_finite = skip_non_finite
        self.zero_grads = False
        self._control: Tensor | None = None
        # "capturable" and "fused" as in torch.optim.Adam: step counts live on the parameters' device.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "ema_decay": ema_decay}
        average = {"ema_share": ema_share, "ema_every": ema_every}
        super().__init__(params, {**defaults, **average, "capturable": True, "fused": True})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in :class:`torch.optim.Optimizer`; checks its options and parameters."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        lr, betas = group["lr"], group["betas"]
        if isinstance(lr, Tensor):
            _expect("lr", list(lr.shape), lr.ndim == 0, "a number or a 0-d tensor")
        else:
            check_number("lr", lr, "[0, inf)")
        _expect("betas", betas, isinstance(betas, (tuple, list)) and len(betas) == 2, "two numbers in [0, 1)")
        for i, beta in enumerate(betas):
            check_number(f"betas[{i}]", beta, "[0, 1)")
        check_number("eps", group["eps"], "[0, inf)")
        check_number("weight_decay", group["weight_decay"], "[0, inf)")
        if group["ema_decay"] is not None:
            check_number("ema_decay", group["ema_decay"], "[0, 1)")
        check_number("ema_share", group["ema_share"], "(0, 1]")
        check_integer("ema_every", group["ema_every"], 1, 2**31 - 1)
        for i, p in enumerate(group["params"]):
            name = f"params[{i}] of group {group.get('name', len(self.param_groups) - 1)}"
            _expect(name, p.dtype, p.dtype is torch.float32, "torch.float32 (a HalfMirror serves fp16)")
            _expect(name, p.layout, p.layout is torch.strided and p.is_contiguous(), "a dense contiguous tensor")

    @property
    def skipped(self) -> Tensor:
        """How many steps were skipped: 0-d int32, on the parameters' device."""
        return self._device_control()[SKIPPED]

    def averaged(self) -> dict[Tensor, Tensor]:
        """Each parameter that has an average, with it."""
        return {p: state["ema"] for p, state in self.state.items() if "ema" in state}

    def state_dict(self) -> dict[str, Any]:
        """As of :class:`torch.optim.Adam`, with each parameter's ``ema`` and the number of ``skipped`` steps."""
        return {**super().state_dict(), "skipped": self.skipped.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, also on another device, or the state of a :class:`torch.optim.Adam`.

        Tensors are copied. Options are those of the state, but ``ema_decay``, ``ema_share``, ``ema_every`` and those that a
        foreign state lacks, are this optimizer's.
        """
        ours = self.param_groups
        super().load_state_dict(state_dict)
        for group, before in zip(self.param_groups, ours, strict=True):
            group.update({**before, **{name: value for name, value in group.items() if name not in _OWN}})
        averaged = {p for group in self.param_groups if group["ema_decay"] is not None for p in group["params"]}
        for p, state in list(self.state.items()):
            step = torch.as_tensor(state["step"], dtype=torch.float32, device=p.device)
            names = ["exp_avg", "exp_avg_sq", *(["ema"] if "ema" in state and p in averaged else [])]
            self.state[p] = {name: state[name].clone(memory_format=torch.contiguous_format) for name in names}
            self.state[p]["step"] = step.reshape(()).clone()
        self._device_control()[SKIPPED] = int(state_dict.get("skipped", 0))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in :class:`torch.optim.Optimizer`, without its 25 us of bookkeeping."""
        if not set_to_none:
            super().zero_grad(set_to_none=False)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step, for the parameters that have a gradient; returns what ``closure`` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        groups = [(g, params) for g in self.param_groups if (params := [p for p in g["params"] if p.grad is not None])]
        params = [p for _, group_params in groups for p in group_params]
        if not params:
            return loss
        grads = {p: _gradient(p) for p in params}
        states = {p: self._initialized(p, group) for group, members in groups for p in members}
        control = self._device_control()
        checks = self.skip_non_finite and found_inf is None
        if self.idle is not None:
            found_inf = self.idle if found_inf is None else found_inf + self.idle

        steps = [states[p]["step"] for p in params]
        adam_begin_(list(grads.values()), steps, control, check_grads=checks)
        for group, members in groups:
            halves = [_half_copy(p) for p in members]
            average = group["ema_decay"] is not None
            adam_(
                members,
                [grads[p] for p in members],
                [states[p]["exp_avg"] for p in members],
                [states[p]["exp_avg_sq"] for p in members],
                [states[p]["step"] for p in members],
                control,
                lr=_rate(group["lr"]),
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                emas=[states[p]["ema"] for p in members] if average else (),
                ema_decay=group["ema_decay"] if average else 0.0,
                ema_share=group["ema_share"],
                ema_every=group["ema_every"],
                halves=[control.new_empty(0, dtype=torch.float16) if h is None else h for h in halves]
                if any(h is not None for h in halves)
                else (),
                grad_scale=grad_scale,
                found_inf=found_inf,
                zero_grads=self.zero_grads,
                last=group is groups[-1][0],
            )
        if self.idle is not None:
            self.idle.fill_(1)
        torch.autograd.graph.increment_version(params)
        for p in params:
            if (mirror := HalfMirror.of(p)) is not None and mirror.writable(p) is not None:
                mirror.mark_written(p)
            if self.zero_grads and grads[p] is not p.grad:
                p.grad.zero_()  # type: ignore[union-attr]
        return loss

    def __getstate__(self) -> dict[str, Any]:
        own = {"skip_non_finite": self.skip_non_finite, "zero_grads": self.zero_grads, "_control": self._control}
        return {**super().__getstate__(), **own}

    def _initialized(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        if group["ema_decay"] is not None and "ema" not in state:
            state["ema"] = p.detach().clone()
        return state

    def _device_control(self) -> Tensor:
        device = self.param_groups[0]["params"][0].device
        if self._control is None:
            self._control = make_control(device)
        elif self._control.device != device:
            self._control = self._control.to(device)
        return self._control


def _gradient(p: Tensor) -> Tensor:
    """The parameter's gradient as the kernels want it."""
    grad: Tensor = p.grad  # type: ignore[assignment]
    _expect(
        "grad", grad.layout, grad.layout is torch.strided, "a dense gradient (torch.optim.SparseAdam takes sparse ones)"
    )
    return grad if grad.is_contiguous() else grad.contiguous()


def _half_copy(p: Tensor) -> Tensor | None:
    mirror = HalfMirror.of(p)
    return None if mirror is None else mirror.writable(p)


def _rate(lr: float | Tensor) -> float | Tensor:
    """A rate tensor on the CPU (as a checkpoint gives it) is as good as a number."""
    return float(lr) if isinstance(lr, Tensor) and lr.device.type == "cpu" else lr


def _expect(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise BadArgument(f"{name}: expected {expected}, got {value}")
