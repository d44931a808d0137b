"""Whole frames from a field, an estimator and a renderer; no Lightning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_nerf.cameras.cameras import Cameras, image_rays
from lightning_nerf.capabilities import has
from lightning_nerf.checks import FLOATS, check_instance, check_integer, check_tensor
from lightning_nerf.ops.placement import checked_placement
from lightning_nerf.ops.visibility import prune_by
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.types import (
    FrameKernel,
    PackedSamples,
    Placement,
    Placer,
    Pruning,
    Query,
    Rays,
    Render,
    SampledField,
)

FUSED_SAMPLES = 2**25  # marched samples that a frame kernel takes at once, at most: 12 bytes each
BAND_RAYS = 2**20  # rays of a frame that exist at once, at most: some 150 bytes each while they are made
# The same on a CPU. Python obeys signals between calls of kernels only, and a slow CPU takes minutes for 2**20 rays; small
# bands also stay in its caches.
CPU_BAND_RAYS = 2**10


@runtime_checkable
class CountedField(Protocol):
    """A field whose work may end at a number of samples that the device alone knows.

    Its ``query`` and ``at_samples`` state ``@states("counted")``, so that an override has to state it again.
    """

    def ends_at_count(self, rays: Rays) -> bool:
        """Whether ``query`` and ``at_samples`` of rays like these, here and now, do no work behind ``offsets[-1]``."""
        ...


class FrameRenderer:
    """Renders any number of rays, and whole frames, exactly: no ray is left out. No gradient.

    In one kernel where the field has one and estimator and renderer do what it does (see ``frame_kernel``, ``pruning`` and
    ``is_plain``), with at most 400 MB of marched samples at once; else with at most ``max_samples`` of them. The host waits
    for a CUDA device to learn how many rays fit at once, and without kernel also how many samples are left of them, unless
    the field's work ends by itself at that number (see :class:`CountedField`).

    >>> import torch
    >>> from lightning_nerf import Cameras, FrameRenderer, InstantNGPField, OccupancyGrid, SceneBox, VolumeRenderer
    >>> box = SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    >>> field, grid = InstantNGPField(n_levels=2, log2_table_size=10), OccupancyGrid(resolution=8)
    >>> field.bind(box), grid.bind(box) is grid
    (None, True)
    >>> pose = torch.eye(4)[None, :3] + torch.tensor([0.0, 0, 0, 3]) * torch.tensor([[0.0], [0], [1]])
    >>> cameras = Cameras.of_one_size(pose, torch.tensor([8.0, 8, 4, 4]), 8, 8, near=0.1, far=9.0)
    >>> FrameRenderer(field, grid, VolumeRenderer()).frame(cameras, 0, background=torch.ones(3)).rgb.shape
    torch.Size([8, 8, 3])

    Args:
        field: where light is emitted and absorbed.
        estimator: where to look.
        renderer: from samples to pixels.
        max_samples: samples rendered at once; bounds the memory. >= 1.
    """

    def __init__(self, field: SampledField, estimator: Placer, renderer: Renderer, max_samples: int = 2**21) -> None:
        check_integer("max_samples", max_samples, 1, 2**31 - 1)
        self.field = field
        self.estimator = estimator
        self.renderer = renderer
        self.max_samples = max_samples

    @torch.no_grad()
    def rays(self, rays: Rays, background: Tensor | None = None) -> Render:
        """R rays; ``background`` is [3], or [R, 3]; None: black."""
        n, start = _checked_count(rays), 0
        if background is not None:
            check_tensor("background", background, (n, 3) if getattr(background, "ndim", 1) == 2 else (3,), FLOATS)
        kernel, pruning, counted = self.kernel(rays), self.estimator.pruning, self._is_counted(rays)
        capacity = self.max_samples
        if kernel is not None:  # frames find tens of samples a ray; rays with more take another round
            capacity = min(FUSED_SAMPLES, max(capacity, 64 * n))
        size = capacity
        if self.estimator.fixed_count is not None:
            size = max(1, capacity // self.estimator.fixed_count)
        parts: list[Render] = []
        while start < n or not parts:
            chunk = rays.map(lambda t: t[start : start + size])  # noqa: B023
            chunk, candidates = self._fitting(chunk, capacity)
            count = len(chunk.origins)
            behind = background[start : start + count] if background is not None and background.ndim == 2 else background
            if kernel is not None and pruning is not None and candidates is not None:
                parts.append(_fused(kernel, chunk, candidates, pruning, behind))
            else:
                parts.append(self._op_by_op(chunk, candidates, behind, counted))
            start += max(1, count)
            if self.estimator.fixed_count is None:
                size = min(capacity, count + count // 2 + 1)
        return _joined(parts)

    def kernel(self, rays: Rays) -> FrameKernel | None:
        """The field's kernel, if it does what this estimator and this renderer do."""
        if torch.are_deterministic_algorithms_enabled():  # its sums come in the order in which rays end
            return None
        plain = self.renderer.is_plain and self.estimator.pruning is not None
        return self.field.frame_kernel(rays) if plain else None

    def bands(
        self,
        cameras: Cameras,
        index: int,
        background: Tensor | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Iterator[Render]:
        """The frame of one camera, in bands of pixels row by row, each finished when it comes.

        Args:
            cameras: on the device that renders.
            index: which of them.
            background: [3]; None: black.
            shape: its height and width, where the caller knows them: reading them waits for the device.
        """
        if background is not None:  # one for each ray would begin anew with each band
            check_tensor("background", background, (3,), FLOATS)
        height, width = cameras.shape(index) if shape is None else shape
        size = min(BAND_RAYS, CPU_BAND_RAYS) if cameras.c2w.device.type == "cpu" else BAND_RAYS
        for start in range(0, height * width, size):
            stop = min(start + size, height * width)
            yield self.rays(image_rays(cameras, index, start, stop, (height, width)), background)

    def frame(
        self,
        cameras: Cameras,
        index: int,
        background: Tensor | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Render:
        """A whole frame: rgb [H, W, 3], opacity, depth and n_samples [H, W], extras [H, W, k]; see :meth:`bands`."""
        check_instance("cameras", cameras, Cameras)
        height, width = cameras.shape(index) if shape is None else shape
        render = _joined(list(self.bands(cameras, index, background, (height, width))))
        return Render(
            render.rgb.view(height, width, 3),
            render.opacity.view(height, width),
            render.depth.view(height, width),
            render.n_samples.view(height, width),
            {name: value.view(height, width, -1) for name, value in render.extras.items()},
        )

    def _fitting(self, rays: Rays, capacity: int) -> tuple[Rays, PackedSamples | None]:
        """The first of these rays, as many as have candidates for ``capacity``, at least one; and the candidates."""
        n = len(rays.origins)
        if self.estimator.fixed_count is not None:  # the number of rays says it already
            return rays, None
        samples = self._placed(rays, capacity=capacity).samples
        # A march of fixed capacity says how many rays fit, and how many samples they have.
        fit, count = _read(torch.stack([samples.kept.sum(), samples.offsets[-1].long()]))
        if fit == 0 < n:  # a ray with more samples than that is taken by itself
            rays = rays.map(lambda t: t[:1])
            return rays, self._placed(rays).samples
        t_starts, t_ends, ray_indices, offsets, kept = samples
        samples = PackedSamples(t_starts[:count], t_ends[:count], ray_indices[:count], offsets[: fit + 1], kept[:fit])
        return rays if fit == n else rays.map(lambda t: t[:fit]), samples

    def _is_counted(self, rays: Rays) -> bool:
        field = self.field
        stated = has(field.query, "counted") and has(field.at_samples, "counted")
        return stated and isinstance(field, CountedField) and field.ends_at_count(rays)

    def _placed(self, rays: Rays, query: Query | None = None, capacity: int | None = None) -> Placement:
        placement = self.estimator.place(rays, query, capacity=capacity)
        return checked_placement(placement, len(rays.origins), type(self.estimator).__name__)

    def _op_by_op(self, rays: Rays, candidates: PackedSamples | None, background: Tensor | None, counted: bool) -> Render:
        """As in training: place, evaluate, composite. Candidates are not placed once more where pruning them is all.

        ``counted``: lists are as long as can be, and nothing waits for the number of samples that are left.
        """
        pruning, each = self.estimator.pruning, self.estimator.fixed_count
        if candidates is not None and pruning is not None:
            capacity = len(candidates.t_starts) if counted else None
            placement = prune_by(self.field.query, rays, candidates, pruning, capacity)
        else:
            capacity = len(rays.origins) * each if counted and each is not None else None
            placement = self._placed(rays, self.field.query, capacity)
        output = self.field.at_samples(rays, placement.samples, placement.evaluated)
        return self.renderer(output, placement.samples, background=background)


def _read(numbers: Tensor) -> list[int]:
    """Numbers for the host, which waits for them."""
    return numbers.tolist()


def _checked_count(rays: Rays) -> int:
    """R. What is cut into chunks has to have R entries: a slice of less would be taken for other rays' values."""
    check_instance("rays", rays, Rays)
    check_tensor("rays.origins", rays.origins, ("R", 3), torch.float32)
    n = len(rays.origins)
    for name, value in rays._asdict().items():
        if value is not None or name in ("directions", "near", "far"):
            shape = (n, 3) if name in ("origins", "directions") else (n,)
            check_tensor(f"rays.{name}", value, shape, torch.int64 if name == "cameras" else torch.float32)
    return n


def _fused(
    kernel: FrameKernel, rays: Rays, candidates: PackedSamples, pruning: Pruning, background: Tensor | None
) -> Render:
    render = kernel(rays, candidates, pruning)
    if background is None:
        return render
    return render._replace(rgb=torch.addcmul(render.rgb, (1 - render.opacity)[:, None], background.float()))


def _joined(parts: list[Render]) -> Render:
    if len(parts) == 1:
        return parts[0]
    extras = {name: torch.cat([p.extras[name] for p in parts]) for name in parts[0].extras}
    rgb, opacity, depth, n_samples = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("rgb", "opacity", "depth", "n_samples")
    )
    return Render(rgb, opacity, depth, n_samples, extras)
