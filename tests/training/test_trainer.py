"""The training loop on a loader of tensors: gradients, gradient caching, losses that are not finite, history."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cltt import TemporalInfoNCE, checkpoint
from cltt.checkpoint import CheckpointStore
from cltt.config import OptimSettings
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.training.grad_cache import cached_backward
from cltt.training.records import NonFiniteLossError
from cltt.training.signals import Request, StopRequested, StopSignals
from cltt.training.trainer import Saver, Trainer
from tests.helpers.tiny_run import FEATURES, TinyEncoder

B, T, SIDE = 6, 3, 16


@dataclass
class TensorBatch:
    frames: torch.Tensor
    window_ids: torch.Tensor
    clip_ids: torch.Tensor
    frame_ids: torch.Tensor


class TensorLoader:
    """Random batches, four per epoch; step ``bad_step`` of the first epoch holds a NaN."""

    def __init__(self, bad_step: int | None = None) -> None:
        self.epoch, self.step, self.bad_step = 0, 0, bad_step

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[TensorBatch]:
        while self.step < len(self):
            generator = torch.Generator().manual_seed(100 * self.epoch + self.step)
            frames = torch.randn(B, T, 3, SIDE, SIDE, generator=generator)
            if (self.epoch, self.step) == (0, self.bad_step):
                frames[2] = math.nan
            self.step += 1
            ids = torch.arange(B) + 10 * self.step
            yield TensorBatch(frames, ids, torch.zeros(B, dtype=torch.int64), ids[:, None] * 100 + torch.arange(T))

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step = state["epoch"], state["step"]


class WithBatchNorm(nn.Module):
    """[n, 3, H, W] -> [n, 16] with a BatchNorm in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Flatten(), nn.LazyLinear(FEATURES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def plain_model(seed: int = 0) -> ContrastiveModel:
    torch.manual_seed(seed)
    return ContrastiveModel(TinyEncoder(), nn.Linear(FEATURES, 8))


def make_trainer(
    run_dir: Path, *, loader: TensorLoader | None = None, model: nn.Module | None = None, **changes: Any
) -> Trainer:
    model = model or plain_model()
    optim = changes.pop("optim", OptimSettings(epochs=2))
    optimizer = changes.pop("optimizer", None) or torch.optim.Adam(model.parameters(), lr=optim.lr)
    run_dir.mkdir(exist_ok=True, parents=True)
    return Trainer(
        model=model,
        loss_fn=changes.pop("loss_fn", TemporalInfoNCE(0.5, backend="chunked")),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=optim.epochs),
        loader=loader or TensorLoader(),
        saver=Saver(None, minutes=0, extra={}),
        stop=StopSignals(),
        device=torch.device("cpu"),
        optim=optim,
        run_dir=run_dir,
        **changes,
    )


def embed(model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    return model(frames)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


# ---- the loop


def test_steps_are_those_of_a_loop_written_out(tmp_path: Path) -> None:
    """Adam, clipping, cosine over epochs, mean loss per epoch: against a plain loop."""
    losses: list[float] = []
    trainer = make_trainer(tmp_path, on_step=losses.append)
    assert trainer.run() is Request.NOTHING

    model, loader, loss_fn = plain_model(), TensorLoader(), TemporalInfoNCE(0.5, backend="reference")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    expected = []
    for epoch in range(2):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * epoch / 2)) / 2
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(batch.frames))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    rows = trainer.history.train
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4])
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.5e-3, 0.0])
    assert [row["decay_rate"] for row in rows] == pytest.approx([0.5, 0.0])


def test_the_loss_is_told_where_frames_stand(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    spy = TemporalInfoNCE(0.5, backend="chunked")
    spy.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1:]))
    make_trainer(tmp_path, loss_fn=spy).run()
    assert all(ids == () for ids in seen)
    seen.clear()
    make_trainer(tmp_path, loss_fn=spy, places=lambda ids: ids[:, None] * 100 + torch.arange(T)).run()
    batches = TensorLoader()
    for epoch in range(2):
        batches.set_epoch(epoch)
        for (clip_ids, places), batch in zip(seen[4 * epoch :], batches, strict=False):
            assert torch.equal(clip_ids, batch.clip_ids) and torch.equal(places, batch.frame_ids)
    assert len(seen) == 8


