"""Damage, dying threads, exceptions: all ends soon with the cause said, or goes on without the frame."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import DataError, FrameError
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.loader.bad_frames import BadFrames
from cltt.loader.prefetch import CLOSE_TIMEOUT
from cltt.loader.slots import BlockUses
from cltt.shards.folder import FolderDataset
from tests.helpers import data

SIZE = 16
ENDS_WITHIN = 20.0  # seconds; a thread that is forgotten never ends


class Damaged:
    """A dataset in which some frames cannot be read and some hold no JPEG."""

    def __init__(self, dataset: ShardDataset, unread: set[int], garbage: set[int]) -> None:
        self._dataset, self._unread, self._garbage = dataset, unread, garbage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]:
        found = self._dataset.read_each(frame_ids)
        for k, frame in enumerate(frame_ids.tolist()):
            if frame in self._unread:
                found[k] = FrameError(frame, self._dataset.frame_name(frame), "CRC mismatch")
            elif frame in self._garbage:
                found[k] = b"\xff\xd8 no picture"
        return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    build_shards(data.make_clips(folder / "clips", {"a": 30, "b": 21}), folder / "shards", workers=1)
    return folder / "shards"


def make(dataset: Any, stride: int = 1, **options: Any) -> WindowLoader:
    index = WindowIndex(dataset.clip_lengths, 3, 2, stride)
    defaults = {"image_size": SIZE, "device": "cpu", "dtype": torch.uint8, "num_threads": 2, "depth": 4}
    return WindowLoader(dataset, index, 4, **{**defaults, **options})


def picture(dataset: ShardDataset, frame: int) -> torch.Tensor:
    return torch.from_numpy(FrameDecoder(Framing(image_size=SIZE)).frame(dataset.read([frame])[0])).permute(2, 0, 1)


def replacement(ids: list[int], position: int, bad: set[int], clip: range) -> int:
    """The rule, written out: nearest good frame of the window, earlier first; else of the clip, by the middle."""
    good = [k for k in range(len(ids)) if ids[k] not in bad]
    if good:
        return ids[min(good, key=lambda k: (abs(k - position), k))]
    middle = ids[len(ids) // 2]
    return min((f for f in clip if f not in bad), key=lambda f: (abs(f - middle), f))


# Frames 5 and 12 of clip a alone; 40, 42, 44 of clip b are a whole window. At stride 5 no two windows share a frame.
@pytest.mark.parametrize("stride", [1, 5])
@pytest.mark.parametrize("options", [{}, {"cache_bytes": 1}, {"num_threads": 1}, {"rank": 1, "world_size": 2}])
def test_bad_frames_are_replaced_counted_and_named(
    shards: Path, options: dict[str, Any], stride: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = ShardDataset(shards)
    unread, garbage = {5, 40, 42, 44}, {12, 0}
    bad, seen = unread | garbage, set()
    with make(Damaged(dataset, unread, garbage), stride, **options) as loader:
        for _ in range(3):
            for batch in loader:
                for row, ids in enumerate(batch.frame_ids.tolist()):
                    seen |= set(ids) & bad
                    clip = range(30) if ids[0] < 30 else range(30, 51)
                    for k in range(3):
                        source = replacement(ids, k, bad, clip)
                        assert torch.equal(batch.frames[row, k], picture(dataset, source)), (ids, k, source)
        assert loader.stats()["frames_bad"] >= len(seen) > 2
    for frame in seen:
        lines = [r.message for r in caplog.records if f"frame {frame} (" in r.message]
        assert len(lines) == 1 and dataset.frame_name(frame) in lines[0], "each bad frame is named once"


@pytest.mark.parametrize("every", [2, 3, 4])
def test_kept_batches_stay_whole_where_others_are_dropped_and_frames_are_bad(shards: Path, every: int) -> None:
    """A batch with a bad frame is copied, one without is handed over: both kinds of memory go round together."""
    dataset, kept, steps = ShardDataset(shards), [], 0
    with make(Damaged(dataset, {5, 40}, {12}), 5, dtype=torch.uint8, channels_last=True) as loader:
        for _ in range(30):
            for batch in loader:
                steps += 1
                if steps % every == 0:
                    kept.append((batch.frames, batch.frames.clone()))
                del batch
    assert len(kept) >= 15 and all(torch.equal(frames, copy) for frames, copy in kept)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 5])
def test_a_read_that_hangs_past_the_end_of_its_loop_writes_nowhere_else(shards: Path, stride: int) -> None:
    dataset, hang = ShardDataset(shards), threading.Event()

    class Hanging(Damaged):
        def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]:
            if not hang.is_set():
                hang.set()
                time.sleep(CLOSE_TIMEOUT + 1)
            return super().read_each(frame_ids)

    with make(Hanging(dataset, set(), set()), stride) as loader:

        def consume() -> None:
            with contextlib.suppress(RuntimeError):  # the loader is closed meanwhile
                next(iter(loader))

        consumer = threading.Thread(target=consume)
        consumer.start()
        assert hang.wait(ENDS_WITHIN)
        loader.close()
        consumer.join()
        loader.set_epoch(1)
        wrong = 0
        for _ in range(3):
            for batch in loader:
                time.sleep(0.4)
                for row, ids in enumerate(batch.frame_ids.tolist()):
                    wrong += sum(not torch.equal(batch.frames[row, k], picture(dataset, i)) for k, i in enumerate(ids))
        assert wrong == 0


def test_known_bad_frames_are_gone_through_while_no_thread_adds_one(shards: Path) -> None:
    bad = BadFrames(ShardDataset(shards), 9)

    class Watched(dict[int, FrameError]):
        def __iter__(self) -> Any:
            assert bad._lock.locked()
            return super().__iter__()

    bad._errors = Watched()
    bad.register(FrameError(3, "a/3.jpg", "CRC mismatch"))
    slots = bad.substitute(np.array([[2, 3, 4]]), np.array([[0, 1, 2]]), lambda frames, slots: None, 3)
    assert slots.tolist() == [[0, 0, 2]]
    kept = np.array([[0, 9, 2]])  # by another process, which could decode it
    assert bad.substitute(np.array([[2, 3, 4]]), kept, lambda frames, slots: None, 3).tolist() == kept.tolist()


def test_too_many_bad_frames_stop_the_run_with_a_list(shards: Path) -> None:
    dataset = ShardDataset(shards)
    with make(Damaged(dataset, {3, 4, 5}, {9}), max_bad_frames=3) as loader, pytest.raises(DataError) as raised:
        list(loader)
    assert "4 frames cannot be used" in str(raised.value) and "--max-bad-frames" in str(raised.value)
    assert all(dataset.frame_name(frame) in str(raised.value) for frame in (3, 4, 5, 9))
    with make(Damaged(dataset, {3, 4, 5}, {9}), max_bad_frames=4) as loader:
        assert len(list(loader)) == len(loader)
    assert not cltt_threads()


def test_a_clip_without_a_good_frame_stops_the_run(shards: Path) -> None:
    dataset = ShardDataset(shards)
    with make(Damaged(dataset, set(range(30, 51)), set())) as loader, pytest.raises(DataError, match="clip 'b'"):
        list(loader)


def test_flipped_bytes_in_a_shard(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    clean = {}
    with make(ShardDataset(shards)) as loader:
        for batch in loader:
            clean.update(zip(batch.window_ids.tolist(), batch.frames.clone(), strict=True))
    dataset = ShardDataset(copy)
    record = dataset._frames[17]
    with (copy / "shard-000000.tar").open("r+b") as shard:
        shard.seek(int(record["offset"]) + int(record["size"]) // 2)
        shard.write(b"\xaa\x55\xaa\x55")
    with make(dataset) as loader:
        for batch in loader:
            touched = (batch.frame_ids == 17).any(dim=1)
            for row, window in enumerate(batch.window_ids.tolist()):
                assert torch.equal(batch.frames[row], clean[window]) == (not touched[row])
        assert loader.stats()["frames_bad"] == 1


def test_a_file_that_goes_away_during_the_run(tmp_path: Path) -> None:
    clips = data.make_clips(tmp_path / "clips", {"a": 30, "b": 21})
    dataset = FolderDataset(clips)
    (clips / "a" / "frame_000011.jpg").unlink()
    with make(dataset) as loader:
        assert len(list(loader)) == len(loader)
        assert loader.stats()["frames_bad"] == 1


class Dying(Damaged):
    """Reading works ``lives`` times, then fails as no dataset should."""

    def __init__(self, dataset: ShardDataset, error: BaseException, lives: int) -> None:
        super().__init__(dataset, set(), set())
        self._error, self._lives = error, lives

    def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]:
        self._lives -= 1
        if self._lives < 0:
            raise self._error
        return super().read_each(frame_ids)


def cltt_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cltt-")]


@pytest.mark.parametrize("error", [ZeroDivisionError("in a thread"), SystemExit(3), MemoryError()])
@pytest.mark.parametrize("lives", [0, 2])
def test_a_dying_thread_ends_the_loop_with_its_cause(shards: Path, error: BaseException, lives: int) -> None:
    began = time.monotonic()
    with make(Dying(ShardDataset(shards), error, lives)) as loader, pytest.raises(RuntimeError) as raised:
        list(loader)
    assert raised.value.__cause__ is error
    assert not cltt_threads() and time.monotonic() - began < ENDS_WITHIN


def test_a_failing_order_ends_the_loop_too(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockUses, "step", lambda self, step: 1 / 0)
    with make(ShardDataset(shards)) as loader, pytest.raises(RuntimeError) as raised:
        list(loader)
    assert isinstance(raised.value.__cause__, ZeroDivisionError) and not cltt_threads()


def test_an_exception_in_the_loop_ends_the_threads(shards: Path) -> None:
    dataset = ShardDataset(shards)
    began = time.monotonic()
    with pytest.raises(KeyError):
        for _ in make(dataset):  # no `with`: dropping the iterator is enough
            assert cltt_threads()
            raise KeyError
    with pytest.raises(KeyError), make(dataset) as loader:
        batches = iter(loader)
        next(batches)
        raise KeyError
    assert not cltt_threads() and time.monotonic() - began < ENDS_WITHIN


def test_a_forgotten_loader_ends_its_threads(shards: Path) -> None:
    batches = iter(make(ShardDataset(shards)))
    next(batches)
    assert cltt_threads()
    del batches
    assert not cltt_threads()


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 10])
@pytest.mark.parametrize("options", [{}, {"dtype": torch.uint8, "channels_last": True}])
def test_memory_stays_steady_over_2000_steps(tmp_path: Path, stride: int, options: dict[str, Any]) -> None:
    build_shards(data.make_clips(tmp_path / "clips", {f"c{k}": 60 for k in range(8)}), tmp_path / "s", workers=1)
    dataset = ShardDataset(tmp_path / "s")
    index, budget = WindowIndex(dataset.clip_lengths, 5, 2, stride), 20_000_000
    defaults = {"image_size": 64, "device": "cpu", "cache_bytes": budget, "num_threads": 2}
    with WindowLoader(dataset, index, 8, **{**defaults, **options}) as loader:
        process, steps = psutil.Process(), 0
        start, threads = process.memory_info().rss, process.num_threads()
        peak = after_first = 0
        while steps < 2000:
            for _ in loader:
                steps += 1
                peak = max(peak, process.memory_info().rss)
            after_first = after_first or process.memory_info().rss
        assert peak - start < budget + 500_000_000
        assert process.memory_info().rss - after_first < 50_000_000, "nothing grows from epoch to epoch"
        assert process.num_threads() <= threads + 4 and not cltt_threads()


def test_warnings_go_through_logging(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cltt"), make(Damaged(ShardDataset(shards), {7}, set())) as loader:
        list(loader)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
