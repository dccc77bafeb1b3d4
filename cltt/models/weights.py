"""Reads weights of runs, of the older script and of other programs.

Files that can be read: checkpoints of a run; files of the older script, ``{"model_state_dict": {"encoder.*",
"projection_head.*"}, "backbone", "proj_dim", ...}``; state dicts of an encoder under torchvision's or timm's names, as
.pth or .safetensors, under any prefix (:mod:`cltt.models.search`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cltt import checkpoint
from cltt.config import NORMALISATIONS, require
from cltt.config.recipe import is_backbone
from cltt.errors import DataError, SettingsError
from cltt.models.contrastive import ProjectionHead
from cltt.models.encoders import IMAGE_SIZE, Encoder, build_encoder
from cltt.models.search import BACKBONES, State, empty_encoder, find_encoder, mismatch, not_finite, tensors_in
from cltt.text import shorten

SAFETENSORS = ".safetensors"
EXTRA = "pip install 'cltt[safetensors]'"
PIXELS_CHANGED = "2026-03-03"  # the older script normalises pixels by ImageNet's mean and deviation since then
_OLDER = "model_state_dict"  # key of the weights in its files
_METADATA = "cltt"  # attribute of an exported state dict
_EPOCH = re.compile(r"epoch[_-](\d{1,9})")


@dataclass(frozen=True)
class Weights:
    """Weights read from a file.

    Attributes:
        path: the file.
        backbone: name of the encoder.
        encoder: weights of the encoder by its own names.
        head: weights of the projection head, as in the file; None: the file has none.
        origin: ``run`` (a checkpoint of a run), ``script`` (a file of the older script) or ``others``.
        normalise: normalisation of the pixels: ``imagenet`` or ``none``.
        image_size: side of the frames it was trained on; None: unknown.
        epoch, step: when it was saved, if the file's name or contents tell; else 0.
        saved: the whole checkpoint of a run; else empty.
    """

    path: Path
    backbone: str
    encoder: State
    head: State | None
    origin: str
    normalise: str
    image_size: int | None = None
    epoch: int = 0
    step: int = 0
    saved: dict[str, Any] = field(default_factory=dict)

    def build_encoder(self) -> Encoder:
        """The encoder with these weights, on the CPU; DataError if they do not fit ``backbone``."""
        encoder = build_encoder(self.backbone, self.image_size or IMAGE_SIZE)
        if wrong := mismatch(encoder.state_dict(), self.encoder):
            raise DataError(f"the weights in {self.path} do not fit a {self.backbone}: {wrong}")
        load_into(encoder, self.encoder, self.path)
        return encoder

    def empty_encoder(self) -> Encoder:
        """As :func:`cltt.models.search.empty_encoder`."""
        return empty_encoder(self.backbone, self.image_size or IMAGE_SIZE)

    def build_head(self) -> ProjectionHead:
        """The projection head with these weights.

        DataError if there are none, or they fit no head of this program.
        """
        head_weights = self.head or {}
        matrices = [value for value in head_weights.values() if isinstance(value, torch.Tensor) and value.dim() == 2]
        if not matrices:
            raise DataError(f"{self.path} holds no projection head")
        with torch.device("meta"):  # a damaged file could name sizes that no memory holds
            head = ProjectionHead(
                self.empty_encoder().feature_dim,
                max(1, len(matrices[-1])),
                hidden=len(matrices[0]),
                layers=min(max(len(matrices), 2), 3),
            )
        if wrong := mismatch(head.state_dict(), head_weights):
            raise DataError(f"the projection head in {self.path} does not fit a head of this program: {wrong}")
        head.to_empty(device="cpu")
        load_into(head, head_weights, self.path)
        return head


def read_weights(
    path: Path,
    backbone: str | None = None,
    *,
    image_size: int | None = None,
    prefix: str | None = None,
    normalise: str | None = None,
) -> Weights:
    """Read the weights in ``path``, a file or a run's folder (its newest checkpoint).

    Args:
        path: a checkpoint of a run, a file of the older script, or a state dict of an encoder.
        backbone: tried first if the file names none.
        image_size: side of the images, if the file does not tell (a ViT's weights depend on it); None: 224.
        prefix: prefix of the names of one encoder, if the file holds several.
        normalise: normalisation of the pixels, ``imagenet`` or ``none``; None: as the file says. Files of the older
            script do not say it.

    Raises DataError for a file that is damaged, unreadable or not finite. Raises SettingsError for weights that fit no
    known encoder, naming tensors, for several encoders, naming their prefixes, and if ``normalise`` must be given.
    """
    file = checkpoint.resolve(path)
    state = _read_safetensors(file) if file.suffix == SAFETENSORS else checkpoint.read(file)
    if not isinstance(state, Mapping):
        raise DataError(f"{file} holds a {type(state).__name__}; a dictionary with the weights by name is expected")
    if "version" in state:
        weights = _of_run(file)
        require(prefix is None, f"--weights-prefix is given, but {file} holds one encoder; leave it out")
    else:
        weights = _of_others(file, state, backbone, image_size, prefix, normalise)
    if odd := not_finite({**weights.encoder, **(weights.head or {})}):
        raise DataError(f"the weights in {file} are not finite (NaN or infinity in {odd}); give an earlier checkpoint")
    return weights if normalise is None else replace(weights, normalise=normalise)


def load_into(module: nn.Module, state: State, path: Path) -> None:
    """Load ``state``, whose names and shapes fit.

    DataError, naming ``path``, for tensors that torch cannot copy.
    """
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        reason = shorten(" ".join(str(error).split()), 200)
        raise DataError(f"the weights in {path} cannot be loaded ({reason})") from error


# ---- kinds of files


def _of_run(file: Path) -> Weights:
    state = checkpoint.load(file)
    checkpoint.require_parts(file, state, model=dict)
    named = {str(name): value for name, value in state["model"].items()}
    encoder, head = _under(named, "encoder."), _under(named, "head.") or None
    if "settings" not in state:
        found = find_encoder(file, encoder, BACKBONES)
        return Weights(file, found.backbone, found.weights, head, "run", "imagenet", epoch=_epoch_in(file))
    settings = checkpoint.settings_of(file, state)
    epoch, step = checkpoint.position(file) if file.name.startswith("epoch-") else (0, 0)
    return Weights(
        path=file,
        backbone=settings["model"]["backbone"],
        encoder=encoder,
        head=head,
        origin="run",
        normalise=settings["data"].get("normalise") or "imagenet",  # 0.1.0 did not save it
        image_size=settings["data"]["image_size"],
        epoch=epoch,
        step=step,
        saved=state,
    )


def _of_others(
    file: Path,
    state: Mapping[Any, Any],
    asked: str | None,
    image_size: int | None,
    prefix: str | None,
    normalise: str | None,
) -> Weights:
    """The weights in a file of the older script or of another program.

    Without metadata, ``imagenet`` is assumed.
    """
    metadata = _metadata(file, state)
    own_normalise = metadata["normalise"] if metadata.get("normalise") in NORMALISATIONS else "imagenet"
    size = int(metadata["image_size"]) if re.fullmatch("[0-9]{1,4}", metadata.get("image_size", "")) else image_size
    own = metadata.get("backbone", state.get("backbone"))
    tried = [str(own)] if is_backbone(own) else [*([asked] if asked else []), *BACKBONES]
    named = tensors_in(state)
    found = find_encoder(file, named, tried, image_size=size, prefix=prefix)
    is_older = found.prefix.startswith(_OLDER) and found.prefix.endswith("encoder.")
    head = _under(named, found.prefix.removesuffix("encoder.") + "projection_head.") if is_older else {}
    require(
        not is_older or normalise is not None,
        f"{file} does not say how the pixels were normalised; give --normalise imagenet (train_simclr.py since "
        f"{PIXELS_CHANGED}) or --normalise none (pixels from 0 to 1, before that day)",
    )
    epoch = state.get("epoch")
    return Weights(
        path=file,
        backbone=found.backbone,
        encoder=found.weights,
        head=_without_redundant_bias(head) or None,
        origin="script" if is_older else "others",
        normalise=normalise or own_normalise,
        image_size=size,
        epoch=epoch if type(epoch) is int else _epoch_in(file),
    )


def _without_redundant_bias(head: State) -> State:
    """The same head without the bias of linear layers before a BatchNorm.

    The running mean absorbs it.

    Such a bias has no effect in training, as BatchNorm subtracts the mean of the batch.
    """
    head = dict(head)
    for name in [name for name in head if re.fullmatch(r"\d+\.bias", name)]:
        mean = f"{int(name.partition('.')[0]) + 1}.running_mean"
        if mean in head and head[mean].shape == head[name].shape:
            head[mean] = head[mean] - head.pop(name)
    return head


def _under(named: Mapping[str, Any], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _epoch_in(file: Path) -> int:
    match = _EPOCH.search(file.name)
    return int(match[1]) if match else 0


# ---- safetensors


def _read_safetensors(file: Path) -> State:
    if not file.is_file():
        raise DataError(f"no checkpoint at {file}")
    try:
        from safetensors.torch import load_file

        return dict(load_file(file))
    except ImportError:
        raise SettingsError(f"reading {file} needs the package safetensors: {EXTRA}") from None
    except Exception as error:  # safetensors has its own class of errors
        raise DataError(f"{file} is damaged or not a safetensors file ({shorten(str(error), 200)})") from error


def attach(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> OrderedDict[str, torch.Tensor]:
    """``state`` with ``metadata`` as an attribute, which torch.save writes with it."""
    kept = OrderedDict(state)
    setattr(kept, _METADATA, dict(metadata))
    return kept


def _metadata(file: Path, state: Mapping[Any, Any]) -> dict[str, str]:
    """The metadata that an export wrote to ``file``; {} in files of other programs."""
    if file.suffix != SAFETENSORS:
        found = getattr(state, _METADATA, {})
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})
