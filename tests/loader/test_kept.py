"""Frames kept from epoch to epoch: the same batches, fewer decodes, one copy for all processes, whole or not there."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.commands import prune
from cltt.errors import SettingsError
from cltt.files import node_files
from cltt.frames import store as store_module
from cltt.frames.store import FrameStore
from cltt.loader import kept as kept_module
from cltt.loader import memory
from cltt.loader.bad_frames import BadFrames
from cltt.loader.fetch import FrameFetcher
from cltt.loader.kept import KeptFrames
from cltt.loader.memory import frames_used
from tests.helpers import data

LENGTHS = {"a": 40, "b": 23, "c": 31, "d": 8}
FRAME = 3000  # bytes


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    root = data.make_clips(folder / "clips", LENGTHS, height=40, width=56)
    (folder / "boxes.csv").write_text("".join(f"a/frame_{k:06d}.jpg,4,5,30,40\n" for k in range(40)))
    build_shards(root, folder / "shards", workers=1, boxes=f"csv:{folder / 'boxes.csv'}")
    return folder / "shards"


def make(shards: Path, stride: int = 1, **options: Any) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, options.pop("step", 2), stride)
    defaults = {"image_size": 24, "device": "cpu", "dtype": torch.uint8, "num_threads": 2, "depth": 4}
    return WindowLoader(dataset, index, 4, **{**defaults, **options})


def pixels(loader: WindowLoader, epochs: int = 2) -> list[torch.Tensor]:
    with loader:
        return [batch.frames.clone() for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize(
    ("stride", "options"),
    [
        (1, {}),
        (5, {"dtype": torch.float32}),
        (1, {"channels_last": True}),
        (1, {"augment": "simclr"}),
        (5, {"augment": "crop", "region": "boxes", "region_effect": "crop"}),
        (1, {"region": "boxes", "region_effect": "blur"}),
        (1, {"step": "1-3"}),
    ],
    ids=str,
)
def test_batches_are_the_same_however_many_frames_are_kept(shards: Path, stride: int, options: dict[str, Any]) -> None:
    expected = pixels(make(shards, stride, keep_bytes=0, **options), 3)
    for most in (None, 40 * 4096):
        loader = make(shards, stride, keep_bytes=most, **options)
        for got, want in zip(pixels(loader, 3), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("most", [None, 40 * 4096])
def test_ranks_share_one_copy_and_go_on_from_any_step(
    shards: Path, tmp_path: Path, world_size: int, most: int | None
) -> None:
    wanted = pixels(make(shards, keep_bytes=0))
    loaders = [
        make(shards, keep_bytes=most, keep_dir=tmp_path, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for first in (0, 3, len(loaders[0]) - 1):
        for loader in loaders:
            state = make(shards).state_dict()
            state["plan"]["step"] = first
            loader.load_state_dict(state)
        parts = [pixels(loader) for loader in loaders]
        for rows, want in zip(zip(*parts, strict=True), wanted[first:], strict=True):
            assert torch.equal(torch.cat(rows), want)
    assert len(list(tmp_path.iterdir())) == 1
    if most is None:
        decoded = sum(loader.stats()["frames_decoded"] for loader in loaders)
        used = frames_used(loaders[0].index)
        assert used <= decoded < 1.5 * used, "two ranks may decode one frame at the same time"


@pytest.mark.parametrize("stride", [1, 5])
def test_frames_are_decoded_once_in_a_run_and_counted_as_reused(shards: Path, stride: int) -> None:
    with make(shards, stride) as loader:
        places = sum(batch.frame_ids.numel() for _ in range(3) for batch in loader)
        stats = loader.stats()
        assert stats["frames_decoded"] == stats["frames_read"] <= frames_used(loader.index)
        assert stats["frames_reused"] == places - stats["frames_decoded"]
        assert loader.keeps()[1] == 1


def test_any_share_saves_in_proportion(shards: Path) -> None:
    def later_decodes(most: int | None) -> float:
        with make(shards, 5, keep_bytes=most) as loader:
            for _ in loader:
                pass
            first = loader.stats()["frames_decoded"]
            for _ in range(4):
                for _ in loader:
                    pass
            return (loader.stats()["frames_decoded"] - first) / 4 / first

    used = frames_used(make(shards, 5).index)
    shares = [later_decodes(int(share * used * 4096)) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert shares[0] == 1 and shares[-1] < 0.1
    assert all(low > high for low, high in itertools.pairwise(shares)), shares


def test_half_stays_within_its_memory(tmp_path: Path) -> None:
    kept = KeptFrames("k", 10_000, FRAME, tmp_path)
    kept.limit(5_000 * kept.row_bytes, 10_000)
    chosen = np.flatnonzero(kept.keeps(np.arange(10_000)))
    assert 4_990 < len(chosen) < 5_010
    assert 990 < kept.keeps(np.arange(0, 10_000, 5)).sum() < 1_010
    for frame in chosen.tolist():
        kept.put(frame, np.array([10, 100], np.int32), np.full(FRAME, frame % 251, np.uint8))
    assert kept.held_bytes < 5_010 * kept.row_bytes + 100_000
    assert kept.has(chosen).all() and kept.has(np.arange(10_000)).sum() == len(chosen)
    assert (kept.pixels[chosen] == (chosen % 251)[:, None]).all() and (kept.sizes[chosen] == [10, 100]).all()


@pytest.mark.parametrize("change", [{"image_size": 16}, {"augment": "crop"}, {"region": "center"}])
def test_other_settings_have_frames_of_their_own_and_throw_the_old_away(
    shards: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    expected = pixels(make(shards, keep_bytes=0, **change))
    pixels(make(shards, keep_dir=tmp_path))
    gc.collect()
    (old,) = tmp_path.iterdir()
    changed = make(shards, keep_dir=tmp_path, **change)
    for got, want in zip(pixels(changed), expected, strict=True):
        assert torch.equal(got, want)
    assert changed.stats()["frames_decoded"] and not old.exists()


def test_a_later_process_finds_them_until_the_node_starts_anew(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "a" / "new one"
    pixels(make(shards, keep_dir=tmp_path))
    gc.collect()
    again = make(shards, keep_dir=tmp_path)
    pixels(again)
    assert again.stats()["frames_decoded"] == 0 < again.stats()["frames_reused"]
    del again
    gc.collect()
    assert len(node_files.unused(tmp_path)) == 1
    as_before = kept_module.key_of
    monkeypatch.setattr(kept_module, "key_of", lambda *parts: as_before(*parts)[::-1])  # as after a restart
    fresh = make(shards, keep_dir=tmp_path)
    pixels(fresh)
    assert fresh.stats()["frames_decoded"] and len(list(tmp_path.iterdir())) == 1


def test_in_memory_the_last_process_removes_the_file(tmp_path: Path) -> None:
    first, second = (KeptFrames("k", 5, FRAME, tmp_path) for _ in range(2))
    del first
    gc.collect()
    assert list(tmp_path.iterdir()) and not node_files.unused(tmp_path)
    del second
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_prune_finds_what_a_killed_run_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = KeptFrames("used", 5, FRAME, tmp_path)
    left = node_files.path_of(tmp_path, "left")
    left.write_bytes(b"frames")
    flags = ["--home", str(tmp_path), "--keep-dir", str(tmp_path)]
    assert prune.main(flags) == 0 and left.exists()
    assert "left  decoded frames  4.1 kB  can go: --remove" in capsys.readouterr().out
    assert prune.main([*flags, "--remove"]) == 0 and not left.exists()
    assert len(list(tmp_path.iterdir())) == 1 and used


WRITER = """
import sys, itertools, numpy as np
from pathlib import Path
from cltt.loader.bad_frames import BadFrames
from cltt.loader.fetch import FrameFetcher
from cltt.loader.kept import KeptFrames
frames = KeptFrames("k", 100_000, 300_000, Path(sys.argv[1]), stays=True)
frames.limit(10**9, 1)
print("begun", flush=True)
for k in itertools.count(int(sys.argv[2])):
    frames.put(k, np.array([100, 1000], np.int32), np.full(300_000, k % 251, np.uint8))
