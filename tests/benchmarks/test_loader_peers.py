"""The race's peers draw the windows that the loader draws, with its pixels where they decode as it does."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import harness, loader, loader_pools
from benchmarks.loader_data import repeat_clips
from benchmarks.loader_peers import Batches, Peer, S, Wanted
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.frames.gather import statistics
from tests.helpers import data

BATCH, T, LENGTHS = 4, 2, {"a": 14, "b": 12}
SIZES = {"256 lines": (256, 340), "twice as large": (480, 500)}
# Mean difference of a pixel, of 255: of the same decoder and filter, and of others.
SAME, NEAR = 0.01, 4.0
SAME_DECODE = {
    loader.LaterEpochs,
    loader_pools.ThreadPool,
    loader_pools.ThreadPoolFiles,
    loader_pools.Spdl,
    loader_pools.RawSquares,
}
PEERS = [peer for peer in loader.PEERS if not issubclass(peer, loader.NothingKept)]


@pytest.fixture(scope="module", params=list(SIZES))
def wanted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Wanted:
    height, width = SIZES[request.param]
    folder = tmp_path_factory.mktemp("race")
    root = data.make_clips(folder / "clips", LENGTHS, height=height, width=width)
    longer = sum(file.stat().st_size for file in (root / "a").iterdir())
    build_shards(root, folder / "shards", verify="header", shard_size=longer)  # a shard per clip, for webdataset
    dataset = ShardDataset(folder / "shards")
    files = [str(root / dataset.frame_name(frame)) for frame in range(dataset.num_frames)]
    return Wanted(dataset, files, WindowIndex(dataset.clip_lengths, T, 2, 1), BATCH, 2, floats=True)


@pytest.fixture(scope="module")
def expected(wanted: Wanted) -> np.ndarray:
    return expected_of(wanted)


def expected_of(wanted: Wanted) -> np.ndarray:
    """Some pixels of each window by its id: [windows, n]."""
    made = {}
    with WindowLoader(wanted.dataset, wanted.index, 1, device="cpu", dtype=torch.uint8) as whole:
        for batch in whole:
            made[int(batch.window_ids)] = some_pixels(batch.frames)[0]
    return np.stack([made[window] for window in range(len(wanted.index))])


def some_pixels(frames: torch.Tensor) -> np.ndarray:
    """Of a batch [b, T, 3, S, S], as bytes are: float32 [b, n]."""
    few = frames[..., ::5, ::5]
    if few.dtype == torch.float32:
        offset, scale = statistics("imagenet")
        few = few / scale.view(3, 1, 1) + offset.view(3, 1, 1)
    return few.float().flatten(1).numpy()


def nearest(batches: Batches, count: int, expected: np.ndarray) -> tuple[list[int], float]:
    """Windows that the first ``count`` batches are nearest to, and the largest mean difference."""
    with closing(batches):
        # Copied: the memory of a batch is used again.
        pixels = np.concatenate([some_pixels(frames.clone()) for frames in itertools.islice(batches, count)])
    far = np.stack([np.abs(expected - window).mean(1) for window in pixels])
    return far.argmin(1).tolist(), float(far.min(1).max())


@pytest.mark.parametrize("kind", PEERS, ids=lambda peer: peer.__name__)
def test_peers_give_the_windows(kind: type[Peer], wanted: Wanted, expected: np.ndarray) -> None:
    if why := kind.why_missing():
        pytest.skip(why)
    steps = len(wanted.index) // BATCH
    windows, far = nearest(kind(wanted).batches(), steps, expected)
    assert far <= (SAME if kind in SAME_DECODE else NEAR)
    assert len(windows) >= BATCH
    if kind in SAME_DECODE:
        assert len(windows) == steps * BATCH
        assert len(set(windows)) == len(windows), "a window came twice in an epoch"
        assert windows != sorted(windows)


@pytest.mark.parametrize("kind", [peer for peer in loader.AS_BYTES if peer in PEERS], ids=lambda peer: peer.__name__)
def test_bytes_are_a_view_of_channels_last_memory(kind: type[Peer], wanted: Wanted, expected: np.ndarray) -> None:
    peer = kind(dataclasses.replace(wanted, floats=False))
    with closing(peer.batches()) as batches:
        first = next(batches)
        assert first.shape == (BATCH, T, 3, S, S) and first.dtype == torch.uint8 and first.stride()[2] == 1
    assert nearest(peer.batches(), 3, expected)[1] == 0


def test_a_missing_library_is_the_reason() -> None:
    class Lacking(loader_pools.ThreadPool):
        needs = "no_such_module.inside"

    assert Lacking.why_missing().startswith("importing no_such_module.inside fails: ModuleNotFoundError: No module")
    assert loader_pools.ThreadPool.why_missing() == ""


def test_clips_are_linked_until_there_are_enough(tmp_path: Path) -> None:
    root = repeat_clips(data.make_clips(tmp_path / "clips", LENGTHS), 60)
    files = sorted(root.rglob("*.jpg"))
    assert len(files) == 3 * 26 and len({file.stat().st_ino for file in files}) == 26
    assert len(list(root.iterdir())) == 6


def test_a_raw_map_holds_equal_files_once_and_names_the_bytes_of_all(tmp_path: Path) -> None:
    root = repeat_clips(data.make_clips(tmp_path / "clips", LENGTHS, height=256, width=300), 50)
    build_shards(root, tmp_path / "shards", verify="header")
    dataset = ShardDataset(tmp_path / "shards")
    files = [str(root / dataset.frame_name(frame)) for frame in range(dataset.num_frames)]
    wanted = Wanted(dataset, files, WindowIndex(dataset.clip_lengths, T, 2, 1), BATCH, 2, floats=True)
    assert loader_pools.RawSquares(wanted).set_bytes() == 52 * S * S * 3
    assert loader_pools.RawStored(wanted).set_bytes() == 52 * 256 * 300 * 3
    assert (tmp_path / "shards" / "RawStored.raw").stat().st_size == 26 * 256 * 300 * 3
    assert loader_pools.ThreadPool(wanted).set_bytes() == sum(Path(file).stat().st_size for file in files)


def test_rows_of_sizes_not_run_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    harness.write_csv("loader", [{"frames": "256 lines", "a": 1}, {"frames": "853x480", "a": 2, "commit": "then"}])
    rows = loader.write("loader", [{"frames": "256 lines", "a": 3}], ["256 lines"])
    assert [(row["frames"], row["a"]) for row in rows] == [("256 lines", "3"), ("853x480", "2")]
    assert rows[1]["commit"] == "then" != rows[0]["commit"]
