"""Saves and loads features of frames, and finds the nearest frames of other clips.

It does not import torch.

Letters: n frames, m queries, F features.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cltt.errors import DataError, SettingsError
from cltt.files.atomic import check_writable, replacing
from cltt.files.regular import check_path, is_regular
from cltt.text import shorten

SUFFIX = ".npz"
ROWS = 1024  # queries compared at a time; it bounds memory
Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
_ARRAYS = {
    "features": ("f", 2),
    "label": ("i", 1),
    "clip": ("i", 1),
    "frame": ("i", 1),
    "time": ("f", 1),
    "path": ("U", 1),
    "clip_names": ("U", 1),
    "label_names": ("U", 1),
    "checkpoint": ("U", 0),
}


@dataclass(frozen=True)
class Embeddings:
    """Features of frames, with label, clip and source of each.

    Attributes:
        features: float32 [n, F].
        label: int64 [n], index into ``label_names``; -1: none.
        clip: int64 [n], index into ``clip_names``.
        frame: int64 [n], number of the frame in its clip.
        time: float64 [n], seconds from the clip's first frame; NaN if the source has no times.
        path: str [n], the source file relative to the data.
        clip_names, label_names: str.
        checkpoint: the encoder: its file, SHA-256, epoch, step, backbone, fingerprint of its data ...
    """

    features: Floats
    label: Ids
    clip: Ids
    frame: Ids
    time: NDArray[np.float64]
    path: NDArray[np.str_]
    clip_names: NDArray[np.str_]
    label_names: NDArray[np.str_]
    checkpoint: dict[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    def save(self, path: Path) -> None:
        """Write an .npz atomically; the checkpoint is stored as JSON."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if name != "checkpoint"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, checkpoint=np.array(json.dumps(self.checkpoint)), **arrays)


