"""Builds data, loader, model, optimizer and trainer of a run from its settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cltt
from cltt import distributed
from cltt.checkpoint import CheckpointStore
from cltt.config import (
    AugmentSettings,
    DataSettings,
    ModelSettings,
    OrderSettings,
    RunSettings,
    TrainSettings,
    ViewSettings,
    values_of,
)
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.evaluation import results
from cltt.evaluation.evaluator import Evaluator
from cltt.evaluation.protocols.abx import AbxEvaluator
from cltt.loader.loader import WindowLoader
from cltt.loss.infonce import TemporalInfoNCE
from cltt.metrics import History
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import IMAGE_SIZE, build_encoder, check_takes
from cltt.models.search import mismatch
from cltt.models.sync_batchnorm import synchronise
from cltt.models.weights import Weights, load_into, read_weights
from cltt.sampling.windows import WindowIndex
from cltt.sets.locate import locate_shards
from cltt.shards.dataset import ShardDataset
from cltt.shards.stage import stage
from cltt.training.optim import build_optimizer
from cltt.training.progress import show
from cltt.training.signals import StopRequested, StopSignals
from cltt.training.trainer import Saver, Trainer

# The option to broadcast buffers before every forward pass has a new name since torch 2.13.
_NEW_NAME = "forward_sync_buffers"
_SYNC_BUFFERS = _NEW_NAME if _NEW_NAME in signature(DistributedDataParallel).parameters else "broadcast_buffers"


def open_dataset(
    data: DataSettings,
    info: RankInfo | None = None,
    *,
    fingerprint: str | None = None,
    on_located: Callable[[Path], None] = lambda shards: None,
) -> ShardDataset:
    """Open the shards of ``data``.

    For a folder of frames, build them first if they do not exist yet.

    A collective. Raises DataError on every rank if the ranks do not open the same shards.

    Args:
        data: which shards, and whether to copy them to the node's disk first.
        info: rank and world size of this process; None: one process.
        fingerprint: fingerprint of the shards that a resumed run began with.
        on_located: called with the folder of the shards, before they are copied.
    """
    shards = locate_shards(data, fingerprint=fingerprint)
    on_located(shards)
    if data.stage_to is not None:
        shards = stage(shards, Path(data.stage_to), info or RankInfo())
    dataset = ShardDataset(shards)
    distributed.agreed(dataset.fingerprint, "the shards (their fingerprints)")
    return dataset


def build_index(dataset: ShardDataset, settings: TrainSettings) -> WindowIndex:
    """The windows of the clips to train on.

    These are the clips of ``split``. Without it: of the split ``train``, or all clips if the shards have no splits. A
    list of clips restricts them further.
    """
    split, clips = dataset.training_clips(settings.data.split, settings.data.clips)
    return WindowIndex(
        dataset.clip_lengths,
        **asdict(settings.windows),
        clips=None if split == "all" and settings.data.clips is None else clips,
        shuffle_seed=settings.data.shuffle_seed(settings.run.seed),
    )


def data_identity(dataset: Any, settings: TrainSettings) -> dict[str, str | None]:
    """Hashes of the shards and of the listed clips, which must be equal at a resume."""
    clips = None
    if settings.data.clips is not None:
        clips = hashlib.sha256(dataset.listed_clips(settings.data.clips).astype("<i8").tobytes()).hexdigest()[:32]
    return {"fingerprint": dataset.fingerprint, "clips": clips}


def build_loader(
    dataset: ShardDataset, index: WindowIndex, settings: TrainSettings, device: torch.device, info: RankInfo
) -> WindowLoader:
    """The loader of this rank; its batches have the dtype that the model computes in."""
    data = settings.data
    return WindowLoader(
        dataset,
        index,
        **values_of(data, OrderSettings),
        augment=AugmentSettings(**values_of(data, AugmentSettings)),
        **values_of(data, ViewSettings),
        image_size=data.image_size,
        device=device,
        dtype=autocast_type(settings.run, device) or torch.float32,
        seed=settings.run.seed,
        rank=info.rank,
        world_size=info.world_size,
        cache_bytes=None if data.cache_gb is None else int(data.cache_gb * 1e9),
        keep_bytes=_keep_bytes(settings),
        keep_dir=data.keep_dir,
        num_threads=data.num_workers,
        channels_last=device.type == "cuda",
        max_bad_frames=data.max_bad_frames,
        io_patience=data.io_patience,
    )


def _keep_bytes(settings: TrainSettings) -> int | None:
    """Most bytes of decoded frames that stay; None: by the free memory. In a run of one epoch none are used again."""
    if settings.data.keep_gb is not None:
        return int(settings.data.keep_gb * 1e9)
    return 0 if settings.optim.epochs == 1 and settings.data.keep_dir is None else None


def start_model(settings: TrainSettings, *, weights: str | None, say: Callable[[str], None]) -> ContrastiveModel:
    """The model at the start of a run, with random weights or those of the file ``weights``.

    Random weights depend on the seed. ``say`` prints what was loaded. Raises SettingsError for an encoder that does not
    exist or does not accept the run's images, and for weights that do not fit.
    """
    torch.manual_seed(settings.run.seed)
    model = build_model(settings.model, settings.data.image_size)
    check_takes(model.encoder, settings.model.backbone, settings.data.image_size)
    if weights is not None:
        loaded = load_weights(
            model,
            Path(weights),
            settings.model.backbone,
            image_size=settings.data.image_size,
            prefix=settings.checkpoint.weights_prefix,
            normalise=settings.data.normalise,
        )
        say(f"starting from the weights of {loaded}")
    return model


def build_model(settings: ModelSettings, image_size: int = IMAGE_SIZE) -> ContrastiveModel:
    """Encoder and projection head with random weights, drawn from torch's random state."""
    encoder = build_encoder(settings.backbone, image_size)
    head = ProjectionHead(
        encoder.feature_dim, settings.proj_dim, hidden=settings.proj_hidden, layers=settings.proj_layers
    )
    return ContrastiveModel(encoder, head)