def test_evaluation_comes_every_nth_epoch_and_after_the_last(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        optim=OptimSettings(epochs=5, max_batches_per_epoch=1),
        evaluate=lambda: {"train_loss": 1.0, "train_acc": 0.5},
        eval_every=2,
    )
    trainer.run()
    assert [row["epoch"] for row in trainer.history.evaluation] == [2, 4, 5]
    for name, rows in zip(("m.csv", "e.csv"), trainer.history.csv(), strict=True):
        (tmp_path / name).write_bytes(rows)
    assert (tmp_path / "e.csv").read_text().splitlines()[:2] == [
        "epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc",
        "2,1.0,0.5,,,,",
    ]


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_an_epoch_is_saved_before_its_evaluation(way: str, tmp_path: Path) -> None:
    """A run that ends in its evaluation goes on with that, and ends as one that was not disturbed."""

    def evaluate() -> dict[str, float]:
        return {"train_loss": float(torch.rand(()))}

    def ends() -> None:
        if way == "kill":
            raise SystemExit
        trainer.stop.request = Request.STOP

    options = {"optim": OptimSettings(epochs=2, max_batches_per_epoch=2)}
    calm = make_trainer(tmp_path / "calm", evaluate=evaluate, **options)
    torch.manual_seed(1)
    calm.run()
    for epoch in (1, 2):
        with CheckpointStore(tmp_path / f"run {epoch}") as store:
            calls = iter([evaluate] * (epoch - 1) + [ends])
            trainer = make_trainer(tmp_path, evaluate=lambda: next(calls)(), **options)  # noqa: B023
            trainer.saver = Saver(store, minutes=0, extra={})
            torch.manual_seed(1)
            with contextlib.suppress(SystemExit):
                assert trainer.run() is Request.STOP
        path, *_ = checkpoint.find_latest(tmp_path / f"run {epoch}")
        assert path is not None and path.name == checkpoint.checkpoint_name(epoch)
        again = make_trainer(tmp_path, evaluate=evaluate, **options)
        again.load_state_dict(checkpoint.load(path))
        assert again.run() is Request.NOTHING
        assert again.history.state_dict() == calm.history.state_dict()


def test_a_stop_is_heard_in_what_may_be_left() -> None:
    stop = StopSignals(exit_status=85)
    try:
        with stop.deferred():
            for moment in ("inside", "before"):
                with pytest.raises(StopRequested), stop.interrupting():
                    assert moment == "inside"
                    signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGUSR1)
    finally:
        stop.restore()


# ---- not finite


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    """The weights are those after the good steps; step and windows are written out."""
    model, losses = plain_model(), []
    trainer = make_trainer(tmp_path, loader=TensorLoader(bad_step=2), model=model, on_step=losses.append)
    with pytest.raises(NonFiniteLossError, match=r"loss is nan at epoch 1, step 3"):
        trainer.run()
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert written == {"epoch": 1, "step": 3, "what": "loss", "value": "nan", "window_ids": [30, 31, 32, 33, 34, 35]}
    twin = plain_model()
    make_trainer(tmp_path, model=twin, optim=OptimSettings(epochs=2, max_batches_per_epoch=2))._run_epoch()
    assert len(losses) == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_that_is_not_finite_stops_before_the_update(
    kind: type[torch.optim.Optimizer], fused: bool | None, tmp_path: Path
) -> None:
    """A fused optimizer, as on a GPU, reads the norm a step later: it has left the weights as they were."""
    model = plain_model()
    states = [[p.clone() for p in model.parameters()]]  # before each step that was made

    class Trap(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * (math.inf if len(states) == 2 else 1)  # the second step

    bad = TemporalInfoNCE(0.5, backend="chunked")
    bad.register_forward_pre_hook(lambda _, arguments: Trap.apply(arguments[0]))
    optimizer = kind(model.parameters(), lr=0.1, fused=fused)
    keep = lambda loss: states.append([p.clone() for p in model.parameters()])  # noqa: E731
    trainer = make_trainer(tmp_path, model=model, loss_fn=bad, optimizer=optimizer, on_step=keep)
    with pytest.raises(NonFiniteLossError, match="norm is nan at epoch 1, step 2; training stopped before"):
        trainer.run()
    assert not torch.equal(states[0][0], states[1][0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), states[1], strict=True))
    second = list(itertools.islice(TensorLoader(), 2))[1]
    assert json.loads((tmp_path / "nonfinite.json").read_text())["window_ids"] == second.window_ids.tolist()


# ---- gradient caching


