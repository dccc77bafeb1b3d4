"""Tampered CIFAR archives: images with labels that have names, or one sentence; nothing a pickle asks for is run."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cltt.evaluation.datasets import open_labelled
from tests.fuzz.contract import HOSTILE, Rng, attempt, demand, spoil, spoil_tree

IMAGES = 12
ran: list[str] = []  # what a pickle got to run


class Caller:
    """Pickled, it is a call of this module's :func:`run_me`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return run_me, ("hello",)


def run_me(word: str) -> str:
    ran.append(word)
    return word


class Archives:
    def __init__(self, folder: Path) -> None:
        self._folder = folder / "archive"
        pixels = np.arange(IMAGES * 3072, dtype=np.uint32).reshape(IMAGES, 3072).astype(np.uint8)
        self._batch = {b"data": pixels, b"labels": [k % 3 for k in range(IMAGES)], b"batch_label": b"one"}
        self._meta = {b"label_names": [b"cat", b"dog", b"eel"]}

    def case(self, rng: Rng) -> str:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        spoilt = str(rng.choice(["data_batch_1", "test_batch", "batches.meta"]))
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            value: Any = self._meta if name == "batches.meta" else self._batch
            (self._folder / name).write_bytes(self._pickled(rng, value, name == spoilt))
        data, refused = attempt(lambda: open_labelled(self._folder))
        demand(not ran, f"a pickle ran {ran}")
        if data is None:
            return f"refused: {refused}"
        for images in data.parts.values():
            demand(bool((images.labels >= 0).all() and (images.labels < len(data.label_names)).all()), "odd labels")
            demand(images.batch(0, min(2, len(images)), 16).shape[1:] == (3, 16, 16), "odd images")
        return "read"

    def _pickled(self, rng: Rng, value: Any, is_spoilt: bool) -> bytes:
        way = rng.random() if is_spoilt else 1.0
        if way < 0.4:
            value = self._changed(rng, value)
        try:
            content = pickle.dumps(value, protocol=int(rng.integers(0, 6)))
        except Exception:
            return b""
        return spoil(rng, content) if 0.4 <= way < 0.95 else content

    def _changed(self, rng: Rng, value: dict[bytes, Any]) -> Any:
        way, key = rng.random(), list(value)[int(rng.integers(len(value)))]
        if way < 0.2:
            return {**value, key: Caller()}
        if way < 0.5 and b"data" in value:
            shape = [(IMAGES, 3071), (IMAGES * 3072,), (0, 3072), (IMAGES, 3, 32, 32), (1, 3072)][int(rng.integers(5))]
            kind = [np.uint8, np.int64, np.float32, object, "S3"][int(rng.integers(5))]
            return {**value, b"data": np.zeros(shape, kind)}
        if way < 0.7 and b"labels" in value:
            labels = list(value[b"labels"])
            labels[int(rng.integers(IMAGES))] = HOSTILE[int(rng.integers(len(HOSTILE)))]
            return {**value, b"labels": labels}
        return spoil_tree(rng, {k: v for k, v in value.items() if k != b"data"})
