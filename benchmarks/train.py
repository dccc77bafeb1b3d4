"""What the training loop costs beyond the model's own work.

- overhead: an epoch of our Trainer against a bare torch loop that makes the same updates (forward, loss, backward,
  clipping, Adam, the loss read back), each with a ResNet-18 and a batch that is always there; interleaved pairs.
- checkpoint: steps during which a ResNet-18 run is saved against the same steps without, interleaved.
- resume: from the call to the first finished step at step 100,000 of a run, and the same for a fresh start.
- waiting: share of the time a real run waits for data.

The figures in milliseconds are of the machine; the ratios are what is to be compared.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks import harness
from cltt import TemporalInfoNCE, build_shards, checkpoint, cli
from cltt.checkpoint import CheckpointStore
from cltt.config import (
    CheckpointSettings,
    DataSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    TrainSettings,
    WindowSettings,
)
from cltt.distributed import RankInfo, pick_device
from cltt.loader.loader import Batch
from cltt.training import factory, run
from cltt.training.optim import build_optimizer
from cltt.training.progress import Progress
from cltt.training.signals import StopSignals
from cltt.training.trainer import Saver, Trainer

B, T, SIDE = 8, 5, 64
RESUMED_STEP = 100_000
Row = dict[str, Any]


class OneBatch:
    """A loader whose batch is always there: ``steps`` times an epoch."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch] * self.steps)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to go back to."""


def a_batch(device: torch.device) -> Batch:
    frames = torch.randn(B, T, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(device)
    return Batch(frames, torch.arange(B), torch.arange(B), torch.arange(B * T).view(B, T))


def bare_loop(device: torch.device, steps: int) -> Callable[[], None]:
    """``steps`` updates as one would write them down."""
    torch.manual_seed(0)
    model = factory.prepare_model(factory.build_model(ModelSettings()), RunSettings(), device, RankInfo()).train()
    optimizer, _ = build_optimizer(model, OptimSettings(), device, 1)
    loss_fn, frames = TemporalInfoNCE(), a_batch(device).frames

    def loop() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model(frames))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()

    return loop


def our_trainer(device: torch.device, steps: int, run_dir: Path, store: CheckpointStore | None = None) -> Trainer:
    """A Trainer on the same model and batch, with the progress display a run has."""
    torch.manual_seed(0)
    model = factory.prepare_model(factory.build_model(ModelSettings()), RunSettings(), device, RankInfo())
    optim = OptimSettings(epochs=1_000_000)
    optimizer, scheduler = build_optimizer(model, optim, device, 1)
    progress = Progress(
        total_steps=10**9, done_steps=0, steps_per_epoch=steps, batch_size=B, wait_share=lambda: 0.0, device=device
    )
    trainer = Trainer(
        model=model,
        loss_fn=TemporalInfoNCE(),
        optimizer=optimizer,
        scheduler=scheduler,
        loader=OneBatch(a_batch(device), steps),
        saver=Saver(store, minutes=0, extra={}),
        stop=StopSignals(),
        device=device,
        optim=optim,
        run_dir=run_dir,
        on_step=progress.step,
    )
    trainer.model.train()
    return trainer


def synchronize(device: torch.device) -> Callable[[], None] | None:
    return torch.cuda.synchronize if device.type == "cuda" else None


def overhead(device: torch.device, folder: Path, *, quick: bool) -> list[Row]:
    """Our loop over the bare one: time of an epoch of ``steps`` steps."""
    steps = 2 if device.type == "cpu" else 50
    trainer = our_trainer(device, steps, folder)
    calls = {"bare": bare_loop(device, steps), "ours": trainer._run_epoch}
    timings = harness.time_interleaved(calls, rounds=6 if quick else 20, synchronize=synchronize(device))
    percent = [100 * (value - 1) for value in harness.ratio(timings["ours"], timings["bare"]).seconds]
    return [
        *(row(f"step, {name} loop", [s / steps * 1e3 for s in t.seconds], "ms") for name, t in timings.items()),
        row("overhead of our loop", percent, "%"),
    ]


def checkpoint_cost(device: torch.device, folder: Path, *, quick: bool) -> list[Row]:
    """Training time lost to one checkpoint: epochs that end with one, written while the next steps run, and without."""
    steps = 8 if device.type == "cpu" else 100
    with CheckpointStore(folder / "run", keep_last=1) as store:
        trainer = our_trainer(device, steps, folder, store)

        def with_save() -> None:
            trainer.saver.store = store
            trainer._save(again=True)
            trainer.saver.store = None
            trainer._run_epoch()
            store.wait()

        def without() -> None:
            trainer.saver.store = None
            trainer._run_epoch()

        calls = {"with": with_save, "without": without}
        timings = harness.time_interleaved(calls, rounds=3 if quick else 7, synchronize=synchronize(device))
        trainer.saver.store = store
        blocked = []
        for _ in range(3):
            start = time.perf_counter()
            trainer._save(again=True)
            blocked.append((time.perf_counter() - start) * 1e3)
            store.wait()
        size = sum(path.stat().st_size for path in checkpoint.list_checkpoints(folder / "run")) / 1e6
    lost = [a - b for a, b in zip(timings["with"].seconds, timings["without"].seconds, strict=True)]
    return [
        row("training time lost to a checkpoint", lost, "s"),
        row("of it the loop stands still", blocked, "ms"),
        row("size of a checkpoint", [size], "MB"),
    ]