def build_loss(settings: TrainSettings) -> TemporalInfoNCE:
    """The loss of the run; with a memory it also ignores pairs closer than ``min_gap``."""
    model = settings.model
    return TemporalInfoNCE(
        temperature=model.temperature,
        ignore_gap=settings.data.min_gap if model.memory else 0,
        hard_negatives=model.hard_negatives,
        memory=model.memory,
    )


def prepare_model(model: ContrastiveModel, run: RunSettings, device: torch.device, info: RankInfo) -> nn.Module:
    """Move the model to ``device``, compile it if asked to, and connect it to other ranks.

    BatchNorm takes its statistics over all ranks. The windows of one rank come from few clips, so its own statistics
    would be biased, and training would depend on the number of ranks.
    """
    if info.world_size > 1:
        synchronise(model)
    model = model.to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    if run.compile:
        model.compile()
    if info.world_size == 1:
        return model
    # Buffers are the running statistics: equal on all ranks, and not used in training.
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None, **options)


def autocast_type(run: RunSettings, device: torch.device) -> torch.dtype | None:
    """bfloat16 for ``--amp bf16``, and for ``--amp auto`` on CUDA; else None."""
    return torch.bfloat16 if run.amp == "bf16" or (run.amp == "auto" and device.type == "cuda") else None


