"""The training loop: steps, epochs, checkpoints.

It builds no objects: the factory passes them in.

Every step depends only on the state that a checkpoint holds (weights, optimizer, schedule, position in the epoch plan,
random states, history, and what the loss remembers). A run that is killed and resumed therefore makes the same steps as
an uninterrupted one.

The loss is checked before the update, without leaving the GPU idle: its copy to the host starts right after the forward
pass, the backward pass is queued behind it, and only then does the host wait for the copy. With sub-batches
(:mod:`cltt.training.grad_cache`) the copy follows the backward pass.

Before each step, when each rank has its batch or knows that it gets none, the ranks agree whether to save and whether
to stop. A rank whose data cannot be read would otherwise leave the others waiting in the middle of a step. The exchange
goes through gloo on the host, while the GPU still works on the step before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cltt import distributed
from cltt.checkpoint import CheckpointStore
from cltt.config import OptimSettings
from cltt.errors import StorageError
from cltt.loader.loader import Batch, WindowLoader
from cltt.loader.prefetch import GaveUp
from cltt.metrics import History
from cltt.training.grad_cache import cached_backward, random_state, set_random_state, without_ddp
from cltt.training.optim import load_optimizer
from cltt.training.outputs import RETRY_SECONDS
from cltt.training.records import StepPlace, check_finite
from cltt.training.signals import Request, StopSignals


class HostCopy:
    """A copy of a device scalar to the host.

    On CUDA the constructor queues the copy, and :meth:`read` waits for that copy alone, not for the work queued behind
    it.
    """

    def __init__(self, scalar: torch.Tensor) -> None:
        exact = torch.float32 if scalar.device.type == "mps" else torch.float64  # MPS has no float64
        value = scalar.detach().to(exact)
        self._event: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._value = value

    def read(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._value)


@dataclass
class Saver:
    """Saves checkpoints on rank 0. The other ranks call it, too, and write nothing.

    Attributes:
        store: writes the checkpoints (None on ranks other than 0). minutes: also save within an epoch after this many
        minutes (0: only at its end and at a request to stop). extra: saved with every checkpoint: settings, fingerprint
        of the data. saved_at: (epoch, step) of the last save, or of this process's start; the same (epoch, step) is
        saved a second time only to add an evaluation.
    """

    store: CheckpointStore | None
    minutes: float = field(kw_only=True)
    extra: dict[str, Any] = field(kw_only=True)

    def __post_init__(self) -> None:
        self.saved_at = 0, 0
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether rank 0 should save now: ``minutes`` have passed, or it retries a failed save."""
        if self.store is None:
            return False
        now, failed_at = time.monotonic(), self.store.failed_at
        return 0 < 60 * self.minutes <= now - self._last or (failed_at is not None and now - failed_at >= RETRY_SECONDS)

    def save(self, state: dict[str, Any], *, epoch: int, step: int) -> None:
        self.saved_at = epoch, step
        self._last = time.monotonic()
        if self.store is not None:
            self.store.save({**self.extra, **state}, epoch=epoch, step=step)

    def wait(self) -> None:
        if self.store is not None:
            self.store.wait()


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Runs the remaining epochs.

    Attributes:
        model: ContrastiveModel, in DistributedDataParallel if there are several ranks.
        loss_fn: ``(z [b, T, D]) -> scalar``; all ranks get the same value. If ``places`` is given, the loss is called
            with ``(z, clip_ids, places(window_ids))``. Its ``state_dict()`` is saved and restored if it is not empty.
        optimizer: updates the parameters of ``model``.
        scheduler: stepped once per epoch or, if ``optim.moves_every_step``, after every step.
        loader: batches of this rank.
        saver: saves the checkpoints.
        stop: requests to stop, checked before every step and while the loop waits for a batch.
        device: device of the model.
        optim: epochs, batches per epoch, gradient clipping, sub-batches.
        run_dir: folder of the run; a step whose loss or gradient is NaN or infinite is described in it
            (``nonfinite.json``).
        autocast: dtype of the model's autocast (None: off).
        places: ``(window ids [b]) -> [b, T]``: frame ids or, with shuffled frames, positions in the shuffled order.
            If given, frames of two overlapping windows of a clip are not negatives of each other.
        history: rows of the run so far; the trainer appends to it.
        evaluate: ``() -> row`` of an evaluation ({}: it failed; None: a stop was requested). Called on every rank
            after every ``eval_every``-th epoch and the last one, once the epoch is saved.
        eval_every: epochs between two evaluations.
        on_step: called with the loss after every step.
        on_epoch: called on every rank after every epoch, and again on resume if its evaluation was stopped or failed.
        failure: the storage error of this rank, if the run stopped for that reason.
    """

    model: nn.Module
    loss_fn: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    loader: WindowLoader
    saver: Saver
    stop: StopSignals
    device: torch.device
    optim: OptimSettings
    run_dir: Path
    autocast: torch.dtype | None = None
    places: Callable[[torch.Tensor], torch.Tensor] | None = None
    history: History = field(default_factory=History)
    evaluate: Callable[[], dict[str, float] | None] | None = None
    eval_every: int = 1
    on_step: Callable[[float], None] = lambda loss: None
    on_epoch: Callable[[], None] = lambda: None
    failure: StorageError | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._norm: tuple[HostCopy, StepPlace] | None = None
        self.loader.give_up = lambda: self.stop.request.stops

    @property
    def steps_per_epoch(self) -> int:
        return self.optim.steps_per_epoch(len(self.loader))

    def run(self) -> Request:
        """Train to the last epoch, or until a request to stop; returns NOTHING or the request.

        At a request the trainer saves the state. A rank whose storage does not answer requests a stop, too; its
        ``failure`` says why.
        """
        self.model.train()
        asked = Request.NOTHING
        with self.stop.deferred():
            if self._evaluation_due:  # the run may have been stopped while it evaluated the epoch just ended
                asked = self._evaluate()
                self.on_epoch()
            while self.history.epoch < self.optim.epochs and not asked.stops:
                asked = self._run_epoch()
            self.saver.wait()
        return asked

    def state_dict(self, loader_state: dict[str, Any] | None = None) -> dict[str, Any]:
        """Everything the next step depends on. A collective: all ranks must call it together.

        ``loader_state``: from before the batch that was taken but not trained on; None: the loader's state now.
        """
        loss = self.loss_fn.state_dict()
        return {
            **({"loss": loss} if loss else {}),
            "model": without_ddp(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "loader": loader_state or self.loader.state_dict(),
            "history": self.history.state_dict(),
            "random": distributed.all_gather_objects(random_state(self.device)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``.

        A rank that did not exist when the state was saved takes the random state of rank 0.
        """
        without_ddp(self.model).load_state_dict(state["model"])
        self.loss_fn.load_state_dict(state.get("loss", {}))
        load_optimizer(self.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loader.load_state_dict(state["loader"])
        self.history.load_state_dict(state["history"])
        self.saver.saved_at = self.history.epoch, self.history.step
        rank = distributed.world().rank
        set_random_state(state["random"][rank if rank < len(state["random"]) else 0], self.device)

    def _run_epoch(self) -> Request:
        """Make the remaining steps of this epoch and end it; returns NOTHING or a request to stop."""
        batches = iter(self.loader)
        for _ in range(self.history.step, self.steps_per_epoch):
            before = self.loader.state_dict()
            batch = self._next(batches)
            asked = self._agree(batch)
            if asked is not Request.NOTHING:
                self._save(before)
            if batch is None or asked.stops:
                return asked
            loss = self._step(batch)
            if self.optim.moves_every_step:
                self.scheduler.step()
            self.history.add_step(loss)
            self.on_step(loss)
        return self._end_epoch()

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; None at a request to stop, or if the storage does not answer."""
        if self.stop.request.stops:
            return None
        try:
            return next(batches)
        except GaveUp:
            return None
        except StorageError as error:
            self.failure = error
            return None

    def _agree(self, batch: Batch | None) -> Request:
        """The largest request of all ranks before the step with ``batch``.

        A rank without a batch requests a stop.
        """
        asked = max(self.stop.request, Request.SAVE if self.saver.due else Request.NOTHING)
        if batch is None:
            asked = max(asked, Request.STOP)
        return Request(max(asked for (asked,) in distributed.all_gather_integers([asked])))

    def _step(self, batch: Batch) -> float:
        """Update the weights once; returns the loss."""
        self.optimizer.zero_grad()
        sub_batch = self.optim.sub_batch_size
        if 0 < sub_batch < len(batch.frames):
            loss = cached_backward(
                self.model, batch.frames, sub_batch, forward=self._embed, loss_of=lambda z: self._loss(z, batch)
            )
            copy = HostCopy(loss)
        else:
            loss = self._loss(self._embed(self.model, batch.frames), batch)
            copy = HostCopy(loss)
            loss.backward()
        value = copy.read()
        self._check_norm()
        check_finite("loss", value, self._place(batch))
        self._clip_gradient(batch)
        self.optimizer.step()
        return value

    def _embed(self, model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
        """frames [n, T, C, H, W] -> z [n, T, D], float32 (float64 for a model in float64)."""
        with self._autocast():
            z = model(frames)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    def _loss(self, z: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss of the batch; Triton multiplies in autocast's dtype, other backends in fp32. Ids stay on the CPU."""
        with self._autocast():
            if self.places is None:
                return self.loss_fn(z)
            return self.loss_fn(z, batch.clip_ids, self.places(batch.window_ids))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def _clip_gradient(self, batch: Batch) -> None:
        """Clip the gradient and refuse one whose norm is not finite, unless ``max_grad_norm`` is 0.

        A fused optimizer skips that update itself. The host then reads the norm one step later, because waiting for it
        would leave the GPU idle at every step. No checkpoint is saved before the norm is read.
        """
        if self.optim.max_grad_norm == 0:
            return
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.max_grad_norm)
        self._norm = HostCopy(norm), self._place(batch)
        if self.optimizer.param_groups[0]["fused"]:
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        else:
            self._check_norm()

    def _place(self, batch: Batch) -> StepPlace:
        return StepPlace(self.run_dir, self.history.epoch + 1, self.history.step + 1, batch.window_ids)

    def _check_norm(self) -> None:
        if self._norm is not None:
            (norm, place), self._norm = self._norm, None
            check_finite("gradient norm", norm.read(), place)

    def _end_epoch(self) -> Request:
        if not self.optim.moves_every_step:
            self.scheduler.step()
        self.history.end_epoch(float(self.scheduler.get_last_lr()[0]), float(self.scheduler.base_lrs[0]))
        self.loader.set_epoch(self.history.epoch)
        self._save()
        asked = self._evaluate() if self._evaluation_due else Request.NOTHING
        self.on_epoch()
        return asked

    @property
    def _evaluation_due(self) -> bool:
        """Whether the epoch that has just ended must be evaluated and is not evaluated yet."""
        epoch, step, rows = self.history.epoch, self.history.step, self.history.evaluation
        if self.evaluate is None or epoch == 0 or step > 0 or (rows and rows[-1]["epoch"] == epoch):
            return False
        return epoch == self.optim.epochs or epoch % self.eval_every == 0

    def _evaluate(self) -> Request:
        """Evaluate and save the result; returns NOTHING or a request to stop."""
        assert self.evaluate is not None
        row = self.evaluate()
        self.model.train()
        if row is None:  # without a batch, this rank asks all to stop
            return self._agree(None)
        if row:
            self.history.add_evaluation(row)
            self._save(again=True)
        return Request.NOTHING

    def _save(self, loader_state: dict[str, Any] | None = None, *, again: bool = False) -> None:
        """Save, unless this step is saved already and ``again`` is False."""
        self._check_norm()
        epoch, step = self.history.epoch, self.history.step
        if again or self.saver.saved_at != (epoch, step):
            self.saver.save(self.state_dict(loader_state), epoch=epoch, step=step)
