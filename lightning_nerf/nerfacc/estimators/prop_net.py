"""Proposal networks: cheap fields that say where along its ray to evaluate the costly one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_nerf.checks import FLOATS, BadArgument, check_returned, check_same_device, check_tensor
from lightning_nerf.nerfacc.data_specs import RayIntervals
from lightning_nerf.nerfacc.errors import NerfAccState, argument_errors
from lightning_nerf.nerfacc.estimators.base import AbstractEstimator
from lightning_nerf.nerfacc.pdf import importance_sampling, searchsorted
from lightning_nerf.nerfacc.volrend import render_transmittance_from_density

SamplingType = Literal["uniform", "lindisp"]
PropSigmaFn = Callable[[Tensor, Tensor], Tensor]


class PropNetEstimator(AbstractEstimator):
    """Places samples where a chain of proposal networks finds density, and trains these networks.

    Samples are float32, whatever torch's default dtype.

    Args:
        optimizer: of the networks' parameters, for :meth:`update_every_n_steps`.
        scheduler: of its learning rate; :meth:`update_every_n_steps` steps it in each training step.

    Source: Barron et al., "Mip-NeRF 360: unbounded anti-aliased neural radiance fields", CVPR 2022.

    >>> estimator = nerfacc.PropNetEstimator()
    >>> def wall(t_starts, t_ends):  # stands between t = 2 and t = 3
    ...     t = (t_starts + t_ends) / 2
    ...     return 5.0 * ((t > 2) & (t < 3))
    >>> t_starts, t_ends = estimator.sampling([wall], [32], 8, n_rays=1, near_plane=1.0, far_plane=5.0)
    >>> bool((t_ends[0, :-1] > 2).all() & (t_starts[0, :-1] < 3).all())
    True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.scheduler = scheduler
        # What the last sampling with gradients has left for the loss: each network's edges and distribution function; last
        # the edges of the samples.
        self.prop_cache: list[tuple[RayIntervals, Tensor | None]] = []

    @argument_errors
    @torch.no_grad()
    def sampling(
        self,
        prop_sigma_fns: Sequence[PropSigmaFn],
        prop_samples: Sequence[int],
        num_samples: int,
        n_rays: int,
        near_plane: float,
        far_plane: float,
        sampling_type: SamplingType = "lindisp",
        stratified: bool = False,
        requires_grad: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Place samples on R rays where the networks find density.

        Args:
            prop_sigma_fns: a function of t_starts [R, S] and t_ends [R, S] for each network, which gives the densities
                [R, S] >= 0 of these intervals.
            prop_samples: S for each network.
            num_samples: S of the samples returned.
            n_rays: R.
            near_plane, far_plane: limits of t; > 0 with "lindisp".
            sampling_type: the measure in which intervals of equal density are equally long: t ("uniform") or 1 / t
                ("lindisp").
            stratified: jitter the edges.
            requires_grad: keep the networks' graphs for :meth:`compute_loss` or :meth:`update_every_n_steps`, in place of
                those that an earlier call has kept.

        Returns:
            ``(t_starts [R, num_samples], t_ends [R, num_samples])``, float32. Not differentiable.

        Raises:
            NerfAccArgument: an argument, or what a function returned, is wrong.
        """
        if len(prop_sigma_fns) != len(prop_samples):
            raise BadArgument(
                f"prop_samples: expected one number for each of {len(prop_sigma_fns)} functions, got {len(prop_samples)}"
            )
        if n_rays < 0:
            raise BadArgument(f"n_rays: expected >= 0, got {n_rays}")
        for name, numbers in (("prop_samples", prop_samples), ("num_samples", [num_samples])):
            if any(number < 0 for number in numbers):
                raise BadArgument(f"{name}: expected >= 0, got {min(numbers)}")
        if requires_grad:
            self.prop_cache.clear()
        cdfs = torch.linspace(0.0, 1.0, 2, dtype=torch.float32, device=self.device).repeat(n_rays, 1)
        intervals = RayIntervals(vals=cdfs)
        for sigma_fn, samples in zip(prop_sigma_fns, prop_samples, strict=True):
            intervals, _ = importance_sampling(intervals, cdfs, samples, stratified)
            t_vals = _transform_stot(sampling_type, intervals.vals, near_plane, far_plane)
            t_starts, t_ends = t_vals[..., :-1], t_vals[..., 1:]
            with torch.set_grad_enabled(requires_grad):
                sigmas = sigma_fn(t_starts, t_ends)
                check_returned("prop_sigma_fns", sigmas, tuple(t_starts.shape), device=t_starts.device)
                cdfs = _cdfs(render_transmittance_from_density(t_starts, t_ends, sigmas)[0])
            if requires_grad:
                self.prop_cache.append((intervals, cdfs))
        intervals, _ = importance_sampling(intervals, cdfs.detach(), num_samples, stratified)
        if requires_grad:
            self.prop_cache.append((intervals, None))
        t_vals = _transform_stot(sampling_type, intervals.vals, near_plane, far_plane)
        return t_vals[..., :-1], t_vals[..., 1:]

    @argument_errors
    @torch.enable_grad()
    def compute_loss(self, trans: Tensor, loss_scaler: float = 1.0) -> Tensor:
        """Compute how much of the field's weights the networks' histograms do not cover; see :func:`_pdf_loss`.

        Uses up what :meth:`sampling` with ``requires_grad`` has kept; without it the loss is 0.

        Args:
            trans: [R, S] transmittance in front of the samples; no gradient flows into it.
            loss_scaler: factor.

        Returns:
            [] the sum over networks of the mean over rays and intervals. Differentiable in what the networks gave.
        """
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        if not self.prop_cache:
            return loss
        intervals, _ = self.prop_cache[-1]
        edges = intervals.vals
        check_tensor("trans", trans, (*edges.shape[:-1], edges.shape[-1] - 1), FLOATS)
        check_same_device(intervals=edges, trans=trans)
        self.prop_cache.pop()
        cdfs = _cdfs(trans.detach())
        while self.prop_cache:
            prop_intervals, prop_cdfs = self.prop_cache.pop()
            assert prop_cdfs is not None
            excess = _pdf_loss(intervals, cdfs, prop_intervals, prop_cdfs)
            loss = loss + excess.sum() / max(excess.numel(), 1)
        return loss * loss_scaler

    @argument_errors
    @torch.enable_grad()
    def update_every_n_steps(self, trans: Tensor, requires_grad: bool = False, loss_scaler: float = 1.0) -> float:
        """Train the networks in those steps that sampled with gradients; step the scheduler in all.

        Args:
            trans: [R, S] transmittance in front of the samples.
            requires_grad: as in this step's :meth:`sampling`.
            loss_scaler: factor of the loss.

        Returns:
            The loss, 0 without ``requires_grad``. The host waits for it.

        Raises:
            NerfAccState: there is no optimizer, or :meth:`sampling` with ``requires_grad`` has not come first.
        """
        if requires_grad:
            return self._update(trans=trans, loss_scaler=loss_scaler)
        if self.scheduler is not None:
            self.scheduler.step()
        return 0.0

    @torch.enable_grad()
    def _update(self, trans: Tensor, loss_scaler: float = 1.0) -> float:
        if self.optimizer is None:
            raise NerfAccState("PropNetEstimator has no optimizer: pass one, or use compute_loss")
        if not self.prop_cache:
            raise NerfAccState("nothing to learn from: call sampling with requires_grad=True first")
        loss = self.compute_loss(trans, loss_scaler)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss.item()


def get_proposal_requires_grad_fn(target: float = 5.0, num_steps: int = 1000) -> Callable[[int], bool]:
    """Make a function of the step that tells whether the proposal networks learn in it.

    They learn in nearly each step at first, and ever less often up to step ``num_steps``; from then on about ``target``
    steps lie between.

    >>> learns = nerfacc.estimators.prop_net.get_proposal_requires_grad_fn(target=2.0, num_steps=10)
    >>> [step for step in range(30) if learns(step)]
    [1, 2, 3, 4, 6, 8, 11, 14, 17, 20, 23, 26, 29]
    """
    steps_since_last_grad = 0

    def proposal_requires_grad_fn(step: int) -> bool:
        nonlocal steps_since_last_grad
        requires_grad = steps_since_last_grad > min(step / num_steps, 1.0) * target
        steps_since_last_grad = 1 if requires_grad else steps_since_last_grad + 1
        return requires_grad

    return proposal_requires_grad_fn


def _cdfs(trans: Tensor) -> Tensor:
    """The distribution function at S + 1 edges, from the transmittance at the first S; at the last it is 1."""
    return 1.0 - torch.nn.functional.pad(trans, (0, 1))


def _transform_stot(transform_type: SamplingType, s_vals: Tensor, t_min: float | Tensor, t_max: float | Tensor) -> Tensor:
    """t in [t_min, t_max] of s in [0, 1]: linear, or with 1 / t linear in s."""
    for name, t in (("near_plane", t_min), ("far_plane", t_max)):
        if not isinstance(t, Tensor) and (math.isnan(t) or (transform_type == "uniform" and math.isinf(t))):
            raise BadArgument(f"{name}: expected a finite number, got {t}")
    if transform_type == "uniform":
        return s_vals * t_max + (1 - s_vals) * t_min
    if transform_type != "lindisp":
        raise BadArgument(f'sampling_type: expected "uniform" or "lindisp", got {transform_type!r}')
    for name, t in (("near_plane", t_min), ("far_plane", t_max)):
        if not isinstance(t, Tensor) and not t > 0:
            raise BadArgument(f'{name}: expected > 0 with "lindisp", got {t}')
    return 1 / (s_vals * (1 / t_max) + (1 - s_vals) * (1 / t_min))


def _pdf_loss(
    segments_query: RayIntervals,
    cdfs_query: Tensor,
    segments_key: RayIntervals,
    cdfs_key: Tensor,
    eps: float = 1e-7,
) -> Tensor:
    """By how much the weight w of each query interval exceeds that of the key intervals which touch it: squared, over w.

    Args:
        segments_query: [R, S + 1] edges, or flattened.
        cdfs_query: of the same shape, the distribution function at them.
        segments_key, cdfs_key: likewise; the gradient flows into ``cdfs_key``.
        eps: added to w in the denominator.

    Returns:
        [R, S], or one number per interval where flattened.

    Source: Barron et al., "Mip-NeRF 360", CVPR 2022, equation 13.
    """
    left, right = searchsorted(segments_key, segments_query)
    if segments_query.vals.ndim > 1:
        w = cdfs_query.diff()
        left, right = left[..., :-1], right[..., 1:]
    else:
        is_left, is_right = segments_query.is_left, segments_query.is_right
        if is_left is None or is_right is None:
            raise BadArgument("segments_query: expected is_left and is_right with flattened intervals")
        w = cdfs_query[is_right] - cdfs_query[is_left]
        left, right = left[is_left], right[is_right]
    outer = cdfs_key.gather(-1, right) - cdfs_key.gather(-1, left)
    return (w - outer).clamp(min=0) ** 2 / (w + eps)


def _outer(t0_starts: Tensor, t0_ends: Tensor, t1_starts: Tensor, t1_ends: Tensor, y1: Tensor) -> Tensor:
    """The sum of ``y1`` [..., S1] over the intervals that touch each of the intervals 0, [..., S0]."""
    sums = torch.nn.functional.pad(y1.cumsum(-1), (1, 0))
    last = y1.shape[-1] - 1
    low = torch.searchsorted(t1_starts.contiguous(), t0_starts.contiguous(), right=True).sub(1).clamp(0, last)
    high = torch.searchsorted(t1_ends.contiguous(), t0_ends.contiguous(), right=True).clamp(0, last)
    return sums[..., 1:].gather(-1, high) - sums[..., :-1].gather(-1, low)


def _lossfun_outer(t: Tensor, w: Tensor, t_env: Tensor, w_env: Tensor) -> Tensor:
    """:func:`_pdf_loss` of histograms: edges ``t`` [..., S + 1] with weights ``w`` [..., S], and those that cover it."""
    outer = _outer(t[..., :-1], t[..., 1:], t_env[..., :-1], t_env[..., 1:], w_env)
    return (w - outer).clamp(min=0) ** 2 / (w + torch.finfo(t.dtype).eps)
