"""Batches begun in a thread, as augmentation on a GPU is: same batches and states, errors raised, no thread left."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import DataError
from cltt.loader.ahead import Ahead
from tests.helpers import data


def test_results_come_in_order_and_one_is_made_ahead() -> None:
    made: list[int] = []
    ahead = Ahead(lambda: made.append(len(made)) or len(made), 4)  # type: ignore[func-returns-value]
    for k in range(4):
        assert ahead.take() == k + 1
        time.sleep(0.02)
        assert len(made) == min(k + 2, 4)
    with pytest.raises(RuntimeError, match="all that was"):
        ahead.take()
    ahead.close()
    assert not any(thread.name.startswith("cltt-ahead") for thread in threading.enumerate())


def test_an_error_is_raised_where_its_result_is_taken() -> None:
    def fail() -> int:
        raise DataError("no")

    ahead = Ahead(fail, 3)
    with pytest.raises(DataError, match="no"):
        ahead.take()
    ahead.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("ahead")
    build_shards(data.make_clips(folder / "clips", {"a": 40, "b": 31, "c": 12}), folder / "shards", workers=1)
    return ShardDataset(folder / "shards")


def make(dataset: ShardDataset, stride: int, dtype: torch.dtype) -> WindowLoader:
    index = WindowIndex(dataset.clip_lengths, 3, 2, stride)
    return WindowLoader(
        dataset, index, 8, image_size=16, device="cpu", augment="crop", depth=4, seed=9, num_threads=2, dtype=dtype
    )


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WindowLoader, "_begins_ahead", property(lambda self: True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("stride", [1, 7])  # at 7 no two windows share a frame
def test_batches_and_states_are_those_of_a_loader_without(
    dataset: ShardDataset, stride: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(dataset, stride, dtype) as plain:
        expected = [(batch.frames.clone(), batch.frame_ids, plain.state_dict()) for batch in plain]
        stats = plain.stats()
    monkeypatch.setattr(WindowLoader, "_begins_ahead", property(lambda self: True))
    with make(dataset, stride, dtype) as loader:
        for batch, (frames, ids, state) in zip(loader, expected, strict=True):
            assert torch.equal(batch.frames, frames) and torch.equal(batch.frame_ids, ids)
            assert loader.state_dict() == state
        assert loader.epoch == 1
        names = ("frames_read", "frames_decoded", "frames_reused")
        assert [loader.stats()[name] for name in names] == [stats[name] for name in names]


@pytest.mark.usefixtures("ahead")
def test_leaving_the_loop_ends_the_thread_and_loses_no_batch(dataset: ShardDataset) -> None:
    with make(dataset, 1, torch.uint8) as loader:
        planned = [loader.plan.batch(step).tolist() for step in range(len(loader))]
        taken = [batch.window_ids.tolist() for part in (islice(loader, 2), loader) for batch in part]
        assert taken == planned
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cltt-")]


@pytest.mark.usefixtures("ahead")
def test_too_many_bad_frames_are_said_where_the_batch_is_taken(tmp_path: Path) -> None:
    build_shards(data.make_clips(tmp_path / "clips", {"a": 40}), tmp_path / "shards", workers=1)
    shard = next((tmp_path / "shards").glob("*.tar"))
    shard.write_bytes(bytes(shard.stat().st_size))
    dataset = ShardDataset(tmp_path / "shards")
    with make(dataset, 1, torch.uint8) as loader, pytest.raises(DataError):
        loader._max_bad = 3
        list(loader)
