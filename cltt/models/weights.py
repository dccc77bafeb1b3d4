"""Weights to start from, to evaluate or to hand on: of a run here, of the script before it, or of other programs.

What is read: checkpoints of a run; ``{"model_state_dict": {"encoder.*", "projection_head.*"}, "backbone", "proj_dim",
...}`` as the older script wrote them; state dicts of an encoder under torchvision's names, plain or within DINO's
``teacher`` (arXiv:2104.14294), as .pth or .safetensors.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import nn

from cltt import checkpoint
from cltt.config.recipe import BACKBONES, TIMM, is_backbone
from cltt.errors import DataError, SettingsError
from cltt.models.contrastive import ProjectionHead
from cltt.models.encoders import Encoder, build_encoder
from cltt.text import counted, shorten

State = dict[str, torch.Tensor]
SAFETENSORS = ".safetensors"
EXTRA = "pip install 'cltt[safetensors]'"
_WRAPPERS = ("teacher", "state_dict", "model")
_PREFIXES = ("module.", "backbone.", "encoder.")
_CLASSIFIERS = ("fc.", "head.", "classifier.")
_EPOCH = re.compile(r"epoch[_-](\d{1,9})")
_NAMED = 4  # tensors named where many do not fit


@dataclass(frozen=True)
class Weights:
    """Weights read from a file.

    Attributes:
        path: the file.
        backbone: whose ``encoder`` weights these are.
        head: of the projection head, as they lie in the file; None: the file has none.
        origin: ``run`` (a checkpoint of a run here), ``script`` (of the older script) or ``torchvision``.
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
        encoder = build_encoder(self.backbone)
        if wrong := misfit(encoder.state_dict(), self.encoder):
            raise DataError(f"the weights in {self.path} are not those of a {self.backbone}: {wrong}")
        load_into(encoder, self.encoder, self.path)
        return encoder

    def build_head(self) -> ProjectionHead:
        """The projection head with these weights; DataError if there are none, or they are of another kind of head."""
        head_weights = self.head or {}
        matrices = [value for value in head_weights.values() if isinstance(value, torch.Tensor) and value.dim() == 2]
        if not matrices:
            raise DataError(f"{self.path} holds no projection head")
        head = _empty_head(empty_encoder(self.backbone).feature_dim, matrices)
        if wrong := misfit(head.state_dict(), head_weights):
            raise DataError(f"the projection head in {self.path} is of another kind than this program's: {wrong}")
        head.to_empty(device="cpu")
        load_into(head, head_weights, self.path)
        return head


def read_weights(path: Path, backbone: str | None = None) -> Weights:
    """The weights in ``path``, a file or a run's folder (its newest checkpoint).

    ``backbone``: where it is a model of timm's, whose weights a state dict without the name of any may hold.

    Raises DataError for what is damaged or cannot be read, and SettingsError, naming tensors, for a network that none
    of ours is.
    """
    file = checkpoint.resolve(path)
    state = _read_safetensors(file) if file.suffix == SAFETENSORS else checkpoint.read(file)
    if not isinstance(state, Mapping):
        raise DataError(f"{file} holds no weights by name, but a {type(state).__name__}")
    if "version" in state:
        return _of_a_run(file)
    if isinstance(state.get("model_state_dict"), Mapping):
        return _of_the_script(file, state)
    return _of_torchvision(file, state, backbone)


def load_into(module: nn.Module, state: State, path: Path) -> None:
    """Load ``state``, whose names and shapes fit; DataError, naming ``path``, for tensors of a kind that cannot be."""
    try:
        module.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        words = shorten(" ".join(str(error).split()), 200)
        raise DataError(f"the weights in {path} cannot be loaded ({words})") from error


