"""Batches against a plain reference, decodes, small caches, ids, types, free data, the loop's clock."""

from __future__ import annotations

import gc
import logging
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.replay import ReplayLoader
from cltt import EpochPlan, ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import SettingsError
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.loader.loader import STEPS_AHEAD
from tests.helpers import data

LENGTHS = {"a": 40, "b": 23, "c": 31, "d": 8, "e": 5}
SIZE = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("loader")
    build_shards(data.make_clips(folder / "clips", LENGTHS, height=40, width=56), folder / "shards", workers=1)
    return ShardDataset(folder / "shards")


def make(
    dataset: ShardDataset, *, window: tuple[int, int, int] = (3, 2, 1), batch: int = 6, **options: object
) -> WindowLoader:
    index = WindowIndex(dataset.clip_lengths, *window)
    defaults = {"image_size": SIZE, "device": "cpu", "dtype": torch.uint8, "num_threads": 2, "depth": 4}
    return WindowLoader(dataset, index, batch, **{**defaults, **options})  # type: ignore[arg-type]


def reference(loader: WindowLoader, step: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """The frames of a step, read and decoded one by one: uint8 [b, T, 3, S, S]."""
    ids = loader.index.frames(loader.plan.batch(step, rank=rank, world_size=world_size))
    decoder = FrameDecoder(Framing(image_size=SIZE))
    frames = np.stack([decoder.frame(jpeg) for jpeg in loader.dataset.read(ids.reshape(-1))])  # type: ignore[attr-defined]
    return torch.from_numpy(frames).view(*ids.shape, SIZE, SIZE, 3).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 1, 2), (1, 1, 1), (3, 2, 5), (4, 1, 3)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_are_those_of_the_plan(dataset: ShardDataset, window: tuple[int, int, int], world_size: int) -> None:
    for rank in range(world_size):
        with make(dataset, window=window, rank=rank, world_size=world_size, seed=5) as loader:
            for epoch in range(2):
                plan, steps = loader.plan, 0
                assert plan.epoch == loader.epoch == epoch
                expected = [reference(loader, k, rank, world_size) for k in range(len(loader))]
                for step, batch in enumerate(loader):
                    ids = plan.batch(step, rank=rank, world_size=world_size)
                    assert batch.window_ids.tolist() == ids.tolist()
                    assert batch.clip_ids.tolist() == loader.index.locate(ids)[0].tolist()
                    assert batch.frame_ids.tolist() == loader.index.frames(ids).tolist()
                    assert torch.equal(batch.frames, expected[step])
                    steps += 1
                assert steps == len(loader) == len(plan)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_a_small_cache_changes_nothing_but_decodes(
    dataset: ShardDataset, share: float, augment: str, caplog: pytest.LogCaptureFixture
) -> None:
    with make(dataset, augment=augment) as roomy:
        block = roomy.plan.frames_per_block()
        expected = [batch.frames.clone() for batch in roomy]
        slot = roomy._decoder.framing.pixels * 3
    caplog.clear()
    with make(dataset, augment=augment, keep_bytes=0, cache_bytes=max(1, int(share * block * slot))) as tight:
        for got, want in zip(tight, expected, strict=True):
            assert torch.equal(got.frames, want)
        for _ in tight:
            pass
    warned = [r for r in caplog.records if "would hold a block" in r.message]
    assert len(warned) == (share < 1), "one warning, not one an epoch"
    if warned:
        assert f"cache_bytes={block * slot})" in warned[0].message
    decoded = tight.stats()["frames_decoded"] / 2, roomy.stats()["frames_decoded"]
    # A cache of a step's frames keeps next to nothing; one of a block loses what neighbouring blocks share, at most.
    if share < 0.1:
        assert decoded[0] > 1.5 * decoded[1]
    elif share == 1:
        assert decoded[0] < 1.1 * decoded[1]


