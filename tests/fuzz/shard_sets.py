"""Tampered sets of shards: refused in a sentence, or read with every frame whole or named; nothing outside touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cltt import ShardDataset, build_shards
from cltt.distributed.identity import RankInfo
from cltt.errors import FrameError
from cltt.evaluation.datasets import open_labelled
from cltt.shards import layout
from cltt.shards.stage import stage
from cltt.shards.verify import verify_shards
from tests.fuzz.contract import Rng, attempt, demand, spoil, spoil_tree, untouched
from tests.helpers import data
from tests.helpers.video import write_video

NUMBERS = [0, 1, 511, 512, 513, 1 << 15, (1 << 16) - 1, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, -1, -(1 << 63)]
FLOATS = [0.5, -1.0, 2.0, 1e300, float("inf"), float("nan"), -0.0]
FILES = (*layout.INDEX_FILES, *layout.PARTS, layout.REPORT, layout.INDEX, "shard-000000.tar", "shard-000001.tar")


class ShardSets:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = data.make_clips(folder / "root", {"a": 5, "b/c": 4, "b/d": 3}, height=16, width=16)
        self._whole, self._with_parts = folder / "whole", folder / "with-parts"
        options: dict[str, Any] = {"shard_size": 9000, "workers": 1, "label_from": "parent"}
        build_shards(self._root, self._whole, splits="train=0.5,val=0.5", **options)
        self._watched = data.make_clips(folder / "watched", {"a": 4}, height=16, width=16)
        write_video(self._watched / "film.mp4", 6)
        (folder / "boxes.csv").write_text("a/frame_000001.jpg,1,2,3,4\n")
        build_shards(self._watched, self._with_parts, boxes=f"csv:{folder / 'boxes.csv'}", **options)
        self._outside = folder / "outside"
        self._outside.mkdir()
        (self._outside / "precious").write_text("not ours")
        os.mkfifo(self._outside / "fifo")

    def case(self, rng: Rng) -> str:
        shards = self._folder / "set"
        shutil.rmtree(shards, ignore_errors=True)
        has_parts = rng.random() < 0.4
        shutil.copytree(self._with_parts if has_parts else self._whole, shards)
        root = self._watched if has_parts else self._root
        for _ in range(int(rng.integers(1, 3))):
            self._tamper(rng, shards)
        if rng.random() < 0.6:
            reseal(shards)
        with untouched(self._outside):
            return self._use(rng, shards, root)

    def _tamper(self, rng: Rng, shards: Path) -> None:
        name = FILES[int(rng.integers(len(FILES)))]
        file = shards / name
        if not file.is_file() or file.is_symlink():
            return
        way = rng.random()
        if name == layout.INDEX and way < 0.8:
            tamper_index(rng, file)
        elif name.endswith(".npy") and way < 0.7:
            tamper_array(rng, file)
        elif way < 0.85:
            file.write_bytes(spoil(rng, file.read_bytes()))
        else:
            file.unlink()
            if way < 0.9:
                file.symlink_to(self._outside / ("fifo" if way < 0.88 else "precious"))
            elif way < 0.93:
                os.mkfifo(file)
            elif way < 0.95:
                file.mkdir()

    def _use(self, rng: Rng, shards: Path, root: Path) -> str:
        dataset, refused = attempt(lambda: ShardDataset(shards))
        mismatches, refused_too = attempt(lambda: verify_shards(shards, decode=True, source_dir=root, workers=2))
        if rng.random() < 0.3:
            target = self._folder / "staged"
            shutil.rmtree(target, ignore_errors=True)
            attempt(lambda: stage(shards, target, RankInfo()))
        if dataset is None:
            demand(bool(refused_too or mismatches), "refused when opened, but whole to the verifier")
            return f"not opened: {refused}"
        self._read(dataset)
        attempt(lambda: open_labelled(shards))
        return "read, and damaged to the verifier" if mismatches or refused_too else "whole"

    def _read(self, dataset: ShardDataset) -> None:
        demand(int(dataset.clip_lengths.sum()) == dataset.num_frames, "the clips are not the frames")
        ids = np.arange(min(dataset.num_frames, 50))
        for frame, found in zip(ids.tolist(), dataset.read_each(ids), strict=True):
            demand(isinstance(found, bytes | FrameError), "a frame that is neither bytes nor an error")
            if isinstance(found, bytes):
                demand(zlib.crc32(found) == int(dataset.frame_records([frame])["crc"][0]), "a frame with another CRC")
            name, _ = attempt(lambda frame=frame: dataset.frame_name(frame))  # type: ignore[misc]
            demand(name is None or ".." not in name.split("/"), f"a name that leads out: {name!r}")
        attempt(lambda: dataset.frame_time(ids))
        boxes, _ = attempt(lambda: dataset.frame_boxes(ids))
        demand(boxes is None or bool(((boxes >= 0) & (boxes <= 1) | np.isnan(boxes)).all()), "a box outside its frame")
        for clip in range(min(dataset.num_clips, 50)):
            key, _ = attempt(lambda clip=clip: dataset.clip_key(clip))  # type: ignore[misc]
            demand(key is None or not key.startswith("/"), f"a key that leads out: {key!r}")


def tamper_index(rng: Rng, file: Path) -> None:
    """Another value somewhere in the index."""
    with contextlib.suppress(ValueError):  # no JSON any more
        file.write_text(json.dumps(spoil_tree(rng, json.loads(file.read_text()))))


def tamper_array(rng: Rng, file: Path) -> None:
    """Another number in an array, another shape, or another type."""
    try:
        array = np.load(file)
    except Exception:  # no array any more
        return
    way, flat = rng.random(), array.reshape(-1).copy()
    if not len(flat):
        return
    at, value = int(rng.integers(len(flat))), NUMBERS[int(rng.integers(len(NUMBERS)))]
    if way < 0.6 and (array.dtype.names or array.dtype.kind == "f"):
        place = flat[str(rng.choice(array.dtype.names))] if array.dtype.names else flat
        odd = np.float64(FLOATS[int(rng.integers(len(FLOATS)))])
        place[at] = (odd if place.dtype.kind == "f" else np.int64(value)).astype(place.dtype)
    elif way < 0.6:
        flat[at] = value if rng.random() < 0.5 else flat[at] + int(rng.integers(-2, 3))
    elif way < 0.75:
        flat = flat[: int(rng.integers(len(flat)))]
    elif way < 0.85 and len(flat) > 1:
        flat = flat[rng.permutation(len(flat))]
    np.save(file, flat.reshape(array.shape) if flat.size == array.size and way < 0.95 else flat)


def reseal(shards: Path) -> None:
    """Give the index the sizes, hashes and fingerprint of the files as they are now: what a tamperer would do."""
    index_file = shards / layout.INDEX
    if not _is_plain(index_file):
        return
    try:
        index: dict[str, Any] = json.loads(index_file.read_text())
        for name in (*layout.INDEX_FILES, *layout.parts_of(index["files"]), layout.REPORT):
            content = (shards / name).read_bytes() if _is_plain(shards / name) else b""
            index["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for shard in index["shards"]:
            if _is_plain(shards / shard["name"]):
                content = (shards / shard["name"]).read_bytes()
                shard |= {"size": len(content), "crc": zlib.crc32(content)}
        index["counts"]["bytes"] = sum(shard["size"] for shard in index["shards"])
        index["fingerprint"] = layout.fingerprint(index["files"])
        index_file.write_text(json.dumps(index))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return  # spoilt beyond sealing


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.parent.name == "set"
