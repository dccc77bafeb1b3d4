"""Runs a training from its settings; ``train.py`` and ``cltt train`` call :func:`train`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cltt import checkpoint, cli, distributed
from cltt.checkpoint import CheckpointStore
from cltt.config import DataSettings, LabelRules, RunSettings, TrainSettings, declared, differences, values_of
from cltt.distributed import RankInfo
from cltt.errors import EXIT_REQUEUE, BusyError, CLTTError, DataError, OutOfMemoryError, SettingsError, StorageError
from cltt.evaluation.datasets import LabelledSettings, open_labelled
from cltt.evaluation.evaluator import Evaluator
from cltt.evaluation.parts import seen_in_training
from cltt.evaluation.protocols.abx import AbxEvaluator
from cltt.files.locks import locked
from cltt.files.retry import set_policy
from cltt.metrics import History
from cltt.models.weights import PIXELS_CHANGED
from cltt.region import without_box_line
from cltt.sets.use import in_use
from cltt.shards.checks import read_index
from cltt.shards.dataset import ShardDataset
from cltt.source.scan import check_root
from cltt.text import changes, say
from cltt.training.factory import build_index, build_loader, build_trainer, data_identity, open_dataset, start_model
from cltt.training.outputs import Outputs, finish_writing
from cltt.training.overview import overview
from cltt.training.progress import show
from cltt.training.records import Records, check_outputs
from cltt.training.signals import Request, StopSignals
from cltt.training.trainer import Trainer

STOP_NOTICE = "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n"
LOCK_SECONDS = 120.0  # how long a resumed run waits for the lock of its folder
EXIT_STATUS = {Request.NOTHING: 0, Request.STOP: EXIT_REQUEUE, Request.INTERRUPT: cli.EXIT_INTERRUPTED}


def train(
    settings: TrainSettings, *, prog: str = "train.py", on_step: Callable[[float], None] = lambda loss: None
) -> int:
    """Train from scratch, from weights or from a checkpoint; returns the exit status.

    The status is 0, or 85 or 130 if the run was asked to stop. ``on_step`` is called with the loss after every step.
    Raises SettingsError, DataError and OutOfMemoryError. Over several ranks a failure on one ends the processes of all,
    and is printed once, with ``prog`` as the program's name.
    """
    info = distributed.rank_info()
    stop = StopSignals(STOP_NOTICE if info.is_main else "", EXIT_REQUEUE)
    with ExitStack() as stack:
        stack.callback(stop.restore)
        with distributed.ending_together(partial(cli.explain, prog=prog)), _explaining_out_of_memory():
            cuda = settings.run.device != "cpu" and torch.cuda.is_available()
            distributed.start(info, cuda=cuda, io_patience=settings.data.io_patience)
            status = EXIT_STATUS[_train(settings, info, stack, stop, on_step)]
            distributed.stop(status)
    return status


def _train(
    settings: TrainSettings, info: RankInfo, stack: ExitStack, stop: StopSignals, on_step: Callable[[float], None]
) -> Request:
    """Build the objects, train, and return the request that ended it.

    ``stack`` closes what is opened here, after all ranks know of an error.
    """
    set_policy(settings.data.io_patience)
    device = distributed.pick_device(settings.run.device, info)
    distributed.agreed(device.type, "the device")
    _prepare_torch(settings.run, device)
    saved_before = checkpoint.list_checkpoints(settings.run_dir)
    read: dict[Path, Any] = {}  # the checkpoint on rank 0, which has read it to check it
    start_from, fingerprint = distributed.from_main(lambda: _find_start(settings, read))
    weights = settings.checkpoint.checkpoint_path if start_from is None else None
    model = start_model(settings, weights=weights, say=say if info.is_main else lambda line: None)
    evaluator = _open_evaluator(settings, device)

    def hold(shards: Path) -> None:
        if info.is_main:
            stack.enter_context(in_use(shards, settings.run_dir))

    dataset = open_dataset(settings.data, info, fingerprint=fingerprint, on_located=hold)
    split, clips = dataset.training_clips(settings.data.split, settings.data.clips)
    if evaluator is not None and (warning := seen_in_training(evaluator.data.parts, dataset, clips)):
        say(f"warning: {warning}")
    abx = _open_abx(dataset, settings, device)
    loader = build_loader(dataset, build_index(dataset, settings), settings, device, info)
    stack.enter_context(loader)
    if info.is_main and settings.data.region == "boxes":
        say(without_box_line(dataset.frames_without_box(clips), int(dataset.clip_lengths[clips].sum())))
    store, records, listeners = None, None, {}
    if info.is_main:
        kept = settings.checkpoint
        store = CheckpointStore(settings.run_dir, keep_last=kept.keep_last, keep_every=kept.keep_every, say=show)
        records = Records(settings, History(), loader, device, Outputs(show))
        listeners = _listeners(records, on_step)
    trainer = build_trainer(
        settings, model, loader, device, info, stop=stop, store=store, evaluator=evaluator, abx=abx, **listeners
    )
    if start_from is not None:
        state = read.pop(start_from) if start_from in read else checkpoint.load(start_from)
        _resume(trainer, start_from, state, settings, dataset)
    distributed.from_main(lambda: _hold_run_dir(stack, settings, saved_before))
    if store is not None and records is not None:  # all checks have passed, so the run's folder may be written to
        stack.enter_context(store)
        named = distributed.described(device, info)
        for line in overview(dataset, split, trainer.model, loader, trainer.steps_per_epoch, named):
            say(line)
        stack.enter_context(records)  # last, as it starts the progress bar
    ended = trainer.run()
    if store is not None and records is not None:
        records.note_end(done=ended is Request.NOTHING)
        finish_writing([store, records.outputs], settings.data.io_patience)
    distributed.wait_for_all()  # rank 0's checkpoint must be on disk before any rank ends
    if trainer.failure is not None:
        raise StorageError(f"{trainer.failure}; the run is saved: --resume continues it")
    if records is not None:
        records.summarise(done=ended is Request.NOTHING)
    return ended


@contextmanager
def _explaining_out_of_memory() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        first_line = (str(error).splitlines() or ["the machine's memory is used up"])[0]
        raise OutOfMemoryError(
            f"out of memory: {first_line}; give --sub-batch-size, a smaller --batch-size or --cache-gb"
        ) from error


def _listeners(records: Records, on_step: Callable[[float], None]) -> dict[str, Any]:
    def each_step(loss: float) -> None:
        records.on_step(loss)
        on_step(loss)

    return {"history": records.history, "on_step": each_step, "on_epoch": records.on_epoch}


def _find_start(settings: TrainSettings, read: dict[Path, Any]) -> tuple[Path | None, str | None]:
    """The checkpoint to resume and the fingerprint of its data.

    None for a run from the beginning.

    The contents of the checkpoint go into ``read``. Raises SettingsError if the folder holds a run and --resume is not
    given.
    """
    run_dir = settings.run_dir
    if (older := checkpoint.older_run(run_dir)) is not None:
        raise SettingsError(_older_run_text(older))
    _check_source(settings.data)
    check_outputs(settings)
    if not settings.checkpoint.resume:
        if checkpoint.list_checkpoints(run_dir):
            raise SettingsError(_run_there_text(settings))
        return None, None
    path, state, warnings = checkpoint.find_latest(run_dir)
    for warning in warnings:
        say(f"warning: {warning}")
    if path is None:
        say(f"no checkpoint in {run_dir}: starting fresh")
        return None, None
    _check_resumable(path, _differences_of(path, state, settings))  # before shards are built
    read[path] = state
    return path, state.get("fingerprint")


def _run_there_text(settings: TrainSettings) -> str:
    """Why a new run cannot be begun here; --resume is advised only if the run that is there is on the same data."""
    run_dir, data = settings.run_dir, settings.data
    try:  # a run on --root-dir can be resumed with --shards, and the other way
        theirs = json.loads((run_dir / checkpoint.SETTINGS_FILE).read_bytes())["data"]
        before, now = (theirs["root_dir"], data.root_dir) if data.root_dir else (theirs["shards"], data.shards)
    except (OSError, ValueError, LookupError, TypeError):
        before = now = None
    if isinstance(before, str) and now is not None and os.path.realpath(before) != os.path.realpath(now):
        return f"{run_dir} holds a run on {before} already; give another --checkpoint-dir"
    return f"{run_dir} holds a run already; give --resume to go on with it, or another --checkpoint-dir"


def _differences_of(path: Path, state: dict[str, Any], settings: TrainSettings) -> list[str]:
    """The differences in settings that forbid resuming from ``path``.

    fps, stream and resize_short are compared if both runs have a root_dir.
    """
    saved = checkpoint.settings_of(path, state)
    stored = ("fps", "stream", "resize_short")
    was, now = saved.get("data", {}), settings.to_dict()["data"]
    both = was.get("root_dir") and now["root_dir"]
    source = changes({name: was.get(name) for name in stored}, {name: now[name] for name in stored}) if both else []
    return [*differences(saved, settings.to_dict()), *source]


def _check_resumable(path: Path, differ: list[str]) -> None:
    if differ:
        raise SettingsError(
            f"cannot resume {path} with other data or settings: {'; '.join(differ)}. Give what the run was started "
            "with, or another --checkpoint-dir; a new run starts from these weights with --checkpoint-path"
        )


def _check_source(data: DataSettings) -> None:
    """Raise SettingsError or DataError if the source of frames is not there.

    Called first, so that a wrong path is reported before a run that is already in the folder.
    """
    if data.shards is not None:
        read_index(Path(data.shards))
    else:
        assert data.root_dir is not None
        check_root(data.root_dir)


def _older_run_text(older: Path) -> str:
    weights = older if older.suffix == ".pth" else older.with_name("simclr_epoch_NNN.pth")
    return (
        f"{older.parent} holds a run of another program ({older.name}), which is kept; to start from its weights "
        f"give --checkpoint-path {weights} --normalise imagenet (or none, if it began before {PIXELS_CHANGED}) "
        f"--checkpoint-dir {older.parent.with_name(older.parent.name + '_cltt')}"
    )


def _resume(
    trainer: Trainer, path: Path, state: dict[str, Any], settings: TrainSettings, dataset: ShardDataset
) -> None:
    """Restore the trainer from checkpoint ``path`` with contents ``state``.

    Raises SettingsError for other data; other settings are refused before (:func:`_differences_of`).
    """
    parts = {"model": dict, "optimizer": dict, "scheduler": dict, "loader": dict, "history": dict, "random": list}
    checkpoint.require_parts(path, state, fingerprint=str, **parts)
    saved = checkpoint.settings_of(path, state)
    differ = []
    now = data_identity(dataset, settings)
    if other := changes(state, {"fingerprint": now["fingerprint"]}):
        differ += [f"the shards' {other[0]}"]
    elif state.get("clips") != now["clips"]:
        differ.append(f"--clips chooses other clips (the contents of {settings.data.clips})")
    _check_resumable(path, differ)
    trainer.saver.extra["begun_with"] = state.get("begun_with")
    try:
        trainer.load_state_dict(state)
    except CLTTError:
        raise
    except Exception as error:  # torch raises errors of many types for a state that does not fit
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"cannot resume from checkpoint {path}: {reason or type(error).__name__}") from error
    if distributed.world().is_main:
        say(f"resuming from {path}")
        _say_changes(saved, settings)


def _hold_run_dir(stack: ExitStack, settings: TrainSettings, saved_before: list[Path]) -> None:
    """Lock the run's folder until ``stack`` closes.

    Two runs in one folder would mix their checkpoints.

    A run that resumes waits LOCK_SECONDS for the lock, as a job can be restarted before the one before it has ended.
    Raises BusyError if another process holds the lock, and DataError if the checkpoints there are no longer
    ``saved_before``.
    """
    folder = settings.run_dir
    deadline = time.monotonic() + (LOCK_SECONDS if settings.checkpoint.resume else 0)
    reported = False
    while True:
        try:
            lock = locked(folder / ".lock", held=f"{folder} is written to", otherwise="give another --checkpoint-dir")
            stack.enter_context(lock)
            break
        except BusyError as error:
            if time.monotonic() >= deadline:
                raise
            if not reported:
                say(f"waiting for up to {LOCK_SECONDS:.0f} s: {error}")
            reported = True
            time.sleep(1)
    if checkpoint.list_checkpoints(folder) != saved_before:
        raise DataError(
            f"another run saved a checkpoint in {folder} while this one started; start again, or give another "
            "--checkpoint-dir"
        )


def _prepare_torch(run: RunSettings, device: torch.device) -> None:
    """Let cuDNN time its kernels on CUDA, or make torch deterministic, as ``run`` says."""
    torch.backends.cudnn.benchmark = device.type == "cuda" and not run.deterministic
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch requires it
        torch.use_deterministic_algorithms(True)


def _open_evaluator(settings: TrainSettings, device: torch.device) -> Evaluator | None:
    """The evaluator of --eval-data on rank 0; None on other ranks and without such data.

    A collective: data that cannot be opened raise on all ranks.
    """
    opened: list[Evaluator] = []
    data = settings.log.eval_data
    if data is not None:
        distributed.from_main(
            lambda: opened.append(
                Evaluator(
                    open_labelled(data, LabelledSettings(**values_of(settings.log, LabelRules))),
                    image_size=settings.data.image_size,
                    device=device,
                    normalise=settings.data.normalise,
                )
            )
        )
    if opened:
        say(f"evaluation data: {opened[0].data.layout}")
        for note in opened[0].data.notes:
            say(f"note: evaluation data: {note}")
    return opened[0] if opened else None


def _open_abx(dataset: ShardDataset, settings: TrainSettings, device: torch.device) -> AbxEvaluator | None:
    """The evaluator of ``--eval abx`` on the clips that are not trained on.

    None without that flag.
    """
    if settings.log.eval is None:
        return None
    _, trained = dataset.training_clips(settings.data.split, settings.data.clips)
    return AbxEvaluator(
        dataset,
        trained,
        settings.windows,
        image_size=settings.data.image_size,
        device=device,
        normalise=settings.data.normalise,
    )


def _say_changes(before: dict[str, dict[str, Any]], settings: TrainSettings) -> None:
    """Print a note for each evaluation setting that changed.

    Earlier evaluations used the old value.
    """
    names = ["eval_data", *(rule.name for rule in declared(LabelRules))]
    was, now = before.get("log", {}), settings.to_dict()["log"]
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    for change in changes({flags[name]: was.get(name, now[name]) for name in names}, {flags[n]: now[n] for n in names}):
        say(f"note: {change}: earlier evaluations of this run used the old value")