@pytest.mark.parametrize("sub_batch", [1, 2, 4, 5])
def test_cached_gradient_is_the_full_one(sub_batch: int) -> None:
    """BatchNorm in evaluation mode, uneven last sub-batch included: to 1e-6."""
    frames = torch.randn(B, T, 3, SIDE, SIDE)
    loss_fn = TemporalInfoNCE(0.5, backend="chunked")
    model = ContrastiveModel(WithBatchNorm(), ProjectionHead(FEATURES, 8))
    model(frames)
    model.eval()
    full = loss_fn(model(frames))
    full.backward()
    expected = gradients(model)
    model.zero_grad()
    loss = cached_backward(model, frames, sub_batch, forward=embed, loss_of=loss_fn)
    assert loss.item() == pytest.approx(full.item(), abs=1e-6)
    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_ctrl_c_asks_first_and_insists_when_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignals("saving\n")
    try:
        with pytest.raises(KeyboardInterrupt):  # nothing is there to save yet
            signal.raise_signal(signal.SIGINT)
        assert capfd.readouterr().err == ""
        with stop.deferred():
            signal.raise_signal(signal.SIGINT)
            assert stop.request is Request.INTERRUPT
            assert capfd.readouterr().err == "saving\n"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        stop.restore()


def test_a_request_to_stop_outside_the_loop_says_what_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    stop = StopSignals(exit_status=85)
    try:
        for words in ("before the first step", "continues from the newest checkpoint"):
            with pytest.raises(SystemExit) as ended:
                signal.raise_signal(signal.SIGTERM)
            assert ended.value.code == 85 and words in capfd.readouterr().err
            with stop.deferred():
                pass
    finally:
        stop.restore()


def test_cached_passes_agree_in_training_mode() -> None:
    """Dropout draws the same twice, running statistics move once: as in one pass over the sub-batches with a graph."""
    frames = torch.randn(B, T, 3, SIDE, SIDE)
    loss_fn = TemporalInfoNCE(0.5, backend="chunked")
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(ContrastiveModel(WithBatchNorm(), ProjectionHead(FEATURES, 8)))
        models[-1](frames)
    torch.manual_seed(5)
    loss_fn(torch.cat([models[0](part) for part in frames.split(2)])).backward()
    after_plain = torch.get_rng_state()
    torch.manual_seed(5)
    cached_backward(models[1], frames, 2, forward=embed, loss_of=loss_fn)
    assert torch.equal(torch.get_rng_state(), after_plain)
    for found, wanted in zip(gradients(models[1]), gradients(models[0]), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    for (name, found), wanted in zip(models[1].named_buffers(), models[0].buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)


def test_memory_of_caching_does_not_grow_with_the_batch() -> None:
    """Bytes held for the backward pass, counted as autograd saves them, at 4 and at 32 windows."""

    def peak(batch: int) -> int:
        model = plain_model()
        live, most = 0, 0

        def pack(x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
            nonlocal live, most
            live += x.nbytes
            most = max(most, live)
            return x, [x.nbytes]

        def unpack(packed: tuple[torch.Tensor, list[int]]) -> torch.Tensor:
            nonlocal live
            live -= packed[1].pop() if packed[1] else 0
            return packed[0]

        frames = torch.zeros(batch, T, 3, SIDE, SIDE)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            cached_backward(model, frames, 2, forward=embed, loss_of=lambda z: z.square().sum())
        return most

    weights = sum(p.nbytes for p in plain_model().parameters())
    assert peak(32) - peak(4) <= 2 * weights + 32 * T * 8 * 4 * 4  # embeddings and what may be held twice


def test_sub_batches_train_like_the_whole_batch(tmp_path: Path) -> None:
    runs = []
    for sub_batch in (0, 4):
        losses: list[float] = []
        make_trainer(tmp_path, on_step=losses.append, optim=OptimSettings(epochs=2, sub_batch_size=sub_batch)).run()
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


# ---- state


def test_a_restored_trainer_makes_the_same_steps_from_every_step_on(tmp_path: Path) -> None:
    losses: list[float] = []
    with CheckpointStore(tmp_path / "store", keep_last=100) as store:
        trainer = make_trainer(tmp_path, on_step=losses.append, optim=OptimSettings(epochs=3))
        trainer.saver = Saver(store, minutes=1e-9, extra={})
        trainer.run()
    from cltt import checkpoint

    paths = checkpoint.list_checkpoints(tmp_path / "store")
    assert len(paths) == 12
    final = checkpoint.load(paths[-1])
    for done, path in enumerate(paths[:-1], start=1):
        rest: list[float] = []
        again = make_trainer(tmp_path, on_step=rest.append, optim=OptimSettings(epochs=3), model=plain_model(seed=99))
        again.load_state_dict(checkpoint.load(path))
        assert again.run() is Request.NOTHING
        assert rest == losses[done:]
        assert again.history.state_dict() == final["history"]