"""


def test_a_killed_writer_leaves_no_torn_frame(tmp_path: Path) -> None:
    reader, whole = KeptFrames("k", 100_000, 300_000, tmp_path), 0
    for turn in range(8):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(turn * 10_000)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
            time.sleep(0.003 * (turn + 1))
            writer.send_signal(signal.SIGKILL)
        found = np.flatnonzero(reader.has(np.arange(100_000)))
        assert (reader.pixels[found] == (found % 251)[:, None]).all() and (reader.sizes[found] == [100, 1000]).all()
        whole = max(whole, len(found))
    assert whole


def test_a_full_disk_stops_the_keeping_and_nothing_else(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, write, left = pixels(make(shards, keep_bytes=0)), os.pwritev, 20

    def pwritev(file: int, parts: list[memoryview], offset: int) -> int:
        nonlocal left
        left -= 1
        return write(file, parts, offset) if left > 0 else write(file, parts[:1], offset)  # cut short

    monkeypatch.setattr(os, "pwritev", pwritev)
    for got, want in zip(pixels(make(shards)), expected, strict=True):
        assert torch.equal(got, want)
    assert sum("no further decoded frames are kept" in record.message for record in caplog.records) == 1


def test_no_memory_to_map_keeps_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    expected = pixels(make(shards, keep_bytes=0))
    monkeypatch.setattr(os, "ftruncate", refuse)
    loader = make(shards)
    for got, want in zip(pixels(loader), expected, strict=True):
        assert torch.equal(got, want)
    assert loader.keeps() == (0, 0)


@pytest.mark.parametrize("options", [{"keep_bytes": -1}, {"keep_dir": "/proc/none"}])
def test_what_cannot_work_is_said_at_once(shards: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="keep"):
        make(shards, **options)


@pytest.mark.parametrize("window", [(3, 2, 1), (2, 1, 2), (3, 2, 5), (3, 3, 20), (2, 0, 3)])
def test_the_frames_that_windows_have_are_counted(
    window: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = WindowIndex([4000, 7, 6000, 3], *window)
    exact = len(np.unique(index.frames(np.arange(len(index)))))
    assert frames_used(index) == exact
    monkeypatch.setattr(memory, "EXACT_FRAMES", 2_000)
    assert frames_used(index) == pytest.approx(exact, rel=0.35)


def test_on_a_gpu_frames_are_copied_in_and_out_by_pinned_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acted out on a CPU: what is decoded is downloaded once, and uploaded instead of decoded ever after."""
    pinned: list[bool] = []
    events: list[str] = []
    empty = torch.empty

    def plain(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **options)

    def on_device(values: np.ndarray, device: Any) -> torch.Tensor:
        events.append("upload")
        return torch.from_numpy(values)

    @contextlib.contextmanager
    def own_stream(device: Any) -> Iterator[None]:
        events.append("begin")
        yield
        events.append("waited for")

    with make(shards) as loader:
        framing, dataset, decoder = loader._decoder.framing, loader.dataset, loader._decoder
    store = FrameStore(40, framing, torch.device("cpu"))
    store._frames = torch.from_numpy(store._frames)
    kept = KeptFrames("k", dataset.clip_offsets[-1], framing.pixels * 3)
    kept.limit(10**9, 1)
    fetcher = FrameFetcher(dataset, ActedDecoder(decoder), store, BadFrames(dataset, 0), kept)
    store.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    store._last_reads[:] = "read"
    monkeypatch.setattr(torch, "empty", plain)
    monkeypatch.setattr(store_module, "own_stream", own_stream)
    monkeypatch.setattr(store_module, "on_device", on_device)
    monkeypatch.setattr(FrameStore, "wait_writable", lambda *_: events.append("wait for readers"))
    frames = np.arange(3, 15)
    fetcher.fetch(frames, frames)
    assert pinned == [True] and events == ["begin", "upload", "waited for"] and fetcher.totals.frames_decoded == 12
    events.clear()
    fetcher.fetch(frames, frames + 20)
    assert events == ["begin", "wait for readers", "upload", "upload", "waited for"]
    assert fetcher.totals.frames_decoded == 12 == fetcher.totals.frames_copied
    assert torch.equal(store.rows()[frames + 20], store.rows()[frames]) and store.rows()[frames].any()


class ActedDecoder:
    """Decodes on the CPU and writes into a store whose rows are a tensor."""

    def __init__(self, decoder: Any) -> None:
        self.decoder, self.framing = decoder, decoder.framing

    def decode(self, jpegs: list[bytes], slots: list[int], store: FrameStore, look_at: Any) -> dict[int, str]:
        aside = FrameStore(len(jpegs), self.framing, torch.device("cpu"))
        failures = self.decoder.decode(jpegs, range(len(jpegs)), aside, look_at)
        for k, slot in enumerate(slots):
            store.rows()[slot] = torch.from_numpy(aside.host_row(k))
            store.sizes[slot] = aside.sizes[k]
        return dict(failures)
