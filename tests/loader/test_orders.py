"""The loader under orders of other kinds: blocks that differ between epochs, one frame many times, shuffled frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from tests.helpers import data

LENGTHS = dict.fromkeys((f"clip_{k}" for k in range(6)), 60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder: Path = tmp_path_factory.mktemp("orders")
    clips = data.make_clips(folder / "clips", LENGTHS, height=20, width=20)
    build_shards(clips, folder / "shards", verify="header", workers=1)
    return ShardDataset(folder / "shards")


def make(dataset: ShardDataset, index: WindowIndex, batch: int, depth: int, **order: int) -> WindowLoader:
    return WindowLoader(
        dataset, index, batch, image_size=16, device="cpu", dtype=torch.uint8, depth=depth, num_threads=2, **order
    )


def test_longer_blocks_of_a_later_epoch_are_told_and_change_nothing_but_decodes(
    dataset: ShardDataset, caplog: pytest.LogCaptureFixture
) -> None:
    """The conflicts of a block depend on the shuffle, so epochs may have different numbers of blocks."""
    index = WindowIndex(dataset.clip_lengths, 4, 5, 1)
    with make(dataset, index, 2, 4) as loader, make(dataset, index, 2, 4) as other:
        blocks = [loader.plan.at_epoch(epoch).num_blocks for epoch in range(3)]
        assert blocks[1] < blocks[0] == blocks[2]
        for epoch in range(3):
            other.set_epoch(1)
            other.set_epoch(epoch)
            for batch, expected in zip(loader, other, strict=True):
                assert torch.equal(batch.frames, expected.frames)
                np.testing.assert_array_equal(batch.frame_ids, index.frames(batch.window_ids.numpy()))
    told = [record.getMessage() for record in caplog.records if "has blocks of" in record.getMessage()]
    assert told and all(message.startswith("epoch 1 has blocks of 9 steps, but frame memory for") for message in told)


def test_one_frame_many_times_is_decoded_once(dataset: ShardDataset) -> None:
    index = WindowIndex(dataset.clip_lengths, 4, 0, 1)
    with make(dataset, index, 8, 4) as loader:
        for batch in loader:
            assert (batch.frame_ids == batch.frame_ids[:, :1]).all()
            assert (batch.frames == batch.frames[:, :1]).all()
            assert len(batch.frame_ids[:, 0].unique()) == 8
        assert loader.stats()["frames_decoded"] == 8 * len(loader)


def test_shuffled_frames_keep_their_own_ids_and_pixels(dataset: ShardDataset) -> None:
    plain = WindowIndex(dataset.clip_lengths, 1, 1, 1)
    with make(dataset, plain, 6, 4) as loader:
        pixels = {int(batch.frame_ids[row]): batch.frames[row].clone() for batch in loader for row in range(6)}
    index = WindowIndex(dataset.clip_lengths, 3, 2, 1, shuffle_seed=4)
    with make(dataset, index, 6, 4) as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch.frame_ids, index.frames(batch.window_ids.numpy()))
            for row, ids in enumerate(batch.frame_ids.tolist()):
                assert all(torch.equal(batch.frames[row, t], pixels[frame][0]) for t, frame in enumerate(ids))
        per_block = max(len(loader.plan.block_frames(block)) for block in range(loader.plan.num_blocks))
        assert loader.plan.frames_per_block() == per_block


def test_steps_drawn_anew_each_epoch_and_few_clips_per_block(dataset: ShardDataset) -> None:
    plain = WindowIndex(dataset.clip_lengths, 1, 1, 1)
    with make(dataset, plain, 6, 4) as loader:
        pixels = {int(batch.frame_ids[row]): batch.frames[row].clone() for batch in loader for row in range(6)}
    index, seen = WindowIndex(dataset.clip_lengths, 3, (1, 6), 1), []
    with make(dataset, index, 6, 4, clips_per_block=2) as loader:
        for epoch in range(2):
            steps = np.zeros(len(index), dtype=int)
            for batch in loader:
                np.testing.assert_array_equal(batch.frame_ids, loader.plan.frames(batch.window_ids.numpy()))
                steps[batch.window_ids] = np.diff(batch.frame_ids[:, :2]).ravel()
                for row, ids in enumerate(batch.frame_ids.tolist()):
                    assert all(torch.equal(batch.frames[row, t], pixels[frame][0]) for t, frame in enumerate(ids))
            seen.append(steps)
            assert loader.epoch == epoch + 1
    taken = (seen[0] > 0) & (seen[1] > 0)
    assert 0.1 < (seen[0] == seen[1])[taken].mean() < 0.25  # one in six
