"""The types that flow between data, estimators, fields, renderers, losses and modules.

Every type is a NamedTuple of tensors: Lightning moves them between devices and torch.compile takes them as they are. The
Protocols at the end say what parts ask of each other. Shape letters, here and everywhere in this project:

    R  rays           N  packed samples (a capacity: the true count is ``offsets[-1]``)
    C  channels       V  views (images)       P  pixels of all images
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from io import BytesIO
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from lightning_nerf.collate import collate_rays
from lightning_nerf.scene_box import SceneBox as SceneBox


class Rays(NamedTuple):
    """R rays ``origins + t * directions``, each restricted to ``near <= t < far``.

    A ray with ``far <= near`` is inactive: every op gives it zero samples. A batch of a fixed capacity marks its unused
    rays so. Directions need not have unit length; t is in units of their length.

    >>> import torch
    >>> from lightning_nerf import Rays
    >>> rays = Rays(torch.zeros(4, 3), torch.ones(4, 3), near=torch.zeros(4), far=torch.full((4,), 6.0))
    >>> rays.map(lambda t: t[:2]).far
    tensor([6., 6.])
    """

    origins: Tensor  # [R, 3] float32
    directions: Tensor  # [R, 3] float32
    near: Tensor  # [R] float32
    far: Tensor  # [R] float32
    times: Tensor | None = None  # [R] float32, for dynamic scenes
    cameras: Tensor | None = None  # [R] int64, index of the camera, for codes of appearance and refined poses
    footprint: Tensor | None = None  # [R] float32, side of the pixel at t = 1, for anti-aliasing

    def map(self, function: Callable[[Tensor], Tensor]) -> Rays:
        """``function`` of each tensor, say ``lambda t: t[:100]``."""
        return Rays(*(None if value is None else function(value) for value in self))  # type: ignore[arg-type]


class PackedSamples(NamedTuple):
    """Samples of all rays in one list, ray by ray (CSR): ray r owns the entries ``offsets[r]`` to ``offsets[r + 1]``.

    N is either the exact count (``offsets[-1] == N``) or a fixed capacity whose tail is unused. In the tail ``t = 0`` and
    ``ray_indices = 0``, and every op writes exactly 0 there, values and gradients, whatever its inputs hold.

    ``kept`` is False for a ray whose samples did not fit in the capacity. It owns no samples here, yet is not an empty ray:
    losses and metrics must leave it out.

    >>> import torch
    >>> from lightning_nerf import PackedSamples
    >>> t = torch.tensor([1.0, 2.0, 1.5])  # two samples on ray 0, none on ray 1, one on ray 2
    >>> offsets, rays = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 0, 2], dtype=torch.int32)
    >>> PackedSamples(t, t + 0.5, rays, offsets, kept=torch.ones(3, dtype=torch.bool)).offsets.diff()
    tensor([2, 0, 1], dtype=torch.int32)
    """

    t_starts: Tensor  # [N] float32
    t_ends: Tensor  # [N] float32
    ray_indices: Tensor  # [N] int32
    offsets: Tensor  # [R + 1] int32
    kept: Tensor  # [R] bool


class Evaluated(NamedTuple):
    """Features that a field computed when asked for densities, for its own later use; never differentiated."""

    features: Tensor  # [M, k] rows, of which only those named by sources need to hold anything
    sources: Tensor | None  # [N] int32, the row of each sample; None: row i is sample i's


class Densities(NamedTuple):
    """A field's answer to a :class:`Query`: densities of N samples and, where the field keeps any, features of them.

    >>> import torch
    >>> from lightning_nerf import Densities
    >>> Densities(torch.tensor([0.0, 3.0])).features is None
    True
    """

    values: Tensor  # [N] >= 0, per unit length
    features: Tensor | None = None  # [N, k]


class Query(Protocol):
    """Densities of samples along rays: the only way in which an estimator asks for a field.

    >>> import torch
    >>> from lightning_nerf import Densities, OccupancyGrid, Rays
    >>> def fog(rays, samples, early_stop_eps=0.0):
    ...     return Densities(torch.full_like(samples.t_starts, 2.0))
    >>> grid = OccupancyGrid(resolution=8, step_size=0.5).bind([-1, -1, -1, 1, 1, 1])
    >>> rays = Rays(torch.tensor([[0.0, 0, -2]]), torch.tensor([[0.0, 0, 1]]), torch.zeros(1), torch.full((1,), 9.0))
    >>> len(grid.place(rays, fog).samples.t_starts)
    4
    """

    def __call__(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """Densities of N samples. Differentiable in the field's parameters where gradients are enabled.

        Behind the point where a ray keeps less than ``early_stop_eps`` of its light they may be anything finite.
        """
        ...


class FieldOutput(NamedTuple):
    """A radiance field's output at N points. ``extras`` are further per-sample channels, composited with the colors.

    ``per_sample`` holds what losses read of each sample, and nothing composites.

    >>> import torch
    >>> from lightning_nerf import FieldOutput
    >>> FieldOutput(torch.ones(2), torch.rand(2, 3), {"label": torch.zeros(2, 1)}).extras["label"].shape
    torch.Size([2, 1])
    """

    density: Tensor  # [N] >= 0, per unit length
    rgb: Tensor  # [N, 3] in [0, 1]
    extras: dict[str, Tensor] = {}  # name -> [N, k]
    per_sample: dict[str, Tensor] = {}  # name -> [N, k]


class Round(NamedTuple):
    """Samples of an earlier round of placing, with the weights that they got; the weights have gradients.

    >>> from lightning_nerf import Placement, Round
    >>> Round._fields, Placement._field_defaults["rounds"]
    (('samples', 'weights', 'output', 'edges'), ())
    """

    samples: PackedSamples
    weights: Tensor  # [N]
    output: FieldOutput | None = None  # of the estimator's own field at ``samples``; None: the module's field is asked
    edges: Tensor | None = None  # see Placement


class Placement(NamedTuple):
    """An estimator's answer: the samples to evaluate, and what a loss or the field may use of how they were found.

    >>> from lightning_nerf import Placement
    >>> Placement._fields
    ('samples', 'rounds', 'evaluated', 'edges')
    """

    samples: PackedSamples
    rounds: tuple[Round, ...] = ()  # from the first to the last before ``samples``
    evaluated: Evaluated | None = None  # features of ``samples``
    edges: Tensor | None = None
    """[K, n + 1] where K rays have n samples each, which touch: where these end, from 0 at near to 1 at far, in the
    spacing of the estimator. Entry k n + i of ``samples`` lies between edges i and i + 1 of row k; unused rows come
    last."""


class Pruning(NamedTuple):
    """Thresholds by which an estimator drops samples.

    >>> import torch
    >>> from lightning_nerf import OccupancyGrid
    >>> OccupancyGrid(early_stop_eps=1e-3, alpha_threshold=0).pruning
    Pruning(early_stop_eps=0.001, alpha_thre=tensor(0.))
    """

    early_stop_eps: float  # samples behind which less light than this remains
    alpha_thre: Tensor  # [] float32, samples of lower opacity


class Render(NamedTuple):
    """A renderer's output for R rays; per-ray outputs are always computed and always fully shaped.

    A view has [H, W] in place of [R]; a notebook shows it as a picture.

    >>> import torch
    >>> from lightning_nerf import Render
    >>> Render(torch.ones(5, 3), torch.zeros(5), torch.zeros(5), torch.zeros(5, dtype=torch.int32)).weights is None
    True
    """

    rgb: Tensor  # [R, 3], background included
    opacity: Tensor  # [R] sum of weights, in [0, 1]
    depth: Tensor  # [R] sum of weight * t_mid (not divided by the opacity)
    n_samples: Tensor  # [R] int32, samples composited before early termination
    extras: dict[str, Tensor] = {}  # name -> [R, k]
    weights: Tensor | None = None  # [N], only where asked for

    def _repr_png_(self) -> bytes | None:
        """The colors of a view, rgb [H, W, 3], for notebooks; None for rays that are no picture."""
        if self.rgb.ndim != 3:
            return None
        from PIL import Image

        colors = (self.rgb.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        Image.fromarray(colors.numpy()).save(file := BytesIO(), "PNG")
        return file.getvalue()


class RenderedRound(NamedTuple):
    """An earlier round of placing as a loss sees it; made only where a loss states ``needs_rounds``.

    >>> from lightning_nerf import RenderedRound
    >>> RenderedRound._fields
    ('samples', 'output', 'render')
    """

    samples: PackedSamples
    output: FieldOutput  # at ``samples``
    render: Render  # by the module's renderer, on the step's background


class RayBatch(NamedTuple):
    """Rays with their ground truth, as a data module draws them.

    >>> import torch
    >>> from lightning_nerf import RayBatch, Rays
    >>> rays = Rays(torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4), torch.ones(4))
    >>> RayBatch(rays, rgb=torch.rand(4, 3)).alpha is None
    True
    """

    rays: Rays
    rgb: Tensor  # [R, 3] in [0, 1]; with alpha, not yet composited (straight alpha)
    alpha: Tensor | None = None  # [R] in [0, 1], None where the images have none
    mask: Tensor | None = None  # [R] bool, False: not a training ray (inactive); None: all rays count
    depth: Tensor | None = None  # [R] t at which the ray meets what was measured, 0: not known; only where a loss wants it

    def map(self, function: Callable[[Tensor], Tensor]) -> RayBatch:
        """``function`` of each tensor, those of the rays too."""
        rest = (None if value is None else function(value) for value in self[1:])
        return RayBatch(self.rays.map(function), *rest)  # type: ignore[arg-type]


# As torch's documentation of default_collate says. Here, so that a DataLoader's worker processes know it, too.
default_collate_fn_map.update({Rays: collate_rays, RayBatch: collate_rays})


class Step(NamedTuple):
    """All that a :class:`~lightning_nerf.losses.Loss` may see of a training step.

    >>> from lightning_nerf import Step
    >>> Step._fields
    ('batch', 'background', 'placement', 'output', 'render', 'logs', 'rounds', 'field', 'key')
    """

    batch: RayBatch
    background: Tensor  # [3] or [R, 3]
    placement: Placement
    output: FieldOutput  # at the samples of ``placement``
    render: Render
    logs: dict[str, Tensor]  # device scalars by name; a loss may add its own
    rounds: tuple[RenderedRound, ...] = ()  # earlier rounds of ``placement``, where a loss needs them
    field: SampledField | None = None  # the module's, for losses that evaluate it once more
    key: Tensor | None = None  # [3] int64: seed, rank and step, for draws of a loss's own

    @property
    def counts(self) -> Tensor:
        """[R] bool: rays that count in a loss, those of the batch's mask whose samples fit."""
        kept, mask = self.placement.samples.kept, self.batch.mask
        return kept if mask is None else kept & mask


