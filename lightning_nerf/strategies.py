"""Lightning strategies with an executor: any, or the one that replays training steps from CUDA graphs.

Importing this module, or ``lightning_nerf.modules``, registers ``nerf_cuda_graph`` and ``nerf_cuda_graph_ddp``, names for
``Trainer(strategy=...)``. docs/cuda-graphs.md has the measurements behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.strategies.strategy import Strategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

from lightning_nerf.executors import EAGER, CUDAGraphExecutor, Executor
from lightning_nerf.step_guard import StepGuard

LARGE = 2**18  # elements from which on a gradient is reduced where it lies
_NOTHING = nullcontext()


class ExecutorStrategy(SingleDeviceStrategy):
    """One device, on which ``executor`` runs the steps; the backward pass and the update are Lightning's.

    Args:
        executor: by ``class_path`` in a recipe, an object in a script.
        device: None: the Trainer's.
        accelerator, checkpoint_io, precision_plugin: as in Lightning's strategies.
    """

    def __init__(
        self,
        executor: Executor,
        device: str | torch.device | None = None,
        accelerator: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        try:
            root = torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"device: expected None, a name such as 'cuda:0' or a torch.device, got {device!r}") from error
        super().__init__(root, accelerator, checkpoint_io, precision_plugin)
        self.executor = _checked(executor)
        self._devices = None if device is None else [root]

    @property
    def parallel_devices(self) -> list[torch.device] | None:
        """The device, once known. The Trainer sets its devices here."""
        return self._devices

    @parallel_devices.setter
    def parallel_devices(self, devices: list[torch.device]) -> None:
        if len(devices) != 1:
            one, all_of_them = self._names()
            raise ValueError(
                f"{one} drives one device, got {len(devices)}: set devices=1, or {all_of_them} for all of them"
            )
        self._devices, self._root_device = list(devices), devices[0]

    def setup(self, trainer: Any) -> None:
        """See :meth:`Strategy.setup`; refuses several nodes."""
        nodes = trainer._accelerator_connector._num_nodes_flag
        if nodes > 1:  # Lightning would start each by itself, and all would write the same files
            one, several = self._names()
            raise ValueError(f"{one} trains on one node, got num_nodes={nodes}: use {several}")
        super().setup(trainer)

    def _names(self) -> tuple[str, str]:
        """This strategy and the one for several devices, as messages call them."""
        return f"strategy={type(self).__name__}(...)", ExecutorDDPStrategy.__name__


class ExecutorDDPStrategy(DDPStrategy):
    """Lightning's DDPStrategy with an executor that runs each process's steps.

    Args:
        executor: by ``class_path`` in a recipe, an object in a script.
        kwargs: of DDPStrategy.
    """

    def __init__(self, executor: Executor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.executor = _checked(executor)


class _CUDAGraphs(Strategy):
    """What the two strategies share. Automatic optimisation, all hooks and all flags keep their meaning or are refused."""

    executor: Executor = EAGER
    strategy_name: str
    warmup_steps: int
    _plain_batches = False

    # -- a fit's beginning and end --------------------------------------------------------------------------------------

    def setup(self, trainer: Any) -> None:
        """See :meth:`Strategy.setup`; refuses what cannot work."""
        fits = trainer.state.fn == TrainerFn.FITTING
        self.executor = EAGER
        if fits and not _has_graphs(self.root_device):
            rank_zero_info(
                f"{self.strategy_name}: every step runs eagerly, because CUDA graphs need a CUDA device, not "
                f"{self.root_device}."
            )
        elif fits:
            _refuse(self.strategy_name, trainer, self.lightning_module, self.precision_plugin)
        super().setup(trainer)
        if fits and _has_graphs(self.root_device):
            _refuse_optimizers(self.strategy_name, self.optimizers)
            self.executor = CUDAGraphExecutor(self.warmup_steps)

    def on_train_start(self) -> None:
        """Begin capturing: everything that a checkpoint holds has been restored."""
        super().on_train_start()
        if isinstance(self.executor, CUDAGraphExecutor):
            module: Any = self.lightning_module
            optimizer, plugin = self.optimizers[0], self.precision_plugin
            reason = _why_eager(optimizer, plugin)
            if reason is not None:
                rank_zero_info(f"{self.strategy_name}: the optimizer's update runs eagerly, because {reason}.")
            self._clips = not is_overridden("configure_gradient_clipping", module)
            scaler = getattr(plugin, "scaler", None)
            self.executor.begin(module, optimizer, self._update, scaler, capture_update=reason is None)
            self._lighten(module.trainer)

    def _lighten(self, trainer: Any) -> None:
        """Save the host what nobody sees: in a fast step it would be the slower of the two."""
        if type(trainer.profiler) is PassThroughProfiler:  # some fifty context managers a step around nothing: 55 us
            trainer.profiler.profile = _no_profile  # type: ignore[method-assign]
        owners = [owner for owner in (trainer.lightning_module, trainer.datamodule) if owner is not None]
        hooks = ("transfer_batch_to_device", "on_after_batch_transfer")
        self._plain_batches = not any(is_overridden(hook, owner) for owner in owners for hook in hooks)

    def teardown(self) -> None:
        """Give back graphs and memory before the module leaves the device."""
        if isinstance(self.executor, CUDAGraphExecutor):
            self.executor.close()
            self.executor = EAGER
        self._plain_batches = False
        module: Any = self.lightning_module
        if module is not None and module._trainer is not None:
            vars(module.trainer.profiler).pop("profile", None)
        super().teardown()

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """See :meth:`Strategy.batch_to_device`; a step's number needs no transfer, which would take 20 us."""
        if self._plain_batches and type(batch) is int:
            return batch
        return super().batch_to_device(batch, device, dataloader_idx)

    # -- a step ---------------------------------------------------------------------------------------------------------

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """See :meth:`Strategy.backward`; after a replay the gradients are there already."""
        self.pre_backward(closure_loss)
        module: Any = self.lightning_module
        loss = self.precision_plugin.pre_backward(closure_loss, module)
        if self.executor.replayed:
            self.executor.attach_gradients()  # type: ignore[attr-defined]
        else:
            with self.executor.watch_backward():
                self.precision_plugin.backward(loss, module, optimizer, *args, **kwargs)
        self.reduce_gradients()
        loss = self.precision_plugin.post_backward(loss, module)
        self.post_backward(loss)
        return loss

    def reduce_gradients(self) -> None:
        """Combine the gradients of several processes, where an update follows."""

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """See :meth:`Strategy.optimizer_step`; replays the update where the batch was replayed."""
        executor = self.executor
        if not isinstance(executor, CUDAGraphExecutor) or executor.stopped:
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        result = closure()
        if not executor.steps:
            executor.stop(f"{type(self.lightning_module).__name__}.training_step does not go through self.executor.step")
        if not executor.captures_update or kwargs or result is None:
            super().optimizer_step(optimizer, lambda: result, model, **kwargs)
            executor.updated_eagerly()
            return result
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        call._call_callback_hooks(trainer, "on_before_optimizer_step", optimizer)
        call._call_lightning_module_hook(trainer, "on_before_optimizer_step", optimizer)
        if not self._clips:  # the user's own clipping may read what a graph cannot
            self._clip(optimizer)
        executor.update((trainer.gradient_clip_val, trainer.gradient_clip_algorithm))
        return result

    def _clip(self, optimizer: Optimizer) -> None:
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        options = {
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        }
        call._call_lightning_module_hook(trainer, "configure_gradient_clipping", optimizer, **options)

    def _update(self) -> None:
        """What follows the hooks in :meth:`Precision.optimizer_step`: graph 2."""
        optimizer, scaler = self.optimizers[0], getattr(self.precision_plugin, "scaler", None)
        if self._clips and self.lightning_module.trainer.gradient_clip_val:  # type: ignore[union-attr]
            self._clip(optimizer)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()