def load(path: Path) -> Embeddings:
    """Read a file of :meth:`Embeddings.save`; DataError for any other file."""
    if not path.is_file():
        raise DataError(f"no embeddings at {path}; cltt evaluate --embeddings writes them")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
        checkpoint = json.loads(str(arrays.pop("checkpoint")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = shorten(str(error), 120)
        raise DataError(f"{path} is not a file of cltt evaluate --embeddings ({reason})") from error
    _check(path, arrays)
    return Embeddings(**arrays, checkpoint=checkpoint)


def _check(path: Path, arrays: dict[str, Any]) -> None:
    """Raise DataError unless the arrays fit each other and all indices are valid."""
    kinds = {name: (array.dtype.kind, array.ndim) for name, array in arrays.items()}
    same_length = {
        len(arrays[name]) for name in ("features", "label", "clip", "frame", "time", "path") if arrays[name].ndim
    }
    fits = all(kinds[name] == _ARRAYS[name] for name in arrays) and len(same_length) == 1
    if not fits or not np.isfinite(arrays["features"]).all():
        raise DataError(f"the arrays in {path} do not fit each other, or hold numbers that are not finite")
    for name, least in (("clip", 0), ("label", -1)):
        values, names = arrays[name], arrays[f"{name}_names"]
        if len(values) and not (values.min() >= least and values.max() < len(names)):
            raise DataError(f"a {name} in {path} is not among its {name}_names")


def check_npz(path: Path, flag: str) -> None:
    """Raise SettingsError if embeddings cannot be saved as ``path``, the value of ``flag``."""
    check_path(path, flag)
    if path.suffix != SUFFIX:
        raise SettingsError(f"cannot save embeddings as {path.name!r}; the name must end in {SUFFIX}")
    if path.exists() and not is_regular(path):
        raise SettingsError(f"{flag} {path} exists and is not a file; give another name")
    check_writable(path.parent, f"give another {flag}")


def unit(features: Floats) -> Floats:
    """The rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)


def nearest_elsewhere(queries: Floats, query_clips: Ids, bank: Floats, bank_clips: Ids, k: int) -> tuple[Ids, Floats]:
    """The ``k`` nearest rows of ``bank`` [n, F] of other clips for each query [m, F] (cosine).

    Returns:
        Rows int64 [m, k], nearest first, -1 if other clips have fewer, and their cosines float32 [m, k].
    """
    queries, bank = unit(queries), unit(bank)
    rows = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    most = min(k, len(bank))
    for start in range(0, len(queries) if most else 0, ROWS):
        part = slice(start, start + ROWS)
        similar = queries[part] @ bank.T
        similar[query_clips[part, None] == bank_clips] = -np.inf
        best = np.argpartition(-similar, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        found = np.take_along_axis(similar, best, axis=1)
        rows[part, :most] = np.where(found > -np.inf, best, -1)
        cosines[part, :most] = found
    return rows, cosines


def neighbours_of_frames(
    embeddings: Embeddings, clip_names: list[str], frames: list[Ids], spacing: list[float], *, k: int, bank: int
) -> list[tuple[Ids, Ids, Floats]]:
    """For chosen frames of chosen clips, the nearest chosen frames of other clips.

    Args:
        embeddings: features of frames of these clips; some frames may lack them.
        clip_names: the clips.
        frames: the chosen frames of each clip, as numbers within it.
        spacing: for each clip, the distance within which a frame's features may replace missing ones of a chosen frame
            (the distance between the frames with features, if that is larger).
        k: neighbours per frame.
        bank: number of frames, evenly spread, that the search compares with.

    Returns:
        For each clip, one row per chosen frame: the clips of its neighbours (indices into ``clip_names``) and their
        positions in the ``frames`` of those, int64 [frames, k], -1 if there are fewer, and their cosines, float32.

    Raises SettingsError if the embeddings are of other clips.
    """
    known = {name: number for number, name in enumerate(embeddings.clip_names.tolist())}
    order = np.lexsort((embeddings.frame, embeddings.clip))
    starts = np.searchsorted(embeddings.clip[order], np.arange(len(known) + 1))
    rows = []
    for name, chosen, reach in zip(clip_names, frames, spacing, strict=True):
        number = known.get(name)
        mine = order[starts[number] : starts[number + 1]] if number is not None else order[:0]
        rows.append(_nearest_with_features(chosen, embeddings.frame[mine], mine, reach))
    owner = np.repeat(np.arange(len(rows)), [len(found) for found in rows])
    place = np.concatenate([np.arange(len(found)) for found in rows])
    row = np.concatenate(rows)
    there = np.flatnonzero(row >= 0)
    if not len(there):
        first = ", ".join(embeddings.clip_names[:3].tolist())
        raise SettingsError(f"the embeddings are of other clips ({shorten(first, 80)} ...) than those shown")
    looked = there[np.unique(np.linspace(0, len(there) - 1, min(bank, len(there))).round().astype(np.int64))]
    near, cosines = nearest_elsewhere(
        embeddings.features[row[there]], owner[there], embeddings.features[row[looked]], owner[looked], k
    )
    clips, places = np.full((2, len(row), k), -1, np.int64)
    similar = np.full((len(row), k), -np.inf, np.float32)
    clips[there] = np.where(near >= 0, owner[looked][near], -1)
    places[there] = np.where(near >= 0, place[looked][near], -1)
    similar[there] = cosines
    ends = np.cumsum([len(found) for found in rows])[:-1]
    return list(zip(np.split(clips, ends), np.split(places, ends), np.split(similar, ends), strict=True))


def _nearest_with_features(chosen: Ids, frames: Ids, rows: Ids, reach: float) -> Ids:
    """For each chosen frame the row of the nearest of ``frames`` (sorted) within ``reach``.

    A frame without one gets -1.

    ``reach`` is at least the median distance of ``frames``.
    """
    if not len(frames):
        return np.full(len(chosen), -1, np.int64)
    reach = max(reach, float(np.median(np.diff(frames))) if len(frames) > 1 else 0)
    after = np.searchsorted(frames, chosen).clip(0, len(frames) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(np.abs(frames[before] - chosen) <= np.abs(frames[after] - chosen), before, after)
    return np.where(np.abs(frames[nearest] - chosen) <= reach, rows[nearest], -1)
