"""Which reads are retried, for how long, and what is said of it."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import SettingsError, StorageError
from cltt.files import retry as module
from cltt.files.npy import NpyRows
from cltt.files.retry import TRANSIENT, SharedFile, read_bytes, read_pieces, retry, set_policy
from tests.helpers import data
from tests.helpers.quick import shorten_pauses

CONTENT = bytes(range(256)) * 5000  # more than one piece


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)
    set_policy(5)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_bytes(CONTENT)
    return path


def failing(times: int, number: int) -> Callable[[], str]:
    """Raises the error ``number`` so many times, then answers."""
    left = [times]

    def attempt() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return "answer"

    return attempt


@pytest.mark.parametrize("number", sorted(TRANSIENT))
def test_a_transient_error_is_retried_and_said_twice(number: int, caplog: pytest.LogCaptureFixture) -> None:
    assert retry("place", failing(4, number)) == "answer"
    assert len(caplog.messages) == 2 and caplog.messages[1].startswith("place: can be read again, after 0.")
    assert caplog.messages[0] == f"place: {os.strerror(number)}; reading is tried again for up to 5 s"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EISDIR, errno.EMFILE])
def test_other_errors_are_raised_at_once(number: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError) as raised:
        retry("place", failing(1, number))
    assert raised.value.errno == number and caplog.messages == []


def test_an_error_of_another_kind_ends_the_wait() -> None:
    errors = [OSError(errno.EIO, "x"), OSError(errno.EIO, "x"), FileNotFoundError(errno.ENOENT, "gone")]

    def attempt() -> None:
        raise errors.pop(0)

    with pytest.raises(FileNotFoundError):
        retry("place", attempt)


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_retries_end_with_a_sentence_and_a_status_that_asks_for_another_start(seconds: float) -> None:
    began = time.monotonic()
    set_policy(seconds)
    with pytest.raises(StorageError, match=rf"place could not be read for {seconds:g} s \(.*--io-patience\)") as raised:
        retry("place", failing(10**9, errno.EIO))
    assert raised.value.exit_status == 85 and time.monotonic() - began < seconds + 10


def test_the_last_that_sets_the_policy_holds_for_the_whole_process(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "clips", {"a": 12})
    build_shards(root, tmp_path / "shards", workers=1, io_patience=0.01)
    dataset = ShardDataset(tmp_path / "shards")
    with pytest.raises(StorageError, match=r"for 0.01 s"):
        retry("place", failing(10**9, errno.EIO))
    WindowLoader(dataset, WindowIndex(dataset.clip_lengths, 2), 2, device="cpu", io_patience=0.02).close()
    with pytest.raises(StorageError, match=r"for 0.02 s"):
        retry("place", failing(10**9, errno.EIO))


@pytest.mark.parametrize("seconds", [-1, float("nan"), 1e7])
def test_a_time_that_cannot_be_is_refused(seconds: float) -> None:
    with pytest.raises(SettingsError, match="io_patience"):
        set_policy(seconds)


def test_many_threads_that_wait_are_one_trouble(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Barrier(8)
    broken = [True]

    def attempt() -> str:
        if broken[0]:
            raise OSError(errno.EIO, "Input/output error")
        return "answer"

    def read() -> None:
        gate.wait()
        assert retry("place", attempt) == "answer"

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    broken[0] = False
    for thread in threads:
        thread.join()
    assert len(caplog.messages) == 2


class FaultyReads:
    """os.pread that fails, or gives half, on the calls it is told to; every handle it saw."""

    def __init__(self, faults: dict[int, str]) -> None:
        self.faults, self.calls, self.handles = faults, 0, []
        self.real = os.pread

    def __call__(self, handle: int, size: int, offset: int) -> bytes:
        fault = self.faults.get(self.calls)
        self.calls += 1
        self.handles.append(handle)
        if fault == "error":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if fault == "end":
            return b""
        return self.real(handle, size // 2 + 1 if fault == "half" else size, offset)


@pytest.mark.parametrize("fault", ["error", "end", "half"])
@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_file_is_read_whole_through_errors_and_short_reads(
    file: Path, fault: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "pread", FaultyReads({call: fault}))
    assert read_bytes(file) == CONTENT
    monkeypatch.setattr(module.os, "pread", FaultyReads({call: fault, call + 1: fault}))
    assert b"".join(read_pieces(file, 300_000)) == CONTENT


def test_each_try_has_a_fresh_handle_and_none_is_left_open(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened: list[int] = []
    real = os.open
    monkeypatch.setattr(module.os, "open", lambda *a: opened.append(real(*a)) or opened[-1])
    monkeypatch.setattr(module.os, "pread", FaultyReads({0: "error", 1: "error"}))
    assert retry(file, partial(SharedFile(file).read, 10, 256)) == CONTENT[:10]
    assert len(opened) == 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_grew_short_is_no_transient_fault(file: Path) -> None:
    file.write_bytes(CONTENT[:100])
    assert SharedFile(file).read(200, 0) == CONTENT[:100]


def test_rows_are_those_of_numpy_in_any_order_and_through_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    dtype = np.dtype([("a", "<i8"), ("b", "<u2")])
    array = np.zeros(5000, dtype)
    array["a"], array["b"] = np.arange(5000) * 7, np.arange(5000) % 99
    np.save(tmp_path / "rows.npy", array)
    rows = NpyRows(tmp_path / "rows.npy", dtype)
    rng = np.random.default_rng(0)
    monkeypatch.setattr(module.os, "pread", FaultyReads({0: "error", 3: "end", 7: "half"}))
    for count in (0, 1, 2, 40, 5000):
        ids = rng.integers(0, 5000, count)
        assert np.array_equal(rows[ids], array[ids])
    assert len(rows) == 5000 and rows[17] == array[17]
    assert np.array_equal(rows.read(4990, 5000), array[4990:])
