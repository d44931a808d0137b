"""Learned corrections of cameras: a turn and a shift of each view, and a factor of focal lengths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_nerf.arguments import Recorded
from lightning_nerf.cameras.cameras import Cameras
from lightning_nerf.cameras.rotations import rotation_excess, similarity_basis
from lightning_nerf.checks import BadArgument, check_number
from lightning_nerf.ops.lenses import EQUIRECTANGULAR, Lens, distort, places, undistort, view_directions
from lightning_nerf.scene_box import SceneBox
from lightning_nerf.types import Rays

FOCAL = ("shared", "per_camera", "none")
_TINY = 1e-30  # of a squared length: unused rays may have no direction
_SAME = 1e-3  # radians and scene units by which cameras may differ and still be those that were refined


class CameraRefinement(Recorded, nn.Module):
    r"""Corrects the rays of training views whose cameras are a little off; trained with the field, by the same losses.

    View v has a rotation vector :math:`w_v` and a shift :math:`t_v`, and focal lengths have a factor s:

    .. math:: R'_v = \exp([w_v]_\times) R_v, \quad o'_v = p_v + \exp([w_v]_\times) (o_v - p_v) + u_v t_v, \quad f' = s f

    where the camera turns about :math:`p_v`, the point of its optical axis beside the middle of the scene's box, or about
    itself if that is behind it: turned about itself a camera sees nearly what it sees when shifted, and an optimizer would
    confuse the two. :math:`u_v` is the distance to that point, but at least a third of the box's longest side. All start at
    no correction.
    The corrections of all views together are kept orthogonal to the seven motions, turns and scalings of the whole scene,
    which no picture tells: the scene stays where the given cameras on average say that it is, and views that are not
    trained on keep their poses.

    Differentiable once in the corrections, exact through every lens. Cameras of an equirectangular picture have no focal
    length to correct.

    >>> import torch
    >>> from lightning_nerf import CameraRefinement, Cameras, SceneBox
    >>> from lightning_nerf.cameras import pixel_rays
    >>> pose = torch.eye(4)[:3].repeat(5, 1, 1)
    >>> pose[:, :, 3] = torch.rand(5, 3)
    >>> cameras = Cameras.of_one_size(pose, torch.tensor([8.0, 8, 4, 4]), 8, 8, near=0.1, far=9.0)
    >>> refinement = CameraRefinement()
    >>> refinement.bind(cameras, SceneBox(torch.tensor([[-1.0, -1, -9], [1, 1, -1]])))
    >>> rays = pixel_rays(cameras, index=torch.tensor([0, 4]), x=torch.tensor([1, 2]), y=torch.tensor([3, 4]))
    >>> torch.equal(refinement(rays, cameras).directions, rays.directions)
    True

    Args:
        focal: "shared": one factor for all views; "per_camera": one for all views with the same intrinsics, size and lens;
            "none": focal lengths are right.
        rate_factor: learning rate as a multiple of the optimizer's, >= 0. A rate of 5e-4 turns a camera by at most 0.03
            degrees a step.
    """

    given: Tensor  # [V, 3, 4] the poses that are corrected
    arms: Tensor  # [V, 3] from the point that a camera turns about to the camera
    groups: Tensor  # [V] int64, place in log_focal
    gauge: Tensor  # [7, 6 V] orthonormal rows, or 0: corrections that only move the whole scene
    units: Tensor  # [V] the length of a shift of 1

    def __init__(self, focal: str = "shared", rate_factor: float = 0.05) -> None:
        super().__init__()
        if focal not in FOCAL:
            raise BadArgument(f'focal: expected "shared", "per_camera" or "none", got {focal!r}')
        check_number("rate_factor", rate_factor, "[0, inf)")
        self.focal = focal
        self.rate_factor = rate_factor
        self._make_room(0, 0)

    @property
    def n_views(self) -> int:
        """V; 0 until the views are known."""
        return len(self.poses)

    # -- the views -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def bind(self, cameras: Cameras, box: SceneBox) -> None:
        """Learn which cameras are corrected. Binding the same ones again changes nothing.

        Args:
            cameras: the training views', V >= 1.
            box: the scene's.

        Raises:
            BadArgument: other cameras than those that corrections were learned for.
        """
        if self.n_views > 0:
            self._refuse_others(self.given, cameras.c2w.to(self.given), "the data's")
            return
        groups, n_factors = self._focal_groups(cameras)
        self._make_room(cameras.n_views, n_factors)
        self.given.copy_(cameras.c2w)
        self.groups.copy_(groups)
        positions, back = cameras.c2w[:, :, 3], nn.functional.normalize(cameras.c2w[:, :, 2], dim=-1)
        middle = box.aabb.to(positions).mean(0)
        arms = ((positions - middle) * back).sum(-1, keepdim=True).clamp(min=0) * back
        self.arms.copy_(arms)
        self.units.copy_(arms.norm(dim=-1).clamp(min=box.unit_length()))
        self.gauge.copy_(similarity_basis(positions, arms, self.units.to(positions)))

    def make_room_for(self, weights: Mapping[str, object], prefix: str = "cameras.") -> None:
        """Get ready to load a checkpoint's corrections, where the views are not known yet.

        Raises:
            BadArgument: they are corrections of other cameras.
        """
        poses, given, focal = (weights.get(prefix + name) for name in ("poses", "given", "log_focal"))
        if not (isinstance(poses, Tensor) and isinstance(given, Tensor) and isinstance(focal, Tensor)):
            return  # the module says what is missing
        if poses.ndim != 2 or poses.shape[1] != 6 or given.shape != (len(poses), 3, 4) or focal.ndim != 1:
            return  # and what has another shape
        if self.n_views == 0:
            self._make_room(len(poses), len(focal))
        elif self.n_views == len(poses):
            self._refuse_others(self.given, given.to(self.given), "the checkpoint's")

    def _make_room(self, n_views: int, n_factors: int) -> None:
        """Parameters and buffers for V views, without correction."""
        device = self.poses.device if hasattr(self, "poses") else None
        like = {"dtype": torch.float32, "device": device}
        self.poses = nn.Parameter(torch.zeros(n_views, 6, **like), requires_grad=n_views > 0)
        self.log_focal = nn.Parameter(torch.zeros(n_factors, **like), requires_grad=n_factors > 0)
        self.register_buffer("given", torch.zeros(n_views, 3, 4, **like))
        self.register_buffer("arms", torch.zeros(n_views, 3, **like))
        self.register_buffer("groups", torch.zeros(n_views, dtype=torch.int64, device=device))
        self.register_buffer("gauge", torch.zeros(7, 6 * n_views, **like))
        self.register_buffer("units", torch.ones(n_views, **like))

    def _focal_groups(self, cameras: Cameras) -> tuple[Tensor, int]:
        """Each view's place in ``log_focal``, and the length of that."""
        n = cameras.n_views
        if self.focal != "per_camera":
            return torch.zeros(n, dtype=torch.int64), int(self.focal == "shared")
        columns = [cameras.intrinsics, cameras.size]
        if cameras.lens_model is not None and cameras.lens is not None:
            columns += [cameras.lens_model[:, None], cameras.lens]
        kinds, groups = torch.cat([c.double().cpu() for c in columns], 1).unique(dim=0, return_inverse=True)
        return groups, len(kinds)

    def _refuse_others(self, expected: Tensor, came: Tensor, whose: str) -> None:
        if expected.shape != came.shape:
            raise BadArgument(f"cameras: {whose} are {len(came)}, expected the {len(expected)} that are being refined")
        moved = (expected - came).abs().flatten(1).amax(1)
        if bool((moved > _SAME * max(1.0, float(expected.abs().max()))).any()):
            view = int(moved.argmax())
            raise BadArgument(
                f"cameras: {whose} are other poses than those that are being refined, most so view {view}; corrections "
                "belong to the camera file that they were learned with: go on from that file, or start afresh"
            )

    # -- corrections ---------------------------------------------------------------------------------------------------

    def increments(self) -> Tensor:
        """[V, 6]: rotation vector in radians, and shift in units of ``units``, of each view."""
        flat = self.poses.flatten()
        whole = (self.gauge * (self.gauge * flat).sum(1, keepdim=True)).sum(0)  # no matmul: TF32 is too coarse
        return (flat - whole).view(-1, 6)

    def moves(self) -> tuple[Tensor, Tensor]:
        """What each view's rotation exceeds the identity by [V, 3, 3], and how far its camera moves [V, 3]."""
        increments = self.increments()
        turn = rotation_excess(increments[:, :3])
        return turn, (turn * self.arms[:, None]).sum(-1) + increments[:, 3:] * self.units[:, None]

    def forward(self, rays: Rays, cameras: Cameras) -> Rays:
        """Corrected rays; those of no training view (-1 in ``rays.cameras``) as they are. Directions keep their length.

        Args:
            rays: R of them, as drawn, with ``cameras``.
            cameras: the V given cameras of the training views, on the rays' device.
        """
        if rays.cameras is None:
            raise BadArgument("rays.cameras: expected the training view of each ray, to refine its camera, got None")
        view, known = rays.cameras.clamp(min=0), (rays.cameras >= 0)[:, None]
        turns, shifts = self.moves()
        move = torch.cat([turns.flatten(1), shifts], 1).index_select(0, view) * known
        directions = rays.directions
        if len(self.log_focal):
            zoomed = self._zoomed(directions, view, known, cameras)
            before, after = ((d * d).sum(-1, keepdim=True) + _TINY for d in (directions, zoomed))
            directions = zoomed * (before / after).sqrt()
        turn = move[:, :9].view(-1, 3, 3)
        directions = directions + (turn * directions[:, None]).sum(-1)
        return rays._replace(origins=rays.origins + move[:, 9:], directions=directions)

    def _zoomed(self, directions: Tensor, view: Tensor, known: Tensor, cameras: Cameras) -> Tensor:
        """Directions [R, 3] of the same pixels with refined focal lengths; not of the same length."""
        log_factor = self.log_focal.index_select(0, self.groups).index_select(0, view)[:, None] * known
        if cameras.lens_model is None or cameras.lens is None:
            axis = nn.functional.normalize(cameras.c2w[:, :, 2], dim=-1).index_select(0, view)
            across = directions - (directions * axis).sum(-1, keepdim=True) * axis
            return directions + torch.expm1(-log_factor) * across
        axes = nn.functional.normalize(cameras.c2w[:, :, :3], dim=1).index_select(0, view).double()
        lens = Lens(cameras.lens_model.index_select(0, view), cameras.lens.index_select(0, view))
        scale = torch.exp(-log_factor[:, 0].double()).where(lens.model != EQUIRECTANGULAR, 1.0)
        u, v = distort(*places((axes * directions.double()[:, :, None]).sum(1), lens), lens)
        a, b = undistort(u * scale, v * scale, lens)
        return (axes * view_directions(a, b, lens)[:, None]).sum(-1).to(directions.dtype)

    @torch.no_grad()
    def refined(self, cameras: Cameras) -> Cameras:
        """The training views' cameras with their corrections, on the device of ``cameras``."""
        if self.n_views == 0:
            return cameras
        if cameras.n_views != self.n_views:
            raise BadArgument(f"cameras: expected the {self.n_views} that were refined, got {cameras.n_views}")
        c2w = cameras.c2w.double()
        turns, shifts = (move.double().to(c2w.device) for move in self.moves())
        turned = c2w[:, :, :3] + (turns[..., None] * c2w[:, None, :, :3]).sum(2)
        moved = c2w[:, :, 3] + shifts
        intrinsics = cameras.intrinsics
        if len(self.log_focal):
            factor = self.log_focal.double().exp()[self.groups].to(intrinsics.device)[:, None].expand(-1, 2)
            if cameras.lens_model is not None:
                factor = factor.where(cameras.lens_model[:, None] != EQUIRECTANGULAR, 1.0)
            intrinsics = torch.cat([(intrinsics[:, :2] * factor).to(intrinsics), intrinsics[:, 2:]], 1)
        return cameras._replace(c2w=torch.cat([turned, moved[..., None]], -1).to(cameras.c2w), intrinsics=intrinsics)
