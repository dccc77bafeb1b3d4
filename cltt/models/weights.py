"""Weights to start from, to evaluate or to hand on: of a run here, of the script before it, or of other programs.

What is read: checkpoints of a run; ``{"model_state_dict": {"encoder.*", "projection_head.*"}, "backbone", "proj_dim",
...}`` as the older script wrote them; state dicts of an encoder under torchvision's or timm's names, as .pth or
.safetensors, below any prefix (:mod:`cltt.models.search`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from cltt.models.search import BACKBONES, State, empty_encoder, find_encoder, misfit, not_finite, tensors_in
from cltt.text import shorten

SAFETENSORS = ".safetensors"
EXTRA = "pip install 'cltt[safetensors]'"
PIXELS_CHANGED = "2026-03-03"  # since then the older script takes pixels less ImageNet's mean, over its deviation
_OLDER = "model_state_dict"  # where it kept its weights
_WORDS = "cltt"  # attribute of an exported state dict
_EPOCH = re.compile(r"epoch[_-](\d{1,9})")


@dataclass(frozen=True)
class Weights:
    """Weights read from a file.

    Attributes:
        path: the file.
        backbone: whose ``encoder`` weights these are.
        head: of the projection head, as they lie in the file; None: the file has none.
        origin: ``run`` (a checkpoint of a run here), ``script`` (of the older script) or ``others``.
        normalise: how pixels entered the network: ``imagenet`` or ``none``.
        image_size: side of the frames it was trained on, None: not said.
        epoch, step: after which it was saved, where the file's name or contents say so; else 0.
        saved: the whole checkpoint of a run here; else empty.
    """

    path: Path
    backbone: str
    encoder: State
    head: State | None
    origin: str
    normalise: str
    image_size: int | None
    epoch: int
    step: int
    saved: dict[str, Any]

    def build_encoder(self) -> Encoder:
        """The encoder with these weights, on the CPU; DataError if a checkpoint of a run holds others than it says."""
        encoder = build_encoder(self.backbone, self.image_size or IMAGE_SIZE)
        if wrong := misfit(encoder.state_dict(), self.encoder):
            raise DataError(f"the weights in {self.path} are not those of a {self.backbone}: {wrong}")
        load_into(encoder, self.encoder, self.path)
        return encoder

    def empty_encoder(self) -> Encoder:
        """As :func:`cltt.models.search.empty_encoder`."""
        return empty_encoder(self.backbone, self.image_size or IMAGE_SIZE)

    def build_head(self) -> ProjectionHead:
        """The projection head with these weights; DataError if there are none, or they are of another kind of head."""
        head_weights = self.head or {}
        matrices = [value for value in head_weights.values() if isinstance(value, torch.Tensor) and value.dim() == 2]
        if not matrices:
            raise DataError(f"{self.path} holds no projection head")
        head = _empty_head(self.empty_encoder().feature_dim, matrices)
        if wrong := misfit(head.state_dict(), head_weights):
            raise DataError(f"the projection head in {self.path} is of another kind than this program's: {wrong}")
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
    """The weights in ``path``, a file or a run's folder (its newest checkpoint).

    Args:
        path: a checkpoint of a run, a file of the older script, or a state dict of an encoder.
        backbone: tried first where the file names none.
        image_size: side of the images that the encoder is made for where the file does not say it (a ViT's weights
            depend on it); None: 224.
        prefix: what stands before the names of one of several encoders in the file.
        normalise: how pixels entered the network, ``imagenet`` or ``none``; None: as the file says, which those of the
            older script do not.

    Raises DataError for what is damaged, cannot be read or is not finite, and SettingsError, naming tensors, for a
    network that none of ours is, for several encoders, naming their prefixes, and where ``normalise`` must be given.
    """
    file = checkpoint.resolve(path)
    state = _read_safetensors(file) if file.suffix == SAFETENSORS else checkpoint.read(file)
    if not isinstance(state, Mapping):
        raise DataError(f"{file} holds no weights by name, but a {type(state).__name__}")
    if "version" in state:
        weights = _of_a_run(file)
        require(prefix is None, f"--weights-prefix is given, but {file} holds one encoder; leave it out")
    else:
        weights = _of_others(file, state, backbone, image_size, prefix, normalise)
    if odd := not_finite({**weights.encoder, **(weights.head or {})}):
        raise DataError(f"the weights in {file} are not finite (NaN or infinity in {odd}); give an earlier checkpoint")
    return weights if normalise is None else replace(weights, normalise=normalise)


def load_into(module: nn.Module, state: State, path: Path) -> None:
    """Load ``state``, whose names and shapes fit; DataError, naming ``path``, for tensors of a kind that cannot be."""
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        words = shorten(" ".join(str(error).split()), 200)
        raise DataError(f"the weights in {path} cannot be loaded ({words})") from error


# ---- kinds of files


def _of_a_run(file: Path) -> Weights:
    state = checkpoint.load(file)
    checkpoint.require_parts(file, state, model=dict)
    named = {str(name): value for name, value in state["model"].items()}
    encoder, head = _below(named, "encoder."), _below(named, "head.") or None
    if "settings" not in state:
        found = find_encoder(file, encoder, BACKBONES)
        return Weights(file, found.backbone, found.weights, head, "run", "imagenet", None, _epoch_in(file), 0, {})
    settings = checkpoint.settings_of(file, state)
    epoch, step = checkpoint.position(file) if file.name.startswith("epoch-") else (0, 0)
    return Weights(
        path=file,
        backbone=settings["model"]["backbone"],
        encoder=encoder,
        head=head,
        origin="run",
        normalise=settings["data"].get("normalise") or "imagenet",  # which 0.1.0 did not save
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
    """Where nothing is said, pixels entered less ImageNet's mean, over its deviation, as with torchvision's."""
    said = _metadata(file) if file.suffix == SAFETENSORS else _attached(state)
    own_normalise = said["normalise"] if said.get("normalise") in NORMALISATIONS else "imagenet"
    size = int(said["image_size"]) if re.fullmatch("[0-9]{1,4}", said.get("image_size", "")) else image_size
    own = said.get("backbone", state.get("backbone"))
    tried = [str(own)] if is_backbone(own) else [*([asked] if asked else []), *BACKBONES]
    named = tensors_in(state)
    found = find_encoder(file, named, tried, image_size=size, prefix=prefix)
    is_older = found.prefix.startswith(_OLDER) and found.prefix.endswith("encoder.")
    head = _below(named, found.prefix.removesuffix("encoder.") + "projection_head.") if is_older else {}
    require(
        not is_older or normalise is not None,
        f"{file} does not say how pixels entered its network; give --normalise imagenet (train_simclr.py since "
        f"{PIXELS_CHANGED}) or --normalise none (pixels from 0 to 1, before that day)",
    )
    epoch = state.get("epoch")
    return Weights(
        path=file,
        backbone=found.backbone,
        encoder=found.weights,
        head=_without_idle_bias(head) or None,
        origin="script" if is_older else "others",
        normalise=normalise or own_normalise,
        image_size=size,
        epoch=epoch if type(epoch) is int else _epoch_in(file),
        step=0,
        saved={},
    )


def _empty_head(features: int, matrices: list[torch.Tensor]) -> ProjectionHead:
    """The head, without memory for its weights, whose linear layers have ``matrices``, if there is one."""
    layers = min(max(len(matrices), 2), 3)
    with torch.device("meta"):
        return ProjectionHead(features, max(1, len(matrices[-1])), hidden=len(matrices[0]), layers=layers)


def _without_idle_bias(head: State) -> State:
    """The same head where a linear layer before a BatchNorm has a bias: the running mean takes it up.

    In training BatchNorm takes the batch's mean off, and with it the bias.
    """
    head = dict(head)
    for name in [name for name in head if re.fullmatch(r"\d+\.bias", name)]:
        mean = f"{int(name.partition('.')[0]) + 1}.running_mean"
        if mean in head and head[mean].shape == head[name].shape:
            head[mean] = head[mean] - head.pop(name)
    return head


def _below(named: Mapping[str, Any], prefix: str) -> State:
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
    except Exception as error:  # its own class of errors, and the system's
        raise DataError(f"{file} is damaged or not a safetensors file ({shorten(str(error), 200)})") from error


def attach(state: Mapping[str, torch.Tensor], said: Mapping[str, str]) -> OrderedDict[str, torch.Tensor]:
    """``state`` with words that torch.save keeps beside the tensors, as ``state_dict()`` does with versions."""
    kept = OrderedDict(state)
    setattr(kept, _WORDS, dict(said))
    return kept


def _attached(state: Mapping[Any, Any]) -> dict[str, str]:
    words = getattr(state, _WORDS, {})
    return {str(name): str(word) for name, word in words.items()} if isinstance(words, dict) else {}


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})
