"""Finds an encoder's weights among a file's tensors, whatever stands before their names.

An encoder lies below each prefix that all of its names follow: ``model.``, ``state_dict.module.encoder_q.``,
``teacher.backbone.`` and so on. What wrappers insert within names is taken out. Encoders whose layers were put in a
``Sequential`` (``0.weight``, ``4.0.conv1.weight``) are found, too.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cltt.errors import SettingsError
from cltt.models.encoders import IMAGE_SIZE, Encoder, build_encoder
from cltt.text import counted, shorten

State = dict[str, torch.Tensor]
BACKBONES = ("resnet18", "resnet34", "resnet50", "swin_t", "swin_s", "swin_b")  # tried where a file names none
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch.compile, FSDP
# An encoder ends before these; the last two are SwAV's, which stand in the encoder itself.
_CLASSIFIERS = ("fc.", "head.", "heads.", "classifier.", "projection_head.", "prototypes.")
_COUNTER = "num_batches_tracked"  # which files of before torch 0.4.1 lack
_MAX_NAME = 500  # letters
_NAMED = 4  # tensors named where many do not fit


@dataclass(frozen=True)
class Found:
    """An encoder in a file: of ``backbone``, below ``prefix``, its weights by the encoder's own names."""

    backbone: str
    prefix: str
    weights: State


@cache
def empty_encoder(backbone: str, image_size: int = IMAGE_SIZE) -> Encoder:
    """The encoder without memory for its weights; with it where it cannot be made without."""
    with contextlib.suppress(RuntimeError), torch.device("meta"):  # NotImplementedError is one, too
        return build_encoder(backbone, image_size)
    with torch.random.fork_rng(devices=[]):
        return build_encoder(backbone, image_size)


def tensors_in(state: Mapping[Any, Any]) -> State:
    """The tensors in nested dictionaries, by their keys joined with dots."""
    found: State = {}
    todo: list[tuple[str, Any]] = [("", state)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, Mapping):
            inside = [(f"{path}.{_bare(key)}".removeprefix("."), value[key]) for key in value if isinstance(key, str)]
            todo += reversed(inside)
    return {name: value for name, value in found.items() if len(name) <= _MAX_NAME}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def find_encoder(
    file: Path, named: State, backbones: Iterable[str], *, image_size: int | None = None, prefix: str | None = None
) -> Found:
    """The encoder among ``named``, tensors by name: of the first of ``backbones`` that fits.

    ``prefix`` chooses one of several. SettingsError, naming what does not fit the nearest, if there is none; and, with
    the prefixes to choose from, if there are several with different weights.
    """
    misfits: dict[str, tuple[int, str]] = {}
    for backbone in backbones:
        wanted = empty_encoder(backbone, image_size or IMAGE_SIZE).state_dict()
        fitting = []
        for found in _candidates(backbone, wanted, named):
            wrong = misfit(wanted, found.weights)
            if wrong:
                away = len(wanted.keys() ^ found.weights.keys())
                misfits[backbone] = min(misfits.get(backbone, (away, wrong)), (away, wrong))
            else:
                fitting.append(found)
        if fitting:
            return _chosen(file, fitting, prefix)
    nearest = min(misfits, key=lambda name: misfits[name][0])
    raise SettingsError(f"{file} holds no {' or '.join(misfits)} that fits; as {nearest}, {misfits[nearest][1]}")


def _candidates(backbone: str, wanted: Mapping[str, torch.Tensor], named: State) -> Iterator[Found]:
    """What lies below each prefix that all names of the encoder follow; if there is none, that most of them follow."""
    numbers = {child: str(number) for number, (child, _) in enumerate(empty_encoder(backbone).named_children())}
    numbered = {
        ".".join([numbers.get(head, head), *rest]): name for name in wanted for head, *rest in [name.split(".")]
    }
    needed = sum(not name.endswith(_COUNTER) for name in wanted)
    for own in ({name: name for name in wanted}, numbered):
        counts = Counter(prefix for name in named if not name.endswith(_COUNTER) for prefix in _prefixes(name, own))
        whole = [prefix for prefix, count in counts.items() if count == needed]
        for prefix in whole or [prefix for prefix, _ in counts.most_common(1)] or [""]:
            inner = tuple(other for other in whole if other != prefix and other.startswith(prefix))
            outside = {name: value for name, value in named.items() if not name.startswith(inner)}
            yield Found(backbone, prefix, _below(prefix, outside, own, wanted))


def _prefixes(name: str, own: Mapping[str, str]) -> Iterator[str]:
    """What may stand before one of the names ``own``, for it to be ``name``."""
    starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
    return (name[:start] for start in starts if name[start:] in own)


def _below(prefix: str, named: State, own: Mapping[str, str], wanted: Mapping[str, torch.Tensor]) -> State:
    """The tensors below ``prefix`` by the encoder's names: without a classifier, with counters that are missing."""
    found = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith(_COUNTER)}
    for name, value in named.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and (rest in own or not rest.startswith(_CLASSIFIERS)):
            found[own.get(rest, rest)] = value
    return {name: found[name] for name in (*wanted, *found) if name in found}


def _chosen(file: Path, fitting: list[Found], prefix: str | None) -> Found:
    places = [found.prefix.rstrip(".").split(".") for found in fitting]
    asked = [found for found, place in zip(fitting, places, strict=True) if prefix is None or _names(prefix, place)]
    exact = [found for found in asked if found.prefix.rstrip(".") == prefix]
    chosen = _different(exact or asked)
    if len(chosen) == 1:
        return chosen[0]
    places = [found.prefix.rstrip(".").split(".") for found in _different(fitting)]
    names = [_telling(place, places) for place in places]
    if prefix is None:
        choice = " or ".join(name or repr(name) for name in names)
        raise SettingsError(f"{file} holds {len(names)} encoders; give --weights-prefix {choice}")
    number = "several encoders" if chosen else "no encoder"
    raise SettingsError(
        f"--weights-prefix is {shorten(prefix, 80)!r}, and {file} holds {number} below that; it must be "
        f"{' or '.join(map(repr, names))}"
    )


def _different(fitting: list[Found]) -> list[Found]:
    """``fitting`` without those whose weights are another's under a second name."""
    different: list[Found] = []
    for found in fitting:
        if not any(_equal(found.weights, other.weights) for other in different):
            different.append(found)
    return different


def _names(prefix: str, place: list[str]) -> bool:
    """Whether ``prefix`` is a part of ``place``, from dot to dot."""
    return f".{prefix.strip('.')}." in f".{'.'.join(place)}."


def _telling(place: list[str], places: list[list[str]]) -> str:
    """The first part of ``place`` that no other of ``places`` has; all of it if there is none."""
    alone = [part for part in place if sum(part in other for other in places) == 1]
    return alone[0] if alone else ".".join(place)


def _equal(a: State, b: State) -> bool:
    return all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def not_finite(state: Mapping[str, Any]) -> str:
    """The tensors of ``state`` with values that are no finite numbers, by name; empty if there are none."""
    values = {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and _is_dense(value)}
    return _listed([name for name, value in values.items() if not value.isfinite().all()])


def _is_dense(value: torch.Tensor) -> bool:
    plain = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return value.layout == torch.strided and value.dtype in plain


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
