"""What flows between estimators, fields, renderers and modules.

Every type is a NamedTuple of tensors: Lightning moves them between devices and torch.compile takes them as they are.
Shape letters, here and everywhere in this project:

    R  rays           N  packed samples (a capacity: the true count is ``offsets[-1]``)
    C  channels       V  views (images)       H, W  image height and width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Rays(NamedTuple):
    """R rays ``origins + t * directions``, each restricted to ``near <= t < far``.

    A ray with ``far <= near`` is inactive: every op gives it zero samples. A batch of a fixed capacity marks its unused
    rays so. Directions need not have unit length; t is in units of their length.
    """

    origins: Tensor  # [R, 3] float32
    directions: Tensor  # [R, 3] float32
    near: Tensor  # [R] float32
    far: Tensor  # [R] float32
    times: Tensor | None = None  # [R] float32, for dynamic scenes

    def map(self, function: Callable[[Tensor], Tensor]) -> Rays:
        """``function`` of each tensor, say ``lambda t: t[:100]``."""
        times = None if self.times is None else function(self.times)
        return Rays(function(self.origins), function(self.directions), function(self.near), function(self.far), times)


class Evaluated(NamedTuple):
    """What a field computed of samples when asked for their densities, for its own later use; never differentiated."""

    features: Tensor  # [M, k] rows, of which only those named by sources need to hold anything
    sources: Tensor | None  # [N] int32, the row of each sample; None: row i is sample i's


class PackedSamples(NamedTuple):
    """Samples of all rays in one list, ray by ray (CSR): ray r owns the entries ``offsets[r]`` to ``offsets[r + 1]``.

    N is either the exact count (``offsets[-1] == N``) or a fixed capacity whose tail is unused. In the tail ``t = 0`` and
    ``ray_indices = 0``, and every op writes exactly 0 there, values and gradients, whatever its inputs hold.

    ``kept`` is False for a ray whose samples did not fit in the capacity. It owns no samples here, yet is not an empty ray:
    losses and metrics must leave it out.
    """

    t_starts: Tensor  # [N] float32
    t_ends: Tensor  # [N] float32
    ray_indices: Tensor  # [N] int32
    offsets: Tensor  # [R + 1] int32
    kept: Tensor  # [R] bool
    evaluated: Evaluated | None = None  # left by the density function that placed these samples


class FieldOutput(NamedTuple):
    """What a radiance field says of N points. ``extras`` are further per-sample channels, composited with the colours."""

    density: Tensor  # [N] >= 0, per unit length
    rgb: Tensor  # [N, 3] in [0, 1]
    extras: dict[str, Tensor] = {}  # name -> [N, k]


class Render(NamedTuple):
    """What a renderer says of R rays; per-ray outputs are always computed and always fully shaped."""

    rgb: Tensor  # [R, 3], background included
    opacity: Tensor  # [R] sum of weights, in [0, 1]
    depth: Tensor  # [R] sum of weight * t_mid (not divided by the opacity)
    n_samples: Tensor  # [R] int32, samples composited before early termination
    extras: dict[str, Tensor] = {}  # name -> [R, k]
    weights: Tensor | None = None  # [N], only where asked for


class RayBatch(NamedTuple):
    """Rays with their ground truth, as a data module draws them."""

    rays: Rays
    rgb: Tensor  # [R, 3] in [0, 1]; with alpha, not yet composited (straight alpha)
    alpha: Tensor | None  # [R] in [0, 1], None where the images have none
    mask: Tensor | None  # [R] bool, False: not a training ray (inactive); None: all rays count
    image_index: Tensor  # [R] int64


class SceneBox(NamedTuple):
    """The region that holds the scene. ``contraction`` names a map of all of space into a ball, or is "none"."""

    aabb: Tensor  # [2, 3] float32, minimum and maximum corner, world units
    contraction: str = "none"
