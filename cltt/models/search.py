"""Finds an encoder's weights among the tensors of a file, under any prefix of their names.

A file holds an encoder under a prefix (``model.``, ``state_dict.module.encoder_q.``, ``teacher.backbone.`` ...) if all
of the encoder's names follow that prefix. Parts that wrappers insert into names are removed. Encoders whose layers are
numbered by a ``Sequential`` (``0.weight``, ``4.0.conv1.weight``) are found, too.
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
BACKBONES = ("resnet18", "resnet34", "resnet50", "swin_t", "swin_s", "swin_b")  # tried if a file names none
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # torch.compile, FSDP
# Names of classifiers and heads, which are not the encoder's; the last two are SwAV's, inside the encoder module.
_HEADS = ("fc.", "head.", "heads.", "classifier.", "projection_head.", "prototypes.")
_COUNTER = "num_batches_tracked"  # missing in files from before torch 0.4.1
_MAX_NAME = 500  # letters
_NAMED = 4  # tensors that an error names at most


@dataclass(frozen=True)
class Found:
    """An encoder of type ``backbone`` in a file, under ``prefix``.

    Its weights have the encoder's own names.
    """

    backbone: str
    prefix: str
    weights: State


@cache
def empty_encoder(backbone: str, image_size: int = IMAGE_SIZE) -> Encoder:
    """The encoder on the meta device, without memory for its weights.

    It is on the CPU if the meta device does not work for it.
    """
    with contextlib.suppress(RuntimeError), torch.device("meta"):  # NotImplementedError is a RuntimeError
        return build_encoder(backbone, image_size)
    with torch.random.fork_rng(devices=[]):
        return build_encoder(backbone, image_size)


def tensors_in(state: Mapping[Any, Any]) -> State:
    """The tensors in nested dictionaries.

    Their names are the keys joined with dots, without those of wrappers.
    """
    found: State = {}
    todo: list[tuple[str, Any]] = [("", state)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, Mapping):
            for key in reversed([key for key in value if isinstance(key, str)]):
                parts = (part for part in key.split(".") if part not in _WRAPPERS)
                todo.append((f"{path}.{'.'.join(parts)}".removeprefix("."), value[key]))
    return {name: value for name, value in found.items() if len(name) <= _MAX_NAME}


def find_encoder(
    file: Path, named: State, backbones: Iterable[str], *, image_size: int | None = None, prefix: str | None = None
) -> Found:
    """The encoder in ``named``, tensors by name, of the first of ``backbones`` that fits.

    ``prefix`` chooses one of several. Raises SettingsError if none fits, naming what is different from the nearest one,
    and if several with different weights fit, naming their prefixes.
    """
    mismatches: dict[str, tuple[int, str]] = {}
    for backbone in backbones:
        wanted = empty_encoder(backbone, image_size or IMAGE_SIZE).state_dict()
        fitting = []
        for found in _candidates(backbone, wanted, named):
            if wrong := mismatch(wanted, found.weights):
                distance = len(wanted.keys() ^ found.weights.keys())
                mismatches[backbone] = min(mismatches.get(backbone, (distance, wrong)), (distance, wrong))
            else:
                fitting.append(found)
        if fitting:
            return _chosen(file, fitting, prefix)
    nearest = min(mismatches, key=lambda name: mismatches[name][0])
    raise SettingsError(
        f"{file} holds no weights that fit {' or '.join(mismatches)}; compared with {nearest}, {mismatches[nearest][1]}"
    )


def _candidates(backbone: str, wanted: Mapping[str, torch.Tensor], named: State) -> Iterator[Found]:
    """The tensors under each prefix with all names of the encoder.

    If no prefix has all names, the one with the most is used.
    """
    numbers = {child: str(number) for number, (child, _) in enumerate(empty_encoder(backbone).named_children())}
    numbered = {
        ".".join([numbers.get(head, head), *rest]): name for name in wanted for head, *rest in [name.split(".")]
    }
    needed = sum(not name.endswith(_COUNTER) for name in wanted)
    for own in ({name: name for name in wanted}, numbered):
        counts = Counter(prefix for name in named if not name.endswith(_COUNTER) for prefix in _prefixes(name, own))
        complete = [prefix for prefix, count in counts.items() if count == needed]
        for prefix in complete or [prefix for prefix, _ in counts.most_common(1)] or [""]:
            inner = tuple(other for other in complete if other != prefix and other.startswith(prefix))
            outside = {name: value for name, value in named.items() if not name.startswith(inner)}
            yield Found(backbone, prefix, _under(prefix, outside, own, wanted))


def _prefixes(name: str, own: Mapping[str, str]) -> Iterator[str]:
    """The prefixes of ``name`` that one of the names ``own`` follows."""
    starts = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
    return (name[:start] for start in starts if name[start:] in own)


def _under(prefix: str, named: State, own: Mapping[str, str], wanted: Mapping[str, torch.Tensor]) -> State:
    """The tensors under ``prefix`` without heads; missing counters are zeros."""
    found = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith(_COUNTER)}
    for name, value in named.items():
        rest = name.removeprefix(prefix)
        if name.startswith(prefix) and (rest in own or not rest.startswith(_HEADS)):
            found[own.get(rest, rest)] = value
    return {name: found[name] for name in (*wanted, *found) if name in found}


def _chosen(file: Path, fitting: list[Found], prefix: str | None) -> Found:
    asked = [
        found for found in fitting if prefix is None or f".{prefix.strip('.')}." in f".{found.prefix.rstrip('.')}."
    ]
    exact = [found for found in asked if found.prefix.rstrip(".") == prefix]
    chosen = _different(exact or asked)
    if len(chosen) == 1:
        return chosen[0]
    prefixes = [found.prefix.rstrip(".").split(".") for found in _different(fitting)]
    names = [_unique_part(parts, prefixes) for parts in prefixes]
    if prefix is None:
        choice = " or ".join(name or repr(name) for name in names)
        raise SettingsError(f"{file} holds {len(names)} encoders; give --weights-prefix {choice}")
    number = "several encoders" if chosen else "no encoder"
    raise SettingsError(
        f"--weights-prefix is {shorten(prefix, 80)!r}, but {file} holds {number} under that prefix; give "
        f"{' or '.join(map(repr, names))}"
    )


def _different(fitting: list[Found]) -> list[Found]:
    """``fitting`` without encoders whose weights equal those of an earlier one."""
    different: list[Found] = []
    for found in fitting:
        a = found.weights
        if not any(
            all(a[name].dtype == value.dtype and torch.equal(a[name], value) for name, value in other.weights.items())
            for other in different
        ):
            different.append(found)
    return different


def _unique_part(parts: list[str], prefixes: list[list[str]]) -> str:
    """The first of ``parts`` that no other of ``prefixes`` has.

    If there is none, all parts joined.
    """
    return next((part for part in parts if sum(part in other for other in prefixes) == 1), ".".join(parts))


def not_finite(state: Mapping[str, Any]) -> str:
    """Names of the dense tensors of ``state`` that hold NaN or infinity, as text.

    The text is empty if none does.
    """
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    dense = {name: value for name, value in state.items() if getattr(value, "layout", None) == torch.strided}
    return _listed([name for name, value in dense.items() if value.dtype in floats and not value.isfinite().all()])


def mismatch(wanted: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> str:
    """Names of the tensors of ``found`` that do not fit ``wanted``, and why, as text.

    The text is empty if all fit.
    """
    shapes = {name: list(value.shape) for name, value in found.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in wanted if name not in found]
    unknown = [str(name) for name in found if name not in wanted]
    odd = [
        f"{name} has shape {shapes.get(name, '(not a tensor)')}, expected {list(value.shape)}"
        for name, value in wanted.items()
        if name in found and shapes.get(name) != list(value.shape)
    ]
    parts = (("missing", missing), ("unknown", unknown), ("of another shape", odd))
    return "; ".join(f"{what}: {_listed(names)}" for what, names in parts if names)


def _listed(names: list[str]) -> str:
    more = f" and {counted(len(names) - _NAMED, 'other')}" if len(names) > _NAMED else ""
    return ", ".join(shorten(name, 80) for name in names[:_NAMED]) + more