class CUDAGraphStrategy(_CUDAGraphs, ExecutorStrategy):
    """One device; training steps are replayed from CUDA graphs. On a CPU every step runs eagerly, with one message.

    So does a step that makes the host wait for the device, if torch's synchronisation debug mode sees it in the last eager
    batch. One that it does not see (a native library's own wait, or one that comes later) cannot be captured, which is an
    error that says so.

    Args:
        device: None: the Trainer's.
        accelerator, checkpoint_io, precision_plugin: as in Lightning's strategies.
        warmup_steps: eager batches at the start of every fit, >= 1.
    """

    strategy_name = "nerf_cuda_graph"

    def __init__(
        self,
        device: str | torch.device | None = None,
        accelerator: Any = None,
        checkpoint_io: Any = None,
        precision_plugin: Precision | None = None,
        warmup_steps: int = 3,
    ) -> None:
        CUDAGraphExecutor(warmup_steps)  # refuses a bad number now
        super().__init__(EAGER, device, accelerator, checkpoint_io, precision_plugin)
        self.warmup_steps = warmup_steps

    def _names(self) -> tuple[str, str]:
        return f"strategy={self.strategy_name!r}", f"strategy='{self.strategy_name}_ddp'"


class CUDAGraphDDPStrategy(_CUDAGraphs, DDPStrategy):
    """One process per device; replayed steps, between whose two graphs the mean of the gradients is taken.

    The module is not wrapped in DistributedDataParallel, whose hooks no graph can hold: parameters and buffers are given to
    all ranks once, at the start, and gradients are reduced after each window of accumulation. All ranks must have gradients
    of the same parameters.

    Args:
        warmup_steps: eager batches at the start of every fit, >= 1.
        kwargs: of DDPStrategy; those for the wrapper are refused.
    """

    strategy_name = "nerf_cuda_graph_ddp"

    def __init__(self, warmup_steps: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        CUDAGraphExecutor(warmup_steps)
        self.warmup_steps = warmup_steps
        hooks = ("ddp_comm_state", "ddp_comm_hook", "ddp_comm_wrapper", "model_averaging_period")
        refused = [*self._ddp_kwargs, *(name for name in hooks if kwargs.get(name) is not None)]
        if refused:
            raise ValueError(
                f"strategy='nerf_cuda_graph_ddp' has no DistributedDataParallel to give {', '.join(refused)} to: leave it "
                "out, or use strategy='ddp'"
            )

    def setup(self, trainer: Any) -> None:
        """See :meth:`Strategy.setup`; refuses what cannot work."""
        if self._layer_sync is not None:
            raise ValueError("sync_batchnorm=True is not for strategy='nerf_cuda_graph_ddp': use strategy='ddp'")
        self._checked = False
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """Give all ranks the parameters and buffers of rank 0, in place of wrapping the module."""
        _sync_module_states(self.model)  # type: ignore[arg-type]

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Take the mean of the gradients over all ranks, in place, where an update follows. The host does not wait."""
        module: Any = self.lightning_module
        if self.world_size == 1 or module.trainer.fit_loop._should_accumulate():
            return
        grads = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
        if not self._checked:
            self._check_alike([name for name, p in module.named_parameters() if p.grad is not None])
        small = [g for g in grads if g.numel() < LARGE]
        flat = torch.cat([g.reshape(-1) for g in small]) if small else None
        averages = torch.distributed.get_backend() == "nccl"  # gloo only sums
        op = torch.distributed.ReduceOp.AVG if averages else torch.distributed.ReduceOp.SUM
        for tensor in (*(g for g in grads if g.numel() >= LARGE), *(() if flat is None else (flat,))):
            torch.distributed.all_reduce(tensor, op)
            if not averages:
                tensor.div_(self.world_size)
        if flat is not None:
            parts = flat.split([g.numel() for g in small])
            for part, grad in zip(parts, small, strict=True):
                grad.copy_(part.view_as(grad))

    def _check_alike(self, names: list[str]) -> None:
        everybodys: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everybodys, names)
        for rank, theirs in enumerate(everybodys):
            if theirs != names:
                odd = sorted(set(theirs) ^ set(names))
                raise RuntimeError(
                    f"ranks {self.global_rank} and {rank} have gradients of different parameters: {', '.join(odd)}; have "
                    "all parameters take part in every loss, or use strategy='ddp_find_unused_parameters_true'"
                )
        self._checked = True


def _checked(executor: Executor) -> Executor:
    if not isinstance(executor, Executor):
        raise TypeError(f"executor: expected a lightning_nerf.Executor, got {type(executor).__name__}")
    return executor


def _no_profile(action_name: str) -> Any:
    return _NOTHING


def _has_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


def _refuse(strategy: str, trainer: Any, module: Any, plugin: Precision) -> None:
    """Name what cannot work in CUDA graphs, before anything is set up."""
    prefix, instead = f"strategy={strategy!r} cannot be combined with", "use strategy='auto'"
    if not hasattr(type(module), "executor"):
        raise TypeError(
            f"strategy={strategy!r} trains modules whose training_step goes through self.executor.step, such as "
            f"lightning_nerf.modules.NeRFModule, got {type(module).__name__}: {instead}"
        )
    if not module.automatic_optimization:
        raise ValueError(f"{prefix} automatic_optimization=False: {instead}")
    if getattr(trainer, "_detect_anomaly", False):
        raise ValueError(f"{prefix} detect_anomaly=True, which reads every result on the host: drop it, or {instead}")
    if type(plugin) not in (Precision, MixedPrecision):
        raise ValueError(
            f"{prefix} the precision plugin {type(plugin).__name__}: choose precision 32-true, bf16-mixed or 16-mixed, "
            f"or {instead}"
        )


def _refuse_optimizers(strategy: str, optimizers: list[Optimizer]) -> None:  # Lightning refuses several
    if isinstance(optimizers[0], LBFGS):
        raise ValueError(
            f"strategy={strategy!r} cannot be combined with the optimizer LBFGS, which runs the step several times at "
            "will: use another, or strategy='auto'"
        )


def _why_eager(optimizer: Optimizer, plugin: Precision) -> str | None:
    """Why an optimizer's step must not be captured, or None."""
    name = type(optimizer).__name__
    if getattr(plugin, "scaler", None) is not None and not _optimizer_handles_unscaling(optimizer):
        return f"under 16-mixed a GradScaler waits for {name}; a fused one (fused=True, or FusedAdam) would not"
    # Of torch's own, some read the rate on the host even when told to be capturable, and SGD does unless fused.
    if type(optimizer).__module__.startswith("torch.optim"):
        on_device = type(optimizer) in (Adam, AdamW) or all(
            type(optimizer) is SGD and group["fused"] for group in optimizer.param_groups
        )
    else:
        on_device = all("capturable" in group for group in optimizer.param_groups)
    if not on_device:
        return f"{name} may compute on the host; FusedAdam, torch's Adam and AdamW, and SGD(fused=True) do not"
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    if any(not isinstance(getattr(hook, "__self__", None), StepGuard) for hook in hooks):
        return f"{name} has step hooks, which run on the host"
    return None


def register() -> None:
    """Make the strategies known to ``Trainer(strategy=...)``."""
    for strategy in (CUDAGraphStrategy, CUDAGraphDDPStrategy):
        description = (strategy.__doc__ or "").splitlines()[0]
        StrategyRegistry.register(strategy.strategy_name, strategy, description=description, override=True)


register()