def test_a_cache_of_one_block_decodes_no_more_than_the_plan_asks(dataset: ShardDataset) -> None:
    with make(dataset, depth=8) as loader:
        plan = loader.plan
        bytes_of_a_block = plan.frames_per_block() * SIZE * SIZE * 3
    asked = sum(len(plan.block_frames(block)) for block in range(plan.num_blocks))
    with make(dataset, depth=8, keep_bytes=0, cache_bytes=bytes_of_a_block) as loader:
        places = sum(batch.frame_ids.numel() for batch in loader)
        stats = loader.stats()
    assert stats["frames_decoded"] <= asked
    assert stats["frames_reused"] == places - stats["frames_decoded"]


def test_windows_that_share_nothing_cost_one_decode_a_frame(dataset: ShardDataset) -> None:
    with make(dataset, window=(3, 2, 5)) as loader:
        used = np.concatenate([batch.frame_ids.numpy().reshape(-1) for batch in loader])
        stats = loader.stats()
    assert stats["frames_decoded"] == stats["frames_read"] == len(np.unique(used)) == len(used)
    assert stats["bytes_read"] == sum(map(len, dataset.read(used)))


def test_decodes_per_frame_used_at_the_default_depth(tmp_path: Path) -> None:
    """At (5, 2, 1) at most 1.35; small frames, but clips long enough to fill several blocks."""
    clips = data.make_clips(tmp_path / "clips", {f"c{k}": 300 for k in range(10)}, height=16, width=16)
    build_shards(clips, tmp_path / "shards", verify="header", workers=1)
    dataset = ShardDataset(tmp_path / "shards")
    index = WindowIndex(dataset.clip_lengths, 5, 2, 1)
    with WindowLoader(dataset, index, 8, image_size=8, device="cpu", dtype=torch.uint8) as loader:
        assert loader.plan.depth == 128 and loader.plan.run == 20 and loader.plan.num_blocks >= 2
        used = np.unique(np.concatenate([batch.frame_ids.numpy().reshape(-1) for batch in loader]))
        assert loader.stats()["frames_decoded"] / len(used) <= 1.35


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 1, 2)])
def test_a_kept_batch_does_not_change(dataset: ShardDataset, window: tuple[int, int, int]) -> None:
    for options in ({"channels_last": True}, {}, {"dtype": torch.float32}, {"augment": "crop", "channels_last": True}):
        with make(dataset, window=window, batch=3, **options) as loader:
            batches = iter(loader)
            kept = [next(batches) for _ in range(5)]
            part = kept[3].frames[2, 1]
            copies, part_copy = [batch.frames.clone() for batch in kept], part.clone()
            for _ in range(6):
                next(batches)
            assert all(torch.equal(batch.frames, copy) for batch, copy in zip(kept, copies, strict=True))
            del kept, copies
            gc.collect()
            for _ in range(4):
                next(batches)
            assert torch.equal(part, part_copy), "a view alone must keep the memory, too"


@pytest.mark.parametrize(
    ("window", "dtype", "most"),
    [
        ((3, 2, 1), torch.uint8, 2),
        ((2, 1, 2), torch.uint8, STEPS_AHEAD + 2),
    ],
)
def test_memory_of_dropped_batches_is_used_again(
    dataset: ShardDataset, window: tuple[int, int, int], dtype: torch.dtype, most: int
) -> None:
    with make(dataset, window=window, batch=3, channels_last=True, dtype=dtype) as loader:
        places = set()
        for batch in loader:
            places.add(batch.frames.data_ptr())
            del batch
        assert len(places) <= most < len(loader)


@pytest.mark.parametrize("pages", [0.5, 1, 2.5])
def test_a_small_cache_gives_the_same_batches_where_windows_share_nothing(dataset: ShardDataset, pages: float) -> None:
    window, step_bytes = (3, 2, 5), 2 * 3 * SIZE * SIZE * 3
    with make(dataset, window=window, batch=2) as loader:
        expected = [batch.frames.clone() for batch in loader]
    with make(dataset, window=window, batch=2, cache_bytes=int(pages * step_bytes)) as tight:
        for got, want in zip(tight, expected, strict=True):
            assert torch.equal(got.frames, want)
        stats = tight.stats()
    assert stats["frames_decoded"] == len(expected) * 2 * 3