def build_trainer(
    settings: TrainSettings,
    model: ContrastiveModel,
    loader: WindowLoader,
    device: torch.device,
    info: RankInfo,
    *,
    stop: StopSignals,
    store: CheckpointStore | None = None,
    evaluator: Evaluator | None = None,
    abx: AbxEvaluator | None = None,
    **listeners: Any,
) -> Trainer:
    """A Trainer of ``model`` on ``loader``, with loss, optimizer and schedule of the settings.

    Only rank 0 has ``store`` and ``evaluator``, and only rank 0 calls ``abx``. ``listeners``: the trainer's
    ``history``, ``on_step`` and ``on_epoch``.
    """

    def places(window_ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(loader.plan.places(window_ids.numpy()))

    wrapped = prepare_model(model, settings.run, device, info)
    steps = settings.optim.steps_per_epoch(len(loader))
    optimizer, scheduler = build_optimizer(wrapped, settings.optim, device, steps)
    identity = {
        "begun_with": cltt.__version__,
        "settings": settings.to_dict(),
        **data_identity(loader.dataset, settings),
    }
    return Trainer(
        model=wrapped,
        loss_fn=build_loss(settings),
        optimizer=optimizer,
        scheduler=scheduler,
        loader=loader,
        saver=Saver(store, minutes=settings.checkpoint.checkpoint_minutes, extra=identity),
        stop=stop,
        device=device,
        optim=settings.optim,
        run_dir=settings.run_dir,
        autocast=autocast_type(settings.run, device),
        places=places if settings.model.mask_overlaps or settings.model.memory else None,
        evaluate=None
        if settings.log.eval_data is None and abx is None
        else _evaluation(settings, model.encoder, evaluator, listeners.get("history"), stop, abx),
        eval_every=settings.log.eval_every,
        **listeners,
    )


def load_weights(model: ContrastiveModel, path: Path, backbone: str | None = None, **reading: Any) -> str:
    """Load the weights in ``path`` into ``model``; returns a text that says what was loaded.

    The arguments are those of :func:`cltt.models.weights.read_weights`. A checkpoint of a run must fit as a whole. Of
    other files only the encoder must fit: if their projection head is missing or another one, ``model`` keeps its own.
    Raises SettingsError, naming tensors, for what does not fit.
    """
    weights = read_weights(path, backbone, **reading)
    wrong = mismatch(model.encoder.state_dict(), weights.encoder)
    head_wrong = mismatch(model.head.state_dict(), weights.head or {})
    if wrong or (head_wrong and weights.origin == "run"):
        raise SettingsError(
            f"the weights in {path} are of backbone {weights.backbone}{_head_of(weights)}; give the same --backbone, "
            f"--proj-dim, --proj-hidden and --proj-layers ({wrong or head_wrong})"
        )
    load_into(model.encoder, weights.encoder, weights.path)
    if not head_wrong and weights.head is not None:
        load_into(model.head, weights.head, weights.path)
        return str(weights.path)
    why = f"its projection head does not fit ({head_wrong})" if weights.head else "it has no projection head"
    return f"{weights.path}: its encoder; {why}, so the head starts with random weights"


def _head_of(weights: Weights) -> str:
    """Text with the head settings of the run that saved ``weights``; empty if they are unknown."""
    model = weights.saved["settings"]["model"] if weights.saved else {}
    known = [f"{name} {model[name]}" for name in ("proj_dim", "proj_hidden", "proj_layers") if model.get(name)]
    return f" with {', '.join(known)}" if known else ""


def _evaluation(
    settings: TrainSettings,
    encoder: nn.Module,
    evaluator: Evaluator | None,
    history: History | None,
    stop: StopSignals,
    abx: AbxEvaluator | None = None,
) -> Callable[[], dict[str, float] | None]:
    """A function that evaluates ``encoder`` on rank 0 and returns the result on all ranks.

    The other ranks wait as long as it takes. After a failure (missing data, a broken image, a full disk) it prints a
    warning and returns {}. A request to stop ends the evaluation: it returns None.
    """

    def evaluate() -> dict[str, float] | None:
        assert history is not None  # this runs on rank 0 alone
        try:
            with stop.interrupting():
                made = [found(encoder) for found in (evaluator, abx) if found is not None]
            for result in made:
                show(result.describe())
        except StopRequested:
            show(f"no evaluation of epoch {history.epoch}, as a stop was requested; the next start makes it")
            return None
        except Exception as error:
            show(f"warning: no evaluation this time: {error}; training goes on")
            return {}
        place = {"epoch": history.epoch, "step": 0, "checkpoint": f"in training, epoch {history.epoch}"}
        row = place | {name: value for result in made for name, value in asdict(result).items()}
        try:
            if abx is None:
                results.add_json(settings.run_dir, row)
            else:
                flat = {name: value for result in made for name, value in result.columns().items()}
                results.add_rows(settings.run_dir, [row], [place | flat])
        except Exception as error:  # also of the plot
            show(f"warning: cannot write {settings.run_dir / results.JSON_FILE}: {error}")
        return {name: value for result in made for name, value in result.row().items()}

    return lambda: distributed.from_main(evaluate)
