"""The interface of a radiance field."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nerf.arguments import Recorded
from lightning_nerf.checks import REALS, BadArgument, BadType, check_instance, check_number, check_tensor
from lightning_nerf.ops.sample_points import per_sample, sample_points
from lightning_nerf.scene_box import CONTRACTIONS, SceneBox, check_contraction, check_corners, check_front
from lightning_nerf.types import Densities, Evaluated, FieldOutput, FrameKernel, PackedSamples, Rays

WANTS = ("times", "cameras", "footprints")


class RadianceField(Recorded, nn.Module, ABC):
    """A function from positions (and directions, and what else it :attr:`wants`) to density and color.

    Subclasses implement :meth:`density` and :meth:`forward`. Both take plain tensors and any number of points, zero
    included, and return densities >= 0 per unit length of world space. The scene's box arrives by :meth:`bind`; it is saved
    in the buffers ``aabb`` and ``contraction``, and so travels with the checkpoint. A field that wants times gets the first
    and the last time of the training views by :meth:`bind_times`, saved in the buffer ``time_range``.

    >>> import torch
    >>> from lightning_nerf import FieldOutput, RadianceField, SceneBox
    >>> class Fog(RadianceField):
    ...     def density(self, positions):
    ...         return torch.ones(len(positions))
    ...     def forward(self, positions, directions):
    ...         return FieldOutput(self.density(positions), self.unit_positions(positions).clamp(0, 1))
    >>> fog = Fog()
    >>> fog.bind(SceneBox(torch.tensor([[-1.0, -1, -1], [1, 1, 1]])))
    >>> fog(torch.zeros(1, 3), torch.ones(1, 3)).rgb
    tensor([[0.5000, 0.5000, 0.5000]])
    """

    wants: Collection[str] = ()
    """What :meth:`forward` takes by keyword beside positions and directions: ``times`` [N] as the data has them,
    ``cameras`` [N] int64, the index of the training view (for codes of appearance), ``footprints`` [N], the side of a
    pixel at the sample in world units. :meth:`density` gets ``times`` and ``footprints`` of these; where nothing looks at
    a point, as in the update of an occupancy grid, no footprints. A field that does not want times is static. An instance
    may set it before it calls ``super().__init__()``."""

    ends_at_box = False
    """Whether the density is 0 wherever :meth:`unit_positions` lie outside of the unit cube."""

    free_arguments: Collection[str] = ()
    """Constructor arguments that may differ between a checkpoint and the field that takes it: the weights mean the same."""

    aabb: Tensor  # [2, 3]
    contraction: Tensor  # [] int8, index in CONTRACTIONS
    _affine: Tensor  # [2, 3] SceneBox.affine of aabb
    time_range: Tensor  # [2] first and last time; only of a field that wants times
    _time_span: Tensor  # [] last - first; inf for a range of a single time

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("aabb", torch.full((2, 3), float("nan"), dtype=torch.float32))
        self.register_buffer("contraction", torch.zeros((), dtype=torch.int8))
        self._box: SceneBox | None = None
        self.register_buffer("_affine", torch.full((2, 3), float("nan"), dtype=torch.float32), persistent=False)
        if isinstance(self.wants, str) or not isinstance(self.wants, Collection):
            raise BadType(f"{type(self).__name__}.wants: expected a list of names, got {self.wants!r}")
        unknown = [name for name in self.wants if name not in WANTS]
        if unknown:
            raise BadArgument(f"{type(self).__name__}.wants: expected some of {', '.join(WANTS)}, got {unknown[0]!r}")
        self.keeps_times: bool = "times" in self.wants
        self._known_times: tuple[float, float] | None = None
        if self.keeps_times:  # a static field's state_dict stays without it
            self.register_buffer("time_range", torch.full((2,), float("nan"), dtype=torch.float32))
            self.register_buffer("_time_span", torch.full((), float("nan"), dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def bind(self, scene_box: SceneBox) -> None:
        """Learn where the scene is; called before training. Buffers are written in place."""
        check_instance("scene_box", scene_box, SceneBox)
        check_tensor("scene_box.aabb", scene_box.aabb, (2, 3), REALS)
        check_corners("scene_box.aabb", scene_box.aabb)
        check_contraction("scene_box.contraction", scene_box.contraction)
        check_front("scene_box.aabb", scene_box)
        self._lay_over(scene_box)

    def _lay_over(self, scene_box: SceneBox) -> None:
        self.aabb.copy_(scene_box.aabb)
        self.contraction.fill_(CONTRACTIONS.index(scene_box.contraction))
        self._affine.copy_(SceneBox(self.aabb).affine())
        self._read_box()

    def _read_box(self) -> None:
        known = bool(self.aabb.isfinite().all())
        self._box = SceneBox(self.aabb, CONTRACTIONS[int(self.contraction)]) if known else None
        self._unit_length = self._box.unit_length() if self._box is not None else float("nan")

    @torch.no_grad()
    def bind_times(self, first: float, last: float) -> None:
        """Learn the first and the last time of the data; called before training, and of no effect on a static field.

        The buffer ``time_range`` is written in place. A field within a field is told by the outer one.
        """
        for name, time in [("first", first), ("last", last)]:
            check_number(name, time, "(-inf, inf)")
        if not first <= last:
            raise BadArgument(f"first, last: expected first <= last, got {first}, {last}")
        check_number("last - first", last - first, "[0, inf)")
        if self.keeps_times:
            self.time_range.copy_(torch.tensor([first, last], dtype=torch.float32))
            self._read_times()

    def _read_times(self) -> None:
        first, last = self.time_range.tolist()
        self._known_times = (first, last) if first <= last else None
        self._time_span.fill_(float("inf") if first == last else last - first)

    @property
    def knows_times(self) -> bool:
        """Whether the field knows the first and the last time of its data."""
        return self._known_times is not None

    def unit_times(self, times: Tensor) -> Tensor:
        """Times [N] as the data has them, from 0 at the first of the data to 1 at the last; beyond, below 0 or above 1.

        Exactly 0 at the first time. Where the data has a single time, 0. Differentiable.

        Raises:
            BadArgument: ``times`` has another shape.
            RuntimeError: the field knows no range; a fit calls :meth:`bind_times`, and a checkpoint brings it.
        """
        check_tensor("times", times, ("N",), REALS)
        if self._known_times is None:
            name = type(self).__name__
            if not self.keeps_times:
                raise RuntimeError(f"{name} keeps no times: name 'times' in wants, before super().__init__() is called")
            raise RuntimeError(f"{name} knows no range of times: call bind_times(first, last) first")
        return (times - self.time_range[0]) / self._time_span

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.setdefault(f"{prefix}contraction", torch.zeros((), dtype=torch.int8))  # of a version without contraction
        if self.keeps_times:  # of a version that told fields no range
            state_dict.setdefault(f"{prefix}time_range", self.time_range.clone())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if not 0 <= int(self.contraction) < len(CONTRACTIONS):
            raise BadArgument(f"{prefix}contraction: expected 0 to {len(CONTRACTIONS) - 1}, got {int(self.contraction)}")
        box = SceneBox(self.aabb.clone(), CONTRACTIONS[int(self.contraction)])
        if bool(box.aabb.isnan().all()):  # of a field that no scene was bound to
            self._lay_over(box)
        else:
            self.bind(box)
        if self.keeps_times:
            first, last = self.time_range.tolist()
            known = not (math.isnan(first) and math.isnan(last))
            if known and not (first <= last and last - first <= torch.finfo(torch.float32).max):
                raise BadArgument(f"{prefix}time_range: expected a first and a last time, got {first}, {last}")
            self._read_times()

    @property
    def is_bound(self) -> bool:
        """Whether the field knows its scene's box."""
        return self._box is not None

    @property
    def scene_box(self) -> SceneBox:
        """The box that the field is bound to. An error while no scene is bound."""
        if self._box is None:
            raise RuntimeError(f"{type(self).__name__} knows no scene box: call bind(scene_box) first")
        return self._box._replace(aabb=self.aabb)  # .to(device) gives the module another buffer

    @property
    def affine(self) -> Tensor:
        """[2, 3], factor and summand that map the scene's box to [0, 1]^3, without contraction."""
        _ = self.scene_box
        return self._affine

    @property
    def unit_length(self) -> float:
        """:meth:`SceneBox.unit_length`, known to the host: divide by it what a fresh network says of density."""
        _ = self.scene_box
        return self._unit_length

    def unit_positions(self, positions: Tensor) -> Tensor:
        """World positions [N, 3] in the unit cube of the scene's box, see :meth:`SceneBox.to_unit`."""
        return self.scene_box.to_unit(positions, self._affine)

    def unit_sigmas(self, positions: Tensor, footprints: Tensor) -> Tensor:
        """How far pixels spread in the unit cube, [N]: the standard deviation of squares of sides ``footprints`` [N].

        ``footprints`` are in world units, at world positions [N, 3]; see :meth:`SceneBox.unit_scale`. Not differentiable.
        """
        return footprints.detach() * (self.scene_box.unit_scale(positions, self._affine) / math.sqrt(12))

    @abstractmethod
    def density(self, positions: Tensor) -> Tensor:
        """Density [N] at positions [N, 3] (world space), and, by keyword, what the field wants of times and footprints."""

    @abstractmethod
    def forward(self, positions: Tensor, directions: Tensor) -> FieldOutput:
        """Density and color at positions [N, 3], seen along directions [N, 3] (any length), and what the field wants."""

    # -- along rays: what a field with fused kernels overrides ------------------------------------------------------

    def at_samples(self, rays: Rays, samples: PackedSamples, evaluated: Evaluated | None = None) -> FieldOutput:
        """:meth:`forward` in the middle of each of N packed samples; ``evaluated``: features that :meth:`query` left."""
        positions, directions, times = sample_points(rays, samples)
        return self(positions, directions, **self._wanted(rays, samples, times, WANTS))

    def query(self, rays: Rays, samples: PackedSamples, early_stop_eps: float = 0.0) -> Densities:
        """:meth:`density` in the middle of each sample, and features that :meth:`at_samples` need not compute again.

        See :class:`~lightning_nerf.types.Query`.
        """
        positions, _, times = sample_points(rays, samples)
        values = self.density(positions, **self._wanted(rays, samples, times, ("times", "footprints")))
        return Densities(values.float())

    def frame_kernel(self, rays: Rays) -> FrameKernel | None:
        """A kernel that renders rays like these, here and now, in one pass; None: there is none."""
        return None

    def _wanted(
        self, rays: Rays, samples: PackedSamples, times: Tensor | None, names: Collection[str]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        n_rays = len(rays.origins)
        for name in self.wants:
            if name not in names:
                continue
            if name == "times":
                value = times
            elif name == "cameras":
                value = None if rays.cameras is None else _of_ray("cameras", rays.cameras, samples, n_rays, torch.int64)
            else:
                value = None if rays.footprint is None else _of_ray("footprint", rays.footprint, samples, n_rays)
                value = None if value is None else value * (0.5 * (samples.t_starts + samples.t_ends))
            if value is None:
                raise BadArgument(f"rays: {type(self).__name__} wants {name}, which these rays do not have")
            found[name] = value
        return found


def _of_ray(name: str, values: Tensor, samples: PackedSamples, n_rays: int, dtype: torch.dtype = torch.float32) -> Tensor:
    check_tensor(f"rays.{name}", values, (n_rays,), dtype)  # others' values, or a neighbor's, would go unseen
    return per_sample(values, samples)