def draw_shards(folder: Path) -> Path:
    """Six clips of 500 small frames as shards."""
    rng = np.random.default_rng(0)
    for clip in range(6):
        target = folder / "frames" / f"clip{clip}"
        target.mkdir(parents=True)
        scene = cv2.resize(rng.integers(0, 256, (8, 40, 3), dtype=np.uint8), (800, 96), interpolation=cv2.INTER_CUBIC)
        for frame in range(500):
            cv2.imwrite(str(target / f"{frame:04d}.jpg"), scene[:, frame : frame + 128])
    build_shards(folder / "frames", folder / "shards")
    return folder / "shards"


def time_to_first_step(settings: TrainSettings) -> float:
    """Seconds from the call to the first finished step; the run then stops and saves."""
    first: list[float] = []

    def on_step(loss: float) -> None:
        if not first:
            first.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGUSR1)

    start = time.perf_counter()
    run.train(settings, on_step=on_step)
    return first[0] - start


def at_step(path: Path, steps_per_epoch: int, step: int) -> None:
    """Rewrite a checkpoint as if the run had made ``step`` steps."""
    state = checkpoint.load(path)
    epoch, within = divmod(step, steps_per_epoch)
    state["loader"]["plan"].update(epoch=epoch, step=within)
    line = {"epoch": 1, "loss": 2.0, "learning_rate": 1e-3, "decay_rate": 1.0}
    state["history"].update(train=[line | {"epoch": k + 1} for k in range(epoch)])
    state["history"].update(epoch=epoch, step=within, total_steps=step)
    path.unlink()
    del state["version"]
    target = path.with_name(checkpoint.checkpoint_name(epoch, within))
    checkpoint.write(target, state)
    (path.parent / checkpoint.LATEST).write_text(target.name)


def resume(device: torch.device, folder: Path, shards: Path, *, quick: bool) -> list[Row]:
    """Fresh start and resume at step 100,000, both up to the first finished step."""
    settings = run_settings(shards, folder / "resumed", device)
    fresh = time_to_first_step(settings)
    path, _, _ = checkpoint.find_latest(settings.run_dir)
    assert path is not None
    dataset = factory.open_dataset(settings.data)
    steps_per_epoch = len(factory.build_index(dataset, settings)) // settings.data.batch_size
    at_step(path, steps_per_epoch, RESUMED_STEP)
    again = dataclasses.replace(
        settings, checkpoint=dataclasses.replace(settings.checkpoint, resume=True, checkpoint_minutes=0)
    )
    seconds = [time_to_first_step(again) for _ in range(2 if quick else 5)]
    return [row("first step, fresh start", [fresh], "s"), row(f"first step, resumed at {RESUMED_STEP}", seconds, "s")]


def waiting(device: torch.device, folder: Path, shards: Path, *, quick: bool) -> list[Row]:
    """Share of a run's time that it waits for data, after the first cache fill."""
    settings = run_settings(shards, folder / "waiting", device)
    info = RankInfo()
    dataset = factory.open_dataset(settings.data)
    steps = (20 if quick else 60) if device.type == "cpu" else 300
    with factory.build_loader(dataset, factory.build_index(dataset, settings), settings, device, info) as loader:
        model = factory.start_model(settings, weights=None, say=print)
        trainer = factory.build_trainer(settings, model, loader, device, info, stop=StopSignals())
        batches = iter(loader)
        trainer.model.train()
        trainer._step(next(batches))
        waited, start = 0.0, time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            trainer._step(batch)
        share = 100 * waited / (time.perf_counter() - start)
    return [row("time for data", [share], "% of a step")]


def run_settings(shards: Path, run_dir: Path, device: torch.device) -> TrainSettings:
    return TrainSettings(
        windows=WindowSettings(window_size=T, frame_step=2),
        data=DataSettings(shards=str(shards), batch_size=B, image_size=SIDE, num_workers=2),
        optim=OptimSettings(epochs=10_000),
        run=RunSettings(device=device.type),
        checkpoint=CheckpointSettings(checkpoint_dir=str(run_dir)),
    )


def row(what: str, values: list[float], unit: str) -> Row:
    """Median and spread of one figure."""
    return {
        "figure": what,
        "median": harness.percentile(values, 50),
        "p20": harness.percentile(values, 20),
        "p80": harness.percentile(values, 80),
        "unit": unit,
        "samples": len(values),
    }


def main() -> None:
    args = harness.parser("train", __doc__.splitlines()[0] if __doc__ else "").parse_args()
    device = pick_device("auto", RankInfo())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = draw_shards(folder)
        rows = overhead(device, folder, quick=args.quick)
        rows += checkpoint_cost(device, folder, quick=args.quick)
        rows += waiting(device, folder, shards, quick=args.quick)
        rows += resume(device, folder, shards, quick=args.quick)
    rows = [{"device": device.type, **line} for line in rows]
    harness.write_csv("train" if device.type == "cpu" else "train_gpu", rows)
    harness.print_table(rows, f"Training, ResNet-18, {B} windows of {T} frames, {SIDE} x {SIDE}")


if __name__ == "__main__":
    cli.run(main, "benchmarks.train")
