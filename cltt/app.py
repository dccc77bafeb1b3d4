"""Builds the objects of a run from its settings and lets them work; ``train.py`` is a thin face of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cltt import checkpoint, distributed
from cltt._records import Records, summary_writer
from cltt.build.on_demand import locate_shards
from cltt.checkpoint import CheckpointStore
from cltt.config import DataSettings, ModelSettings, OptimSettings, RunSettings, TrainSettings, differences
from cltt.distributed import RankFacts
from cltt.errors import DataError, SettingsError
from cltt.evaluation import Evaluator
from cltt.files import atomic
from cltt.files.atomic import replace_file
from cltt.files.locks import locked
from cltt.loader.loader import WindowLoader
from cltt.loss.infonce import TemporalInfoNCE
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder
from cltt.sampling.windows import WindowIndex
from cltt.shards.dataset import ShardDataset
from cltt.trainer import Saver, StopSignals, Trainer

EVALUATION_FILE = "evaluation.json"
STOP_NOTICE = "\nstopping after this step, with a checkpoint; Ctrl-C again stops at once, without one\n"
LOCK_PATIENCE = 120.0  # seconds
# torch 2.13 has a new name for "broadcast the buffers before every forward pass"
_NEW_NAME = "forward_sync_buffers"
_SYNC_BUFFERS = _NEW_NAME if _NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers"


def open_dataset(data: DataSettings, facts: RankFacts | None = None) -> ShardDataset:
    """Open the shards of ``data``, built first if they come from a folder of frames and are not there yet."""
    return ShardDataset(locate_shards(data, facts or RankFacts()))


def build_index(dataset: ShardDataset, settings: TrainSettings) -> WindowIndex:
    """Windows of the clips to train on: ``split``, or ``train`` where the shards have splits, or all."""
    w = settings.windows
    split = settings.data.split or ("train" if dataset.split_names else "all")
    if split != "all" and split not in dataset.split_names:
        has = ", ".join(dataset.split_names) or "none"
        raise SettingsError(f"split is {split!r}, but the shards' splits are: {has}; build them with --splits")
    return WindowIndex(
        dataset.clip_lengths,
        window_size=w.window_size,
        frame_step=w.frame_step,
        window_stride=w.window_stride,
        max_windows_per_clip=w.max_windows_per_clip,
        clips=None if split == "all" else dataset.split_clips(split),
    )


def build_loader(
    dataset: ShardDataset, index: WindowIndex, settings: TrainSettings, device: torch.device, facts: RankFacts
) -> WindowLoader:
    """Batches of this rank, in the type the model computes in."""
    data = settings.data
    return WindowLoader(
        dataset,
        index,
        data.batch_size,
        image_size=data.image_size,
        device=device,
        dtype=autocast_type(settings.run, device) or torch.float32,
        augment=data.augment,
        augment_scope=data.augment_scope,
        seed=settings.run.seed,
        min_gap=data.min_gap,
        depth=data.depth,
        rank=facts.rank,
        world_size=facts.world_size,
        cache_bytes=None if data.cache_gb is None else int(data.cache_gb * 1e9),
        num_threads=data.num_workers,
        channels_last=device.type == "cuda",
        max_bad_frames=data.max_bad_frames,
    )


def build_model(settings: ModelSettings) -> ContrastiveModel:
    """Encoder and head with weights drawn from torch's random state."""
    encoder = build_encoder(settings.backbone)
    return ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim, settings.proj_dim))


def prepare_model(model: ContrastiveModel, run: RunSettings, device: torch.device, facts: RankFacts) -> nn.Module:
    """Put the model on its device, compile it if asked to, and tie it to the other ranks.

    Rows of a rank come from few runs of neighbouring windows, so statistics of one rank alone would be biased:
    BatchNorm is synchronised over ranks on CUDA. SyncBatchNorm refuses CPU tensors; gloo runs keep local BatchNorm and
    say so.
    """
    if facts.world_size > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif facts.is_main and facts.world_size > 1 and any("BatchNorm" in type(m).__name__ for m in model.modules()):
        print("several ranks on the CPU: each has BatchNorm statistics of its own (SyncBatchNorm needs CUDA)")
    model = model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    if run.compile:
        model.compile()
    if facts.world_size == 1:
        return model
    # Buffers are the running statistics: equal on all ranks if synchronised, and unused in training anyway.
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None, **options)


def build_optimizer(
    model: nn.Module, optim: OptimSettings, device: torch.device
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, and a cosine from ``lr`` to 0 that moves once an epoch."""
    fused = True if device.type == "cuda" else None
    optimizer = torch.optim.Adam(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=optim.epochs)


def autocast_type(run: RunSettings, device: torch.device) -> torch.dtype | None:
    """bfloat16 where ``--amp`` asks for it or, on ``auto``, on CUDA; else None."""
    return torch.bfloat16 if run.amp == "bf16" or (run.amp == "auto" and device.type == "cuda") else None


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


def build_trainer(
    settings: TrainSettings,
    loader: WindowLoader,
    device: torch.device,
    facts: RankFacts,
    *,
    stop: StopSignals,
    evaluator: Evaluator | None = None,
    weights: str | None = None,
) -> Trainer:
    """Model, loss, optimizer and schedule around ``loader``; ``weights``: a checkpoint whose weights to start from.

    Its saver has no store yet.
    """
    torch.manual_seed(settings.run.seed)
    model = build_model(settings.model)
    if weights is not None:
        load_weights(model, Path(weights))
        if facts.is_main:
            print(f"starting from the weights of {checkpoint.resolve(Path(weights))}", flush=True)
    wrapped = prepare_model(model, settings.run, device, facts)
    optimizer, scheduler = build_optimizer(wrapped, settings.optim, device)
    facts_saved = {"settings": settings.to_dict(), "fingerprint": loader.dataset.fingerprint}
    return Trainer(
        model=wrapped,
        loss_fn=TemporalInfoNCE(temperature=settings.model.temperature),
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        saver=Saver(None, minutes=settings.checkpoint.checkpoint_minutes, extra=facts_saved),
        stop=stop,
        device=device,
        optim=settings.optim,
        run_dir=settings.run_dir,
        autocast=autocast_type(settings.run, device),
        mask_overlaps=settings.model.mask_overlaps,
        evaluate=None if evaluator is None else _evaluation(settings, model.encoder, evaluator),
        eval_every=settings.log.eval_every,
    )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of the checkpoint at ``path`` (a file, or a run's folder: its newest) into ``model``."""
    state = checkpoint.load(checkpoint.resolve(path))
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        was = state["settings"]["model"]
        raise SettingsError(
            f"the weights in {path} are of backbone {was['backbone']} with proj_dim {was['proj_dim']}; give the same "
            f"--backbone and --proj-dim ({str(error).splitlines()[0]})"
        ) from error


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


def _evaluation(settings: TrainSettings, encoder: nn.Module, evaluator: Evaluator) -> Callable[[], dict[str, float]]:
    """Evaluates ``encoder`` and returns the row for the CSV."""

    def evaluate() -> dict[str, float]:
        result = evaluator(encoder)
        replace_file(settings.run_dir / EVALUATION_FILE, json.dumps(result.to_dict(), indent=1).encode())
        tqdm.write(result.describe())  # leaves the progress bar whole
        return result.row()

    return evaluate
