"""The LightningModule that every method shares: draw, place, evaluate, render, sum of losses."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_nerf import lightning_names
from lightning_nerf.callbacks.always import ALWAYS
from lightning_nerf.callbacks.averaging import keep_buffers
from lightning_nerf.callbacks.clock import clock_of
from lightning_nerf.callbacks.ema import EMAWeights
from lightning_nerf.callbacks.occupancy import OccupancyGridUpdate
from lightning_nerf.callbacks.ray_budget import RayBudget
from lightning_nerf.callbacks.refined_cameras import WriteRefinedCameras
from lightning_nerf.cameras.refinement import CameraRefinement
from lightning_nerf.capabilities import has
from lightning_nerf.checks import BadArgument, BadType, check_instance, check_integer, check_number
from lightning_nerf.data.batches import checked_batch
from lightning_nerf.data.host_rays import HostDrawn, limited
from lightning_nerf.estimators.base import Estimator
from lightning_nerf.fields.base import RadianceField
from lightning_nerf.losses.base import Loss, check_losses, weighted_sum
from lightning_nerf.losses.photometric import Photometric
from lightning_nerf.modules.checkpoints import refuse_another_box, refuse_another_contraction
from lightning_nerf.modules.compiled import unwrap_all, unwrap_compiled
from lightning_nerf.modules.evaluation import EvaluatedModule
from lightning_nerf.modules.fitting_parts import check_parts
from lightning_nerf.modules.optimizers import adam, configure, parameter_groups
from lightning_nerf.modules.rendered import rendered, rendered_rounds
from lightning_nerf.modules.times import bind_times, bind_unknown_times, complete_times, refuse_other_times
from lightning_nerf.ops.placement import checked_placement
from lightning_nerf.recorded import Plain
from lightning_nerf.renderers.base import Renderer
from lightning_nerf.renderers.volume import VolumeRenderer
from lightning_nerf.scene_box import CONTRACTIONS
from lightning_nerf.types import RayBatch, Step

HUBER_DELTA = 0.1


class NeRFModule(EvaluatedModule):
    """A radiance field, an estimator that says where to sample it, and a renderer, trained on posed images by losses.

    The loader yields step numbers; rays, pixels, jitter and background are drawn on the device inside the step, each a
    function of (seed, rank, step, ray). A step takes up to ``max_rays`` rays, of which the first ``n_rays`` are active
    (:class:`RayBudget` sets that number on the device), and up to ``samples_per_step`` samples with gradient.

    >>> from lightning_nerf import InstantNGPField, NeRFModule, OccupancyGrid, Photometric
    >>> field = InstantNGPField(n_levels=4, log2_table_size=12, max_resolution=64)
    >>> module = NeRFModule(field, OccupancyGrid(resolution=32), losses=[Photometric(delta=0.1)])
    >>> [loss.name for loss in module.losses]
    ['photometric']

    Args:
        field: the radiance field.
        estimator: where to place samples.
        renderer: how to composite them. None: :class:`VolumeRenderer`.
        losses: their weighted sum is minimized. None: ``[Photometric(delta=huber_delta)]``.
        samples_per_step: capacity of samples with gradient per step. Rays that do not fit are left out of the losses.
        march_factor: on CUDA, samples before pruning fit in ``march_factor * samples_per_step``.
        max_rays: capacity of rays per step.
        initial_rays: active rays in the first step.
        random_background_steps: steps that composite on random colors whatever the data module says. On one color from
            the start, a field can pass off fog of that color as empty space.
        huber_delta: of the default loss: errors below it cost quadratically, above it linearly; inf for the mean square.
        optimizer: from parameter groups to an optimizer.
        lr_scheduler: from an optimizer to a scheduler that is stepped every training step; default :class:`WarmupDecay`.
        seed: of all draws; default ``seed_everything``'s, else 0.
        eval_samples: samples rendered at once outside training; bounds the memory.
        cameras: corrects the cameras of the training views while it trains; None: they are right.
    """

    n_rays: Tensor  # [] int32

    def __init__(
        self,
        field: RadianceField,
        estimator: Estimator,
        renderer: Renderer | None = None,
        losses: Sequence[Loss] | None = None,
        samples_per_step: int = 2**18,
        march_factor: int = 6,
        max_rays: int = 2**16,
        initial_rays: int = 1024,
        random_background_steps: int = 1000,
        huber_delta: float = HUBER_DELTA,
        optimizer: OptimizerCallable = adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        seed: int | None = None,
        eval_samples: int = 2**21,
        cameras: CameraRefinement | None = None,
    ) -> None:
        super().__init__()
        field, estimator, renderer = unwrap_compiled(field), unwrap_compiled(estimator), unwrap_compiled(renderer)
        check_instance("field", field, RadianceField)
        check_instance("estimator", estimator, Estimator)
        check_instance("renderer", renderer, Renderer, type(None))
        check_instance("cameras", cameras, CameraRefinement, type(None))
        for name, value in [("samples_per_step", samples_per_step), ("max_rays", max_rays), ("eval_samples", eval_samples)]:
            check_integer(name, value, 1, 2**31 - 1)
        check_integer("march_factor", march_factor, 1)
        check_integer("initial_rays", initial_rays, 1)
        if initial_rays > max_rays:
            raise BadArgument(f"initial_rays: expected <= max_rays = {max_rays}, got {initial_rays}")
        check_integer("random_background_steps", random_background_steps, 0)
        check_instance("optimizer", optimizer, Callable)
        check_instance("lr_scheduler", lr_scheduler, Callable, type(None))
        if seed is not None:
            check_integer("seed", seed, 0, 2**63 - 1)
        check_number("huber_delta", huber_delta, "(0, inf]")
        if losses is not None and huber_delta != HUBER_DELTA:
            raise BadArgument(f"huber_delta: expected Photometric(delta={huber_delta}) among losses, which were given")
        if hasattr(type(self), "losses"):
            raise BadType(
                f"{type(self).__name__}.losses: expected Loss objects, given as losses=[...], got a method or attribute"
            )
        self.field = field
        self.estimator = estimator
        self.renderer = VolumeRenderer() if renderer is None else renderer
        self.cameras = cameras
        self.losses = nn.ModuleList([Photometric(huber_delta)] if losses is None else check_losses(losses))
        self.samples_per_step = samples_per_step
        self.march_factor = march_factor
        self.max_rays = max_rays
        self.random_background_steps = random_background_steps
        self.eval_samples = eval_samples
        self._make_optimizer = optimizer
        self._make_scheduler = lr_scheduler
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.count_steps(seed)
        self.register_buffer("n_rays", torch.tensor(initial_rays, dtype=torch.int32))
        self.record_arguments()

    # -- wiring ------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Tell field and estimator where the scene is, and when. A field that knows another scene's box is refused."""
        unwrap_all(self)
        if self.trainer.precision in ("64-true", "16-true", "bf16-true"):
            raise BadArgument(
                f"precision: {type(self).__name__} keeps its weights in float32, expected '32-true', '16-mixed' or "
                f"'bf16-mixed', got {self.trainer.precision!r}"
            )
        repeated = lightning_names.overfit_batches(self.trainer)
        if repeated and not isinstance(repeated, int):
            raise BadArgument(f"overfit_batches: expected a number of batches, since epochs are endless, got {repeated}")
        box = self.datamodule.scene_box
        refuse_another_box(box.aabb, self.field.aabb, "the data module's")
        if self.field.is_bound:
            wanted = CONTRACTIONS.index(box.contraction)
            refuse_another_contraction(wanted, int(self.field.contraction), "the data module's")
        self.write_atomically()
        self.field.bind(box)
        self.estimator.bind(box)
        if stage == "fit":
            bind_times(self)
            self.datamodule.depths.wanted = any(isinstance(loss, Loss) and loss.needs_depths for loss in self.losses)
            if self.cameras is not None:
                self.cameras.bind(self.datamodule.scene("train").cameras, box)
        self._named = (-1, -1, -1)
        if stage == "fit":
            check_parts(self.field, self.estimator, self.losses, self.datamodule)
            if (count := self.estimator.fixed_count) is not None:
                check_integer(f"{type(self.estimator).__name__}.fixed_count", count, 1)
                if count > self.samples_per_step:
                    got = f"{count} of a ray of {type(self.estimator).__name__}, got {self.samples_per_step}"
                    raise BadArgument(f"samples_per_step: expected at least the {got}")
                self.n_rays.fill_(min(self.max_rays, max(1, self.samples_per_step // count)))

    def on_validation_start(self) -> None:
        """Tell fields the range of times that neither a fit nor a checkpoint told them."""
        bind_unknown_times(self)

    def on_test_start(self) -> None:
        """As before a validation."""
        bind_unknown_times(self)

    def on_predict_start(self) -> None:
        """As before a validation."""
        bind_unknown_times(self)

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks that the parts need in training and that the user did not give."""
        clock_of(self.trainer)  # makes it
        keep_buffers(self.trainer)
        wanted: list[tuple[type[Callback], bool]] = [
            (OccupancyGridUpdate, self.estimator.needs_update),
            (RayBudget, self.estimator.fixed_count is None),
            (EMAWeights, has(self._make_optimizer, "averages")),
            (WriteRefinedCameras, self.cameras is not None),
            *((kind, True) for kind in ALWAYS),
        ]
        given = lightning_names.callbacks(self.trainer)
        return [kind() for kind, needed in wanted if needed and not any(isinstance(c, kind) for c in given)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See :func:`lightning_nerf.modules.optimizers.configure`."""
        parts: list[tuple[str, nn.Module]] = [
            ("field", self.field),
            ("estimator", self.estimator),
            ("losses", self.losses),
        ]
        if self.cameras is not None:
            parts.append(("cameras", self.cameras))
        return configure(self.trainer, parameter_groups(parts), self._make_optimizer, self._make_scheduler)

    def on_load_checkpoint(self, checkpoint: Plain) -> None:
        """Refuse another architecture's or another scene's checkpoint; take one of a version without contraction."""
        if isinstance(weights := checkpoint.get("state_dict"), dict) and "field.aabb" in weights:
            weights.setdefault("field.contraction", torch.zeros((), dtype=torch.int8))
            complete_times(self, weights)
            if self.cameras is not None:
                self.cameras.make_room_for(weights)
        super().on_load_checkpoint(checkpoint)
        if self.strict_loading:
            refuse_other_times(self, checkpoint["state_dict"])

    # -- training ----------------------------------------------------------------------------------------------------

    def draw(self) -> RayBatch:
        """The step's rays: a function of ``self.key``."""
        return self.datamodule.draw(self.key, self.max_rays, self.n_rays)

    def background(self, batch: RayBatch) -> Tensor:
        """The background of a batch, [3] or [R, 3]."""
        if batch.alpha is None:  # nothing shows through: the images were taken on some background
            return self.eval_background()
        return self.datamodule.draw_background(self.key, len(batch.rays.origins), self.random_background_steps)

    def render_loss(self, batch: RayBatch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and device scalars to log. Without a batch the step's rays are drawn here.

        Tensors in, tensors out, no host synchronization: this is what execution strategies run.
        """
        batch = self.draw() if batch is None else batch
        rays = batch.rays
        if self.cameras is not None:  # samples and losses are of corrected rays, corrections learn from what the field says
            rays = self.cameras(rays, self.datamodule.scene_on(self.device).cameras)
            batch = batch._replace(rays=rays.map(Tensor.detach))
        exact = batch.rays.origins.device.type == "cpu"  # there a count is free, on CUDA it would stall the step
        placement = self.estimator.place(
            batch.rays,
            self.field.query,
            key=self.key,
            capacity=self.samples_per_step,
            march_capacity=None if exact else self.march_factor * self.samples_per_step,
        )
        placement = checked_placement(placement, len(batch.rays.origins), type(self.estimator).__name__)
        samples, background = placement.samples, self.background(batch)
        output = self.field.at_samples(rays, samples, placement.evaluated)
        render = rendered(self.renderer, self.losses, output, samples, background)
        rounds = rendered_rounds(self.renderer, self.losses, self.field, rays, placement, background)
        step = Step(batch, background, placement, output, render, logs={}, rounds=rounds, field=self.field, key=self.key)
        loss = weighted_sum(self.losses, step)
        if "n_rays" not in step.logs:
            step.logs["n_rays"] = step.counts.sum()
        return loss, {**step.logs, "n_samples": samples.offsets[-1]}

    def training_step(self, batch: object, batch_idx: int) -> dict[str, Tensor]:
        """One step; ``batch`` is a step number (rays are drawn here) or a RayBatch of the user's own loader."""
        if isinstance(batch, HostDrawn):
            rays = limited(batch.batch, self.n_rays)
        else:
            rays = None if isinstance(batch, (int, Tensor)) else checked_batch(batch)
        executor = self.executor
        result: object = executor.step(self, rays)
        match result:
            case [Tensor() as loss, dict() as logs]:
                return {"loss": loss, **logs}
        raise BadType(f"{type(executor).__name__}.step: expected a loss and a dict of logs, got {type(result).__name__}")

    def begin_step(self, update: int) -> None:
        """Let the estimator learn or rest, as its schedule has it; one of several processes always learns."""
        if self.trainer.world_size == 1:  # DDP wants gradients of all parameters in each step
            self.estimator.begin_step(update)

    @property
    def variant(self) -> Hashable:
        """The estimator's: steps of one kind do the same."""
        return self.estimator.variant

    def inputs(self) -> object:
        """What :meth:`draw` reads beside this module's tensors: an object that is replaced when its tensors are."""
        return self.datamodule.scene_on(self.device)
