"""Features of frames in a file, and which frames of other clips lie nearest; needs no torch.

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
ROWS = 1024  # queries whose similarities are held at a time
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
    """Features of frames, and what is known of each.

    Attributes:
        features: float32 [n, F].
        label: int64 [n], in ``label_names``; -1: none.
        clip: int64 [n], in ``clip_names``.
        frame: int64 [n], number of the frame in its clip.
        time: float64 [n], seconds from the clip's first frame; NaN where the source has no times.
        path: str [n], the source file relative to the data.
        clip_names, label_names: str.
        checkpoint: which encoder made them: its file, SHA-256, epoch, step, backbone, fingerprint of its data ...
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
        """Write an .npz, whole or not at all; the checkpoint is JSON in it."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if name != "checkpoint"}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, checkpoint=np.array(json.dumps(self.checkpoint)), **arrays)


def load(path: Path) -> Embeddings:
    """Read what :meth:`Embeddings.save` wrote; DataError for anything else."""
    if not path.is_file():
        raise DataError(f"no embeddings at {path}; cltt evaluate --embeddings writes them")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
        checkpoint = json.loads(str(arrays.pop("checkpoint")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        words = shorten(str(error), 120)
        raise DataError(f"{path} holds no embeddings as cltt evaluate --embeddings writes them ({words})") from error
    _check(path, arrays)
    return Embeddings(**arrays, checkpoint=checkpoint)


def _check(path: Path, arrays: dict[str, Any]) -> None:
    """DataError unless the arrays fit each other, so that nothing that reads them runs astray."""
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
    """SettingsError, before any work, if embeddings cannot be saved as ``path``."""
    check_path(path, flag)
    if path.suffix != SUFFIX:
        raise SettingsError(f"cannot save embeddings as {path.name!r}; the name must end in {SUFFIX}")
    if path.exists() and not is_regular(path):
        raise SettingsError(f"{flag} {path} is no file")
    check_writable(path.parent, f"give another {flag}")


def unit(features: Floats) -> Floats:
    """Rows of length one; a row of zeros stays."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12), np.float32)


def nearest_elsewhere(queries: Floats, query_clips: Ids, bank: Floats, bank_clips: Ids, k: int) -> tuple[Ids, Floats]:
    """For each query [m, F] the ``k`` rows of ``bank`` [n, F] of other clips that lie nearest, by cosine.

    Returns:
        Rows int64 [m, k], nearest first, -1 where other clips have fewer, and their cosines float32 [m, k].
    """
    queries, bank = unit(queries), unit(bank)
    rows = np.full((len(queries), k), -1, np.int64)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    there = min(k, len(bank))
    for start in range(0, len(queries) if there else 0, ROWS):
        part = slice(start, start + ROWS)
        similar = queries[part] @ bank.T
        similar[query_clips[part, None] == bank_clips] = -np.inf
        best = np.argpartition(-similar, there - 1, axis=1)[:, :there]
        order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        found = np.take_along_axis(similar, best, axis=1)
        rows[part, :there] = np.where(found > -np.inf, best, -1)
        cosines[part, :there] = found
    return rows, cosines
