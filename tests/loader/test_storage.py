"""Storage that fails for a while: the batches are those without the fault, and no frame is bad for it."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import StorageError
from cltt.files import retry
from cltt.loader.prefetch import GaveUp
from cltt.shards import dataset as dataset_module
from tests.helpers import data
from tests.helpers.quick import shorten_pauses


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    root = data.make_clips(folder / "clips", {"a": 30, "b": 41})
    build_shards(root, folder / "shards", workers=1, shard_size=30_000)
    return folder / "shards"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


def make(shards: Path, **options: Any) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 2, 1)
    defaults = {"image_size": 32, "device": "cpu", "dtype": torch.uint8, "num_threads": 2, "depth": 4}
    return WindowLoader(dataset, index, 4, **{**defaults, "cache_bytes": 1, "keep_bytes": 0, **options})


def epochs(loader: WindowLoader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with loader:
        return [(batch.frames.clone(), batch.frame_ids) for _ in range(2) for batch in loader]


class Storage:
    """``_pread_into`` and ``os.pread`` that fail by ``fault(call)``: a name of an error, "short", "flip", or ""."""

    def __init__(self, fault: Callable[[int], str]) -> None:
        self.fault, self.calls, self.lock = fault, 0, threading.Lock()
        self.read_into, self.pread = dataset_module._pread_into, os.pread

    def strike(self) -> str:
        with self.lock:
            self.calls += 1
            fault = self.fault(self.calls)
        if fault.startswith("E"):
            raise OSError(getattr(errno, fault), fault)
        return fault

    def into(self, handle: int, memory: memoryview, offset: int) -> int:
        fault = self.strike()
        if fault == "short":
            return 0
        count = self.read_into(handle, memory, offset)
        if fault == "flip":
            memory[count // 2] ^= 8
        return count

    def plain(self, handle: int, size: int, offset: int) -> bytes:
        return b"" if self.strike() == "short" else self.pread(handle, size, offset)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dataset_module, "_pread_into", self.into)
        monkeypatch.setattr(retry.os, "pread", self.plain)


@pytest.mark.parametrize("kind", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "short", "flip", "all"])
def test_batches_are_those_without_the_fault(shards: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = epochs(make(shards))
    rng = random.Random(3)
    kinds = ["EIO", "ESTALE", "EAGAIN", "ESHUTDOWN", "short", "flip"] if kind == "all" else [kind]
    loader = make(shards)
    storage = Storage(lambda call: rng.choice(kinds) if rng.random() < 0.2 else "")
    storage.install(monkeypatch)
    found = epochs(loader)
    assert storage.calls > 100
    assert len(found) == len(expected)
    for (frames, ids), (expected_frames, expected_ids) in zip(found, expected, strict=True):
        assert torch.equal(ids, expected_ids) and torch.equal(frames, expected_frames)
    assert loader.stats()["frames_bad"] == 0


def test_a_burst_is_said_when_it_begins_and_when_it_ends(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader, ends = make(shards), [0.0]
    Storage(lambda call: "EIO" if call > 20 and time.monotonic() < ends[0] else "").install(monkeypatch)
    ends[0] = time.monotonic() + 0.5
    epochs(loader)
    lines = [record.message for record in caplog.records if "read" in record.message]
    assert [("tried again" in line, "can be read again" in line) for line in lines] == [(True, False), (False, True)]


def test_when_retries_end_the_loader_stays_where_it_is(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = epochs(make(shards))
    loader, broken = make(shards, io_patience=0.2), [False]
    Storage(lambda call: "EIO" if broken[0] else "").install(monkeypatch)
    found = []
    with loader:
        for batch in loader:
            found.append((batch.frames.clone(), batch.frame_ids))
            if len(found) == 3:
                break
        broken[0] = True
        state = loader.state_dict()
        with pytest.raises(StorageError, match=r"could not be read for 0.2 s .*--io-patience"):
            list(loader)
        assert loader.state_dict() == state
        broken[0] = False
        found += [(batch.frames.clone(), batch.frame_ids) for _ in range(2) for batch in loader]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, expected, strict=True))
    assert loader.stats()["frames_bad"] == 0


def test_a_consumer_that_is_to_stop_does_not_wait_for_the_storage(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader, asked = make(shards), threading.Event()
    loader.give_up = asked.is_set
    Storage(lambda call: "EIO").install(monkeypatch)
    threading.Timer(0.3, asked.set).start()
    began = time.monotonic()
    with pytest.raises(GaveUp):
        next(iter(loader))
    assert time.monotonic() - began < 10
    loader.close()


@pytest.mark.parametrize("fault", ["ENOENT", "EACCES"])
def test_what_does_not_pass_is_not_waited_for(shards: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(shards)
    monkeypatch.setattr(dataset_module, "_pread_into", Storage(lambda call: fault).into)
    (error,) = dataset.read_each([3])
    assert isinstance(error, Exception) and f"cannot be read ({fault})" in str(error)
