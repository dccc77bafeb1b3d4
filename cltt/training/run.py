"""Builds the objects of a run from its settings and lets them work; ``train.py`` is a thin face of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from cltt import checkpoint, distributed
from cltt.checkpoint import CheckpointStore
from cltt.config import RunSettings, TrainSettings, differences
from cltt.distributed import RankFacts
from cltt.errors import DataError, SettingsError
from cltt.evaluation.evaluator import Evaluator
from cltt.files import atomic
from cltt.files.locks import locked
from cltt.shards.dataset import ShardDataset
from cltt.training.factory import build_index, build_loader, build_trainer, open_dataset
from cltt.training.records import Records, summary_writer
from cltt.training.signals import StopSignals
from cltt.training.trainer import Trainer

STOP_NOTICE = "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n"
LOCK_PATIENCE = 120.0  # seconds


def train(settings: TrainSettings, *, on_step: Callable[[float], None] | None = None) -> int:
    """Train from scratch, from weights or from where the run stopped -> exit status: 0, or 85 or 130 if asked to stop.

    ``on_step`` is called with the loss after every step. Raises SettingsError and DataError for what the user can mend.
    """
    facts = distributed.rank_facts()
    stop = StopSignals(STOP_NOTICE if facts.is_main else "")
    try:
        device = distributed.pick_device(settings.run.device, facts)
        distributed.start(facts, device)
        return _train(settings, facts, device, stop, on_step)
    finally:
        distributed.stop()
        stop.restore()


def _train(
    settings: TrainSettings,
    facts: RankFacts,
    device: torch.device,
    stop: StopSignals,
    on_step: Callable[[float], None] | None,
) -> int:
    saved_before = checkpoint.list_checkpoints(settings.run_dir)
    start_from = distributed.from_main(lambda: _find_start(settings))
    evaluator = _open_evaluator(settings, device)
    dataset = open_dataset(settings.data, facts)
    index = build_index(dataset, settings)
    _prepare_torch(settings.run, device)
    with ExitStack() as stack:
        loader = stack.enter_context(build_loader(dataset, index, settings, device, facts))
        weights = settings.checkpoint.checkpoint_path if start_from is None else None
        trainer = build_trainer(settings, loader, device, facts, stop=stop, evaluator=evaluator, weights=weights)
        if start_from is not None:
            _resume(trainer, start_from, settings, dataset)
        distributed.from_main(lambda: _hold_run_dir(stack, settings, saved_before))
        if not facts.is_main:
            return 0 if trainer.run() else stop.status
        trainer.saver.store = stack.enter_context(
            _open_store(settings)
        )  # makes the run's folder: nothing is refused now
        records = stack.enter_context(Records(settings, trainer, loader, device))
        trainer.on_step = records.on_step if on_step is None else _both(records.on_step, on_step)
        trainer.on_epoch = records.on_epoch
        done = trainer.run()
        records.summarise(done)
    return 0 if done else stop.status


def _check_outputs(settings: TrainSettings) -> None:
    """SettingsError, before anything is built, if the run could not write what it is asked to; leaves no trace."""
    atomic.check_writable(settings.run_dir, "give another --checkpoint-dir")
    if settings.log.csv_log:
        for path, flag in ((settings.csv_path, "--csv-log-path"), (settings.eval_csv_path, "--eval-csv-log-path")):
            if path.is_dir():
                raise SettingsError(f"{path} is a folder; {flag} names a file")
            atomic.check_writable(path.parent, f"give another {flag}")
    if settings.log.tensorboard:
        summary_writer()


def _find_start(settings: TrainSettings) -> Path | None:
    """The checkpoint to go on from; None: a fresh start. Without --resume, a folder that holds a run is refused."""
    _check_outputs(settings)
    run_dir = settings.run_dir
    if not settings.checkpoint.resume:
        if checkpoint.list_checkpoints(run_dir):
            raise SettingsError(
                f"{run_dir} holds a run already; give --resume to go on with it, or another --checkpoint-dir"
            )
        return None
    path, warnings = checkpoint.find_latest(run_dir)
    for warning in warnings:
        print(f"warning: {warning}", flush=True)
    print(f"resuming from {path}" if path else f"no checkpoint in {run_dir}: starting fresh", flush=True)
    return path


def _resume(trainer: Trainer, path: Path, settings: TrainSettings, dataset: ShardDataset) -> None:
    """Put the trainer where ``path`` was saved. SettingsError, naming each difference, for other data or settings."""
    state = checkpoint.load(path)
    differ = differences(state["settings"], settings.to_dict())
    if state["fingerprint"] != dataset.fingerprint:
        differ.append(f"the shards' fingerprint is {dataset.fingerprint} and was {state['fingerprint']}")
    if differ:
        raise SettingsError(
            f"cannot resume {path} with other data or settings: {'; '.join(differ)}. Give what the run was started "
            "with, or another --checkpoint-dir"
        )
    trainer.load_state_dict(state)


def _hold_run_dir(stack: ExitStack, settings: TrainSettings, saved_before: list[Path]) -> None:
    """Lock the run's folder until ``stack`` closes: two runs in one folder would go on from each other's checkpoints.

    DataError if another process holds it, or has saved there since this one looked. A run that resumes waits for a
    while: a job can be started again before the one it follows is gone.
    """
    folder = settings.run_dir
    deadline = time.monotonic() + (LOCK_PATIENCE if settings.checkpoint.resume else 0)
    while True:
        try:
            lock = locked(folder / ".lock", held=f"{folder} is written to", otherwise="give another --checkpoint-dir")
            stack.enter_context(lock)
            break
        except DataError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)
    if checkpoint.list_checkpoints(folder) != saved_before:
        raise DataError(f"another run has saved in {folder} meanwhile; start this one again, or elsewhere")


def _open_store(settings: TrainSettings) -> CheckpointStore:
    kept = settings.checkpoint
    return CheckpointStore(settings.run_dir, keep_last=kept.keep_last, keep_every=kept.keep_every)


def _prepare_torch(run: RunSettings, device: torch.device) -> None:
    """Kernels: found by trial on CUDA, unless they are to be deterministic."""
    torch.backends.cudnn.benchmark = device.type == "cuda" and not run.deterministic
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
        torch.use_deterministic_algorithms(True)


def _both(first: Callable[[float], None], second: Callable[[float], None]) -> Callable[[float], None]:
    def call(loss: float) -> None:
        first(loss)
        second(loss)

    return call


def _open_evaluator(settings: TrainSettings, device: torch.device) -> Evaluator | None:
    """Rank 0's evaluator on --eval-data, None elsewhere or without such data; all ranks hear of data that cannot work.

    A collective.
    """
    opened: list[Evaluator] = []
    data = settings.log.eval_data
    if data is not None:
        distributed.from_main(
            lambda: opened.append(Evaluator(data, image_size=settings.data.image_size, device=device))
        )
    return opened[0] if opened else None