def test_float_batches_are_the_normalised_raw_ones(dataset: ShardDataset) -> None:
    with make(dataset) as raw, make(dataset, dtype=torch.float32, channels_last=True) as floats:
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        for a, b in zip(raw, floats, strict=True):
            torch.testing.assert_close(b.frames, (a.frames / 255 - mean) / std, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope", ["frame", "window"])
def test_augmentations_do_not_depend_on_rank_or_threads(dataset: ShardDataset, scope: str) -> None:
    options = {"augment": "simclr", "augment_scope": scope, "seed": 3}
    with make(dataset, **options, num_threads=1) as whole:
        expected = [batch.frames.clone() for batch in whole]
        again = [batch.frames.clone() for batch in whole]
    assert not torch.equal(expected[0], again[0]), "another epoch draws anew"
    for rank in range(2):
        with make(dataset, **options, num_threads=3, rank=rank, world_size=2) as part:
            for batch, want in zip(part, expected, strict=True):
                assert torch.equal(batch.frames, want[3 * rank : 3 * rank + 3])


def test_one_window_alike_for_all_its_frames(dataset: ShardDataset) -> None:
    """With scope "window" the crop of all frames of a window is the same; drawn clips move, so compare parameters."""
    with make(dataset, augment="crop", augment_scope="window") as loader:
        step = loader.plan.batch(0)
        numbers = loader._random_numbers(step, loader.index.frames(step))
    assert numbers is not None
    assert all((values == values[:, :1]).all() and len(np.unique(values)) == len(step) for values in numbers.values())


def test_free_data_replays_one_batch(dataset: ShardDataset) -> None:
    with make(dataset) as loader:
        first = next(iter(loader)).frames.clone()
        loader.set_epoch(1)
        loader.set_epoch(0)
        free = ReplayLoader(loader)
        decoded = loader.stats()["frames_decoded"]
        batches = list(free)
        assert len(batches) == len(free) == len(loader)
        assert all(torch.equal(batch.frames, first) for batch in batches)
        assert loader.stats()["frames_decoded"] == decoded
        assert free.state_dict() == {"epoch": 1, "step": 0} and loader.state_dict()["plan"]["step"] == 0


def test_wait_share_tells_who_waited(dataset: ShardDataset) -> None:
    import time

    with make(dataset) as loader:
        for _ in loader:
            time.sleep(0.01)
        slow_body = loader.stats()["wait_share"]
    with make(dataset) as loader:
        for _ in loader:
            pass
        no_body = loader.stats()["wait_share"]
    assert 0 <= slow_body < 0.6 < no_body <= 1
    with make(dataset) as loader:
        for _ in islice(loader, 1):  # an epoch of one step: its body counts, too
            time.sleep(0.5)
            assert loader.stats()["wait_share"] < 0.6
        assert loader.stats()["wait_share"] < 0.6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": torch.int64}, "dtype"),
        ({"augment": "mixup"}, "none, crop, simclr"),
        ({"augment_scope": "batch"}, "frame, window"),
        ({"image_size": 0}, "image_size is 0"),
        ({"device": "foo"}, "device is 'foo'; it must be auto, cuda"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"max_bad_frames": -1}, "max_bad_frames is -1"),
        ({"cache_bytes": 0}, "cache_bytes is 0"),
        ({"world_size": 4}, "4 ranks"),
        ({"rank": 1}, "rank"),
        ({"batch": 10_000}, "batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused(dataset: ShardDataset, options: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make(dataset, **options)


def test_a_loader_says_nothing_when_all_is_well(dataset: ShardDataset, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), make(dataset) as loader:
        assert isinstance(loader.plan, EpochPlan)
        assert sum(1 for _ in loader) == len(loader)
    assert not [record for record in caplog.records if record.name.startswith("cltt")]