def misfit(wanted: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> str:
    """What of ``found`` does not fit ``wanted``, by name; empty if all does."""
    shapes = {name: list(value.shape) for name, value in found.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in wanted if name not in found]
    unknown = [str(name) for name in found if name not in wanted]
    odd = [
        f"{name} is {shapes.get(name, 'no tensor')} and should be {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and shapes.get(name) != list(value.shape)
    ]
    parts = (("missing", missing), ("not known", unknown), ("of another shape", odd))
    return "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names)


def _listed(names: list[str]) -> str:
    more = f" and {counted(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else ""
    return ", ".join(shorten(name, 80) for name in names[:_NAMED]) + more


# ---- kinds of files


def _of_a_run(file: Path) -> Weights:
    state = checkpoint.load(file)
    checkpoint.require_parts(file, state, model=dict)
    named = {str(name): value for name, value in state["model"].items()}
    encoder, head = _below(named, "encoder."), _below(named, "head.") or None
    if "settings" not in state:
        backbone, encoder = _fitting(file, encoder, None)
        return Weights(file, backbone, encoder, head, "run", "imagenet", None, _epoch_in(file), 0, {})
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


def _of_the_script(file: Path, state: Mapping[str, Any]) -> Weights:
    """Trained on pixels from 0 to 1, without ImageNet's mean and deviation."""
    named = {str(name).removeprefix("module."): value for name, value in state["model_state_dict"].items()}
    backbone, encoder = _fitting(file, _without_classifier(_below(named, "encoder.")), state.get("backbone"))
    epoch = state.get("epoch")
    return Weights(
        path=file,
        backbone=backbone,
        encoder=encoder,
        head=_below(named, "projection_head.") or None,
        origin="script",
        normalise="none",
        image_size=None,
        epoch=epoch if type(epoch) is int else _epoch_in(file),
        step=0,
        saved={},
    )


def _of_torchvision(file: Path, state: Mapping[str, Any], asked: str | None) -> Weights:
    """Trained, as all of torchvision's and DINO's, on pixels less ImageNet's mean, over its deviation."""
    wrapped = next((state[name] for name in _WRAPPERS if isinstance(state.get(name), Mapping)), state)
    named = {_bare(str(name)): value for name, value in wrapped.items()}
    said = _metadata(file) if file.suffix == SAFETENSORS else {}
    model = next((name for name in (said.get("backbone"), asked) if _is_of_timm(name)), None)
    known = _encoder_state(model) if model else {}
    backbone, encoder = _fitting(file, _without_classifier(named, known), model)
    normalise = said.get("normalise", "imagenet")
    return Weights(file, backbone, encoder, None, "torchvision", normalise, None, _epoch_in(file), 0, {})


def _is_of_timm(backbone: str | None) -> TypeGuard[str]:
    return is_backbone(backbone) and str(backbone).startswith(TIMM)


def _fitting(file: Path, found: State, said: Any) -> tuple[str, State]:
    """The backbone that ``found`` are the weights of, and they with the counters that old files lack.

    SettingsError, naming what does not fit the backbone ``said``, or the nearest, if there is none.
    """
    known = [said] if is_backbone(said) else list(BACKBONES)
    wrongs = {}
    for backbone in known:
        wanted = _encoder_state(backbone)
        counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
        whole = {**counters, **found}
        wrongs[backbone] = misfit(wanted, whole)
        if not wrongs[backbone]:
            return backbone, {name: whole[name] for name in wanted}
    nearest = min(known, key=lambda name: len(set(_encoder_state(name)) ^ set(found)))
    raise SettingsError(f"{file} holds no {' or '.join(known)} that fits; as {nearest}, {wrongs[nearest]}")


def _empty_head(features: int, matrices: list[torch.Tensor]) -> ProjectionHead:
    """The head, without memory for its weights, whose linear layers have ``matrices``, if there is one."""
    layers = min(max(len(matrices), 2), 3)
    with torch.device("meta"):
        return ProjectionHead(features, max(1, len(matrices[-1])), hidden=len(matrices[0]), layers=layers)


@cache
def empty_encoder(backbone: str) -> Encoder:
    """The encoder without memory for its weights; of timm with it, as not all of its models can be made without."""
    if _is_of_timm(backbone):
        with torch.random.fork_rng(devices=[]):
            return build_encoder(backbone)
    with torch.device("meta"):
        return build_encoder(backbone)


def _encoder_state(backbone: str) -> dict[str, torch.Tensor]:
    return empty_encoder(backbone).state_dict()


def _below(named: Mapping[str, Any], prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _bare(name: str) -> str:
    while found := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(found)
    return name


def _without_classifier(named: State, known: Container[str] = ()) -> State:
    """An encoder ends before the classifier, and before DINO's head; what is ``known`` to be its own stays."""
    return {name: value for name, value in named.items() if name in known or not name.startswith(_CLASSIFIERS)}


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


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})