class FrameKernel(Protocol):
    """Renders rays in one pass from candidates: what pruning, the field and a plain renderer would give, up to rounding."""

    def __call__(self, rays: Rays, candidates: PackedSamples, pruning: Pruning) -> Render:
        """R rays without gradient and without background."""
        ...


@runtime_checkable
class RoundField(Protocol):
    """A field as an estimator owns one for a round of its own; every ``RadianceField`` is one."""

    def bind(self, scene_box: SceneBox) -> None:
        """Learn where the scene is."""
        ...

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """See :class:`Query`."""
        ...

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """Density and color in the middle of each sample."""
        ...


class SampledField(Protocol):
    """A field as a renderer of frames asks for it."""

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """See :class:`Query`."""
        ...

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """Density and color in the middle of each sample."""
        ...

    def frame_kernel(self, rays: Rays) -> FrameKernel | None:
        """The kernel for rays like these, if there is one."""
        ...


@runtime_checkable
class WarpedField(Protocol):
    """A field that sees a canonical scene through a warp."""

    def offsets(self, positions: Tensor, times: Tensor) -> Tensor:
        """What the warp adds to positions [N, 3] at times [N]: [N, 3], in thirds of the box's longest side."""
        ...


@runtime_checkable
class NoisyField(Protocol):
    """A field that can have noise on what rays see of its density. A field that does not state ``is_noisy`` has none."""

    wants: Collection[str]

    @property
    def is_noisy(self) -> bool:
        """Whether, now, densities along rays have noise that those of :meth:`density` have not."""
        ...

    def density(self, positions: Tensor, **wanted: Tensor) -> Tensor:
        """Density [N] without noise at positions [N, 3], given by keyword what the field wants."""
        ...


