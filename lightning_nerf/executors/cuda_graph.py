"""The executor that records a training step once and replays it: two launches in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_nerf.checks import check_integer
from lightning_nerf.executors._graph import CapturedStep, Kind, Pool, capture, copy_batch, empty_batch
from lightning_nerf.executors._sync import synchronizations, unwatched
from lightning_nerf.executors._watch import Options, Rates, Watch
from lightning_nerf.executors.base import Executor, StepProgram
from lightning_nerf.optim.mirror import mirrors
from lightning_nerf.types import RayBatch

T = TypeVar("T")
Scaler = torch.amp.GradScaler  # type: ignore[attr-defined]

RECAPTURES = 8  # for tensors that were replaced; more often than that, something replaces them all the time
RUN_AHEAD = 2  # steps that the host may be ahead of the device


class _Fit(NamedTuple):
    program: StepProgram
    optimizer: Optimizer
    update: Callable[[], None]
    scaler: Scaler | None
    stream: torch.cuda.Stream
    events: list[torch.cuda.Event]  # one for each step that the host may be ahead


class CUDAGraphExecutor(Executor):
    """Graph 1 is a batch up to and including its backward pass, graph 2 the optimizer's update.

    Between the two lie Lightning's seams: hooks that see and edit gradients, their reduction over processes, accumulation.
    Functions given to :meth:`run` are graphs of their own. The first batches of every fit run eagerly, so that what is made
    on first use is there; the last of them is watched for host synchronizations. If there are any, the fit stays eager and
    says why. A tensor that was replaced rather than written in place is noticed before the next replay, and all is captured
    again.

    Graphs share one memory pool: one may overwrite what another left, except losses, logs and gradients.

    Args:
        warmup_steps: eager batches at the start, >= 1.
    """

    def __init__(self, warmup_steps: int = 3) -> None:
        check_integer("warmup_steps", warmup_steps, 1)
        self.warmup_steps = warmup_steps
        self.stopped = True  # eager for the rest of the fit
        self.captures = self.steps = 0  # of this fit
        self._capture_update = False
        self._fit: _Fit | None = None
        self._clear()

    # -- a fit's beginning and end --------------------------------------------------------------------------------------

    def begin(
        self,
        program: StepProgram,
        optimizer: Optimizer,
        update: Callable[[], None],
        scaler: Scaler | None = None,
        capture_update: bool = True,
    ) -> None:
        """Begin a fit on a CUDA device.

        Args:
            program: its state has been restored.
            optimizer: its only one.
            update: clips gradients and makes the optimizer step.
            scaler: of the precision plugin, or None.
            capture_update: whether ``update`` is for the device alone.
        """
        self.close()
        stream = torch.cuda.Stream(program.device)
        self._fit = _Fit(program, optimizer, update, scaler, stream, [torch.cuda.Event() for _ in range(RUN_AHEAD)])
        self._capture_update = capture_update
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._uncopied: list[Tensor] = []  # parameters whose float16 copy the optimizer leaves to others
        self._waiting: set[Hashable] = set()  # names for run() that wait for the device
        self._said: set[str] = set()
        self._tried: set[Hashable] = set()
        self.steps = self._recaptures = self._option_changes = self.captures = 0
        self._eager_steps = 0
        self.stopped = False

    def close(self) -> None:
        """End the fit: give back graphs and memory."""
        if self._fit is not None:
            with suppress(RuntimeError):  # after a failed capture, whose error is the one to show
                self._drop()
            self._clear()
            self._fit = None
            self._parameters, self._uncopied = [], []
        self.stopped = True

    def _clear(self) -> None:
        self._steps: dict[Kind, CapturedStep] = {}
        self._runs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._updates: dict[Hashable, tuple[torch.cuda.CUDAGraph, Options]] = {}
        self._current: CapturedStep | None = None
        self._watches: list[Watch] = []
        self._program_inputs: object = None
        self._rates: Rates | None = None
        self._pool: Pool | None = None
        self._accumulate = 1
        self._batch: RayBatch | None = None  # where the captured step reads its batch
        self._trial = False
        self._eager_updates = 0
        self._versions: list[int] = []
        self.replayed = False

    def _drop(self) -> None:
        with unwatched():
            torch.cuda.synchronize(self._running.program.device)
        self._clear()
        # Eager steps again before the next capture: new optimizer state must exist, or its zeros would be captured.
        self._eager_steps = self.warmup_steps - 1
        self._parameters = [p for group in self._running.optimizer.param_groups for p in group["params"]]
        self._uncopied = []  # they may be other ones now; the next eager update finds them

    @property
    def _running(self) -> _Fit:
        assert self._fit is not None
        return self._fit

    def stop(self, reason: str) -> None:
        """Run the rest of the fit eagerly, and say why."""
        if not self.stopped:
            rank_zero_warn(f"CUDA graphs: the rest of this fit runs eagerly, because {reason}.")
            if self._steps or self._runs:
                self._drop()
            self.stopped = True

    def recapture(self) -> None:
        """See :meth:`Executor.recapture`."""
        if self._steps or self._runs:
            self._drop()

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            rank_zero_info(f"CUDA graphs: {message}.")

    # -- a step ---------------------------------------------------------------------------------------------------------

    def step(self, program: StepProgram, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Executor.step`."""
        program.name_step()
        self.replayed, self._current, self._trial = False, None, False
        if self.stopped:
            return program.step_loss(batch)
        self.steps += 1
        event = self._running.events[self.steps % RUN_AHEAD]
        event.synchronize()  # recorded RUN_AHEAD steps ago
        step = self._captured_step(program, batch)
        if step is None:
            loss, logs = self._eager_step(program, batch)
        else:
            step.graph.replay()
            program.step_replayed()
            self.replayed, self._current = True, step
            loss, logs = step.loss, step.logs
        event.record()
        return loss, logs

    def _eager_step(self, program: StepProgram, batch: RayBatch | None) -> tuple[Tensor, dict[str, Tensor]]:
        self._eager_steps += 1
        if self.stopped or self._steps or self._eager_steps < self.warmup_steps:
            return program.step_loss(batch)
        self._trial = True
        with self._trying("the forward pass"):
            return program.step_loss(batch)

    def watch_backward(self) -> AbstractContextManager[object]:
        """See :meth:`Executor.watch_backward`."""
        return self._trying("the backward pass") if self._trial and not self.stopped else nullcontext()

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        with synchronizations() as places:
            yield
        if places:
            self.stop(f"{what} waits for the device: {places[0]}")

    def _captured_step(self, program: StepProgram, batch: RayBatch | None) -> CapturedStep | None:
        """The graph for this batch, ready to be replayed; None: eager this time."""
        accumulate, place = program.window()
        first, variant = place == 0, program.variant
        if not self._steps:
            # A window's first batch comes first: it makes the gradients that the others add to.
            if not first or self._eager_steps < self.warmup_steps or not self._eager_updates:
                return None
            self._accumulate, self._batch = accumulate, empty_batch(batch)
        elif accumulate != self._accumulate:
            self._drop()
            return None
        elif self._stale() or not (first or (True, variant) in self._steps):
            return None
        if not copy_batch(self._batch, batch):
            self._say("a batch of another size than the captured one runs eagerly (drop_last=True makes all alike)")
            return None
        if first:  # not left for an overridden optimizer_zero_grad, which may write zeros there
            for parameter in self._parameters:
                parameter.grad = None
        else:
            self._adopt_gradients(self._steps[True, variant], missing_is_zero=True)
        kind = first, variant
        if kind not in self._steps:
            self._forget_what_follows()
            self._steps[kind] = self._capture_step(program, first)
            if first:
                self._watches = [Watch(program.state(), None, self._running.scaler)]
                self._program_inputs = program.inputs() if batch is None else None
                for parameter in self._parameters:
                    parameter.grad = None
        return self._steps[kind]

    def _forget_what_follows(self) -> None:
        """Drop the graphs of what runs after a step: what they use in between may lie where the new step's results will."""
        if self._runs or self._updates:
            with unwatched():
                torch.cuda.synchronize(self._running.program.device)
            self._runs.clear()
            self._updates.clear()

    def _capture_step(self, program: StepProgram, first: bool) -> CapturedStep:
        batch, scaler, accumulate = self._batch, self._running.scaler, self._accumulate

        def fn() -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
            if first:
                for parameter in self._parameters:
                    parameter.grad = None
            loss, logs = program.step_loss(batch)
            scaled = loss / accumulate if accumulate > 1 else loss
            scaled = scaled if scaler is None else scaler.scale(scaled)
            with torch.autocast("cuda", enabled=False):  # Lightning's backward is outside of it, too
                program.backward_step(scaled)
            program.advance_key()
            logs = {name: value.detach() if isinstance(value, Tensor) else value for name, value in logs.items()}
            return loss.detach(), logs, [parameter.grad for parameter in self._parameters]

        graph, (loss, logs, grads) = self._capture("the training step", fn)
        of_first = self._steps[True, program.variant].grads if not first else grads
        if any(a is not b for a, b in zip(grads, of_first, strict=True)):
            raise RuntimeError("CUDA graphs: accumulation moved a gradient to other memory; use strategy='auto'")
        return CapturedStep(graph, loss, logs, grads)

    # -- gradients and update -------------------------------------------------------------------------------------------

    def attach_gradients(self) -> None:
        """See :meth:`Executor.attach_gradients`."""
        assert self._current is not None
        for parameter, grad in zip(self._parameters, self._current.grads, strict=True):
            if grad is not None:
                parameter.grad = grad

    def _adopt_gradients(self, step: CapturedStep, missing_is_zero: bool = False) -> bool:
        """Have the graphs' gradients hold what the parameters' do; False: one has a gradient and the other none."""
        alike = True
        for parameter, grad in zip(self._parameters, step.grads, strict=True):
            now = parameter.grad
            if now is grad:
                continue
            if grad is None or (now is None and not missing_is_zero):
                alike = False
                continue
            if now is None:
                grad.zero_()
            else:
                grad.copy_(now)
            parameter.grad = grad
        return alike

    def update(self, options: Hashable = None) -> None:
        """Update the parameters after a replayed step.

        Args:
            options: what ``update`` reads in Python beside the optimizer's groups.
        """
        step = self._current
        options = options, self._running.program.variant  # which parameters have gradients depends on it
        if step is None or not self._adopt_gradients(step):  # a hook took a gradient away, or gave one
            self._running.update()
            self.updated_eagerly()
            return
        if options in self._updates and (name := self._updates[options][1].changed()) is not None:
            self._option_changes += 1
            self._updates.clear()
            if self._option_changes > RECAPTURES:
                self._capture_update = False
                self._say(f"the update runs eagerly, because something changes {name!r} all the time")
                self._watches[1:] = []
                self._running.update()
                self.updated_eagerly()
                return
        if self._rates is None:
            self._rates = Rates(self._running.optimizer, self._running.program.device)
        self._rates.push()
        if options not in self._updates:
            self._updates[options] = self._captured_update(self._rates), Options(self._running.optimizer)
            self._watches[1:] = [Watch(None, self._running.optimizer)]
        self._updates[options][0].replay()
        for _, mirror in mirrors(self._uncopied):
            mirror.mark_stale()

    def _captured_update(self, rates: Rates) -> torch.cuda.CUDAGraph:
        for parameter in self._parameters:  # torch's foreach optimizers count on the host unless told to be capturable
            state = self._running.optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor) and state["step"].device != parameter.device:
                state["step"] = state["step"].to(parameter.device, torch.float32)
        rates.put_in()
        try:
            return self._capture("the optimizer's update", self._running.update)[0]
        finally:
            rates.put_back()

    @property
    def captures_update(self) -> bool:
        """Whether :meth:`update` is to be called after this batch."""
        return self._capture_update and self.replayed and not self.stopped

    def updated_eagerly(self) -> None:
        """Note that the optimizer has made a step outside of a graph."""
        self._eager_updates += 1
        self._uncopied = [
            p for p, mirror in mirrors(self._parameters) if mirror.copy is not None and not mirror.is_current(p)
        ]

    # -- other graphs ---------------------------------------------------------------------------------------------------

    def run(self, name: Hashable, fn: Callable[..., None], *reads: Tensor) -> None:
        """See :meth:`Executor.run`. Captured at the second call after the step has been: its outputs must lie apart."""
        key = (name, *(tensor.data_ptr() for tensor in reads))
        variants = {variant for _, variant in self._steps}
        complete = len(self._steps) == len(variants) * min(self._accumulate, 2)
        complete = complete and (bool(self._updates) or not self._capture_update)
        if self.stopped or not complete or name in self._waiting or (reads and not self.replayed) or self._stale():
            fn(*reads)
        elif key in self._runs:
            self._runs[key].replay()
        elif key not in self._tried:
            self._tried.add(key)
            with synchronizations() as places:
                fn(*reads)
            if places:
                self._waiting.add(name)
                self._say(f"{name} runs eagerly, because it waits for the device: {places[0]}")
        else:
            self._runs[key] = self._capture(str(name), lambda: fn(*reads))[0]
            self._runs[key].replay()

    # -- common ---------------------------------------------------------------------------------------------------------

    def _capture(self, what: str, fn: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        for _, mirror in mirrors(self._uncopied):  # have the float16 copy's renewal captured
            mirror.mark_stale()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            captured = capture(what, fn, self._pool, self._running.stream)
        except RuntimeError:
            self.stopped = True
            raise
        self.captures += 1
        return captured

    def _stale(self) -> bool:
        """Whether the graphs had to be dropped. Else, renews float16 copies of parameters that changed."""
        broken = next((words for watch in self._watches if (words := watch.broken()) is not None), None)
        inputs = self._program_inputs
        if broken is None and inputs is not None and self._running.program.inputs() is not inputs:
            broken = "the images were moved"
        if broken is not None:
            self._recaptures += 1
            self._drop()
            if self._recaptures > RECAPTURES:
                self.stop(f"{broken}, once more; write it in place")
            else:
                self._say(f"captured again, because {broken}")
            return True
        versions = [parameter._version for parameter in self._parameters]
        if versions != self._versions:
            self._versions = versions
            for parameter, mirror in mirrors(self._running.program.state().parameters()):
                if mirror.copy is not None:
                    mirror.current(parameter)
        return False