@runtime_checkable
class MeasuredField(Protocol):
    """A field that knows how large its scene is; every ``RadianceField`` is one."""

    @property
    def unit_length(self) -> float:
        """A third of the longest side of the scene's box, in world units."""
        ...


@runtime_checkable
class EncodedField(MeasuredField, Protocol):
    """A field whose encoding a loss may ask for."""

    def encoded(self, positions: Tensor, times: Tensor | None = None) -> Tensor:
        """Features [N, F] of positions [N, 3] in world space, at times [N]; differentiable in the encoding's parameters."""
        ...


def has_encoding(field: object) -> TypeGuard[EncodedField]:
    """Whether a bound field is an :class:`EncodedField`. A field that hands on another's encoding states ``is_encoded``."""
    return isinstance(field, EncodedField) and bool(getattr(field, "is_encoded", True))


class Placer(Protocol):
    """An estimator as a renderer of frames asks for it."""

    fixed_count: int | None

    @property
    def pruning(self) -> Pruning | None:
        """The thresholds by which :meth:`place` drops candidates, if that is all it does with densities."""
        ...

    def place(
        self,
        rays: Rays,
        query: Query | None = None,
        *,
        key: Tensor | None = None,
        capacity: int | None = None,
        march_capacity: int | None = None,
    ) -> Placement:
        """Place samples on rays."""
        ...
