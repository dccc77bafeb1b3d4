"""Reading: any frames, any order, any number of threads; damage is named and says what to do."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cltt import ShardDataset, WindowIndex, build_shards
from cltt.errors import DataError, FrameError
from cltt.files import maps
from cltt.shards import dataset as dataset_module
from cltt.shards import folder as folder_module
from cltt.shards import layout
from cltt.shards.folder import FolderDataset
from tests.helpers import data

LENGTHS = {"a": 13, "b/c": 1, "b/d": 40, "e": 6}
FRAMES = sum(LENGTHS.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.make_clips(tmp_path_factory.mktemp("source") / "root", LENGTHS)


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    build_shards(root, out, shard_size=20_000, workers=1)
    return out


@pytest.fixture(scope="module")
def contents(root: Path) -> list[bytes]:
    return [path.read_bytes() for key in LENGTHS for path in sorted((root / key).glob("*.jpg"))]


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, FRAMES - 1), max_size=80), st.sampled_from([0, 600, 1 << 20]), st.sampled_from([1, 9000])
)
def test_any_frames_in_any_order(
    built: Path, contents: list[bytes], ids: list[int], max_gap: int, max_read: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_module, "MAX_GAP", max_gap)
        patch.setattr(dataset_module, "MAX_READ", max_read)
        assert ShardDataset(built).read(ids) == [contents[k] for k in ids]


def test_neighbours_come_in_one_read_and_distant_frames_do_not(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    read = dataset_module._pread_into
    monkeypatch.setattr(
        dataset_module,
        "_pread_into",
        lambda handle, memory, offset: calls.append(len(memory)) or read(handle, memory, offset),
    )
    dataset = ShardDataset(built)
    in_shard_0 = np.flatnonzero(dataset.frame_records(range(FRAMES))["shard"] == 0)
    dataset.read(in_shard_0[::-1])
    assert len(calls) == 1
    calls.clear()
    monkeypatch.setattr(dataset_module, "MAX_GAP", 0)
    dataset.read(in_shard_0[::2])
    assert len(calls) == len(in_shard_0[::2])


def test_reads_are_the_same_where_the_system_has_no_preadv(
    built: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "preadv")
    assert ShardDataset(built).read(range(FRAMES)) == contents


def test_many_threads_share_a_dataset(built: Path, contents: list[bytes]) -> None:
    dataset = ShardDataset(built)

    def read(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, FRAMES, 50)
        return dataset.read(ids) == [contents[k] for k in ids]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(200)))


@pytest.mark.parametrize("slow", [True, False])
def test_reads_that_wait_are_made_together_and_those_that_do_not_by_the_caller(
    built: Path, contents: list[bytes], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: set[int] = set()
    read = dataset_module._pread_into

    def watched(handle: int, memory: memoryview, offset: int) -> int:
        readers.add(threading.get_ident())
        time.sleep(0.003 if slow else 0)
        return read(handle, memory, offset)

    monkeypatch.setattr(dataset_module, "_pread_into", watched)
    monkeypatch.setattr(dataset_module, "MAX_GAP", 0)
    if not slow:  # another process may take the core in the midst of a read
        monkeypatch.setattr(maps, "WAIT_SECONDS", 10.0)
    dataset = ShardDataset(built)
    wanted = list(range(0, FRAMES, 2))
    for _ in range(3):
        readers.clear()
        assert dataset.read(wanted) == [contents[k] for k in wanted]
    assert (len(readers) > 1) == slow and len(readers) <= 1 + dataset_module.HELPERS


def test_what_a_helper_cannot_read_is_named_as_by_the_caller(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "shard-000001.tar").unlink()
    dataset = ShardDataset(copy)
    alone = list(map(str, dataset.read_each(range(FRAMES))))
    monkeypatch.setattr(maps.WaitGauge, "slow", True)
    assert list(map(str, dataset.read_each(range(FRAMES)))) == alone


def test_a_frame_by_its_number_is_an_image(built: Path, contents: list[bytes]) -> None:
    dataset = ShardDataset(built)
    assert len(dataset) == FRAMES
    for frame in (0, 20, FRAMES - 1):
        shown = cv2.cvtColor(
            cv2.imdecode(np.frombuffer(contents[frame], np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        image = dataset[frame]
        assert image.mode == "RGB" and np.abs(np.asarray(image).astype(int) - shown).max() <= 3
    assert dataset[-1] == dataset[FRAMES - 1]
    for beyond in (FRAMES, -FRAMES - 1):
        with pytest.raises(IndexError):
            dataset[beyond]
    with pytest.raises(TypeError, match="slice"):
        dataset[1:3]  # type: ignore[index]
    assert sum(1 for _ in dataset) == FRAMES  # Python's protocol of sequences: IndexError ends it


def test_clips(built: Path, root: Path) -> None:
    for dataset in (ShardDataset(built), FolderDataset(root)):
        assert (dataset.num_frames, dataset.num_clips) == (FRAMES, len(LENGTHS))
        assert dataset.clip_lengths.tolist() == list(LENGTHS.values()) and dataset.clip_lengths.dtype == np.int64
        assert dataset.clip_offsets.tolist() == [0, *np.cumsum(list(LENGTHS.values()))]
        assert [dataset.clip_key(c) for c in range(len(LENGTHS))] == list(LENGTHS)
        assert [dataset.clip_part(c) for c in range(len(LENGTHS))] == [0] * len(LENGTHS)
        expected = np.repeat(np.arange(len(LENGTHS)), list(LENGTHS.values()))
        assert dataset.clip_of(np.arange(FRAMES)).tolist() == expected.tolist()
        assert dataset.clip_of(np.arange(FRAMES).reshape(-1, 6)).shape == (FRAMES // 6, 6)
        assert dataset.labels.tolist() == [-1] * len(LENGTHS) and dataset.split_names == []
        assert dataset.frame_name(14) == "b/d/frame_000000.jpg"
        assert len(dataset.fingerprint) == 32
        for bad in ([-1], [FRAMES]):
            with pytest.raises(IndexError, match=f"0..{FRAMES - 1}"):
                dataset.read(bad)
        assert dataset.read([]) == []


def test_a_flipped_byte_is_named_and_leaves_the_others(copy: Path, contents: list[bytes]) -> None:
    dataset = ShardDataset(copy)
    record = dataset.frame_records([20])[0]
    shard = copy / layout.shard_name(int(record["shard"]))
    content = bytearray(shard.read_bytes())
    content[int(record["offset"]) + 100] ^= 4
    shard.write_bytes(content)
    frames = dataset.read_each(range(FRAMES))
    error = frames.pop(20)
    assert frames == contents[:20] + contents[21:]
    assert isinstance(error, FrameError) and (error.frame_id, error.name) == (20, "b/d/frame_000006.jpg")
    assert f"{shard}: CRC mismatch; copy this shard again" in error.reason
    with pytest.raises(FrameError, match=r"frame 20 \(b/d/frame_000006.jpg\)"):
        dataset.read([3, 20])


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_missing_or_cut_off_shard_is_named(copy: Path, contents: list[bytes], fault: str) -> None:
    shard = copy / "shard-000001.tar"
    if fault == "missing":
        shard.unlink()
    else:
        os.truncate(shard, 100)
    dataset = ShardDataset(copy)
    lost = dataset.frame_records(range(FRAMES))["shard"] == 1
    for frame, content, is_lost in zip(dataset.read_each(range(FRAMES)), contents, lost, strict=True):
        if not is_lost:
            assert frame == content
        else:
            assert isinstance(frame, FrameError) and str(shard) in str(frame)
            assert ("No such file" if fault == "missing" else "cut off") in frame.reason
    with pytest.raises(DataError, match=str(shard)):
        dataset.frame_name(int(np.flatnonzero(lost)[1]))


@pytest.mark.parametrize("name", layout.INDEX_FILES)
def test_an_index_file_gone_or_cut(copy: Path, name: str) -> None:
    os.truncate(copy / name, 50)
    with pytest.raises(DataError, match=f"{name} has 50 bytes"):
        ShardDataset(copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        ShardDataset(copy)


def test_a_plain_folder_reads_the_files(root: Path, contents: list[bytes], tmp_path: Path) -> None:
    dataset = FolderDataset(root)
    ids = np.random.default_rng(0).integers(0, FRAMES, 100)
    assert dataset.read(ids) == [contents[k] for k in ids]
    moved = Path(shutil.copytree(root, tmp_path / "moved"))
    other = FolderDataset(moved)
    (moved / "a/frame_000002.jpg").unlink()
    (moved / "a/frame_000004.jpg").write_bytes(b"text")
    frames = other.read_each(range(6))
    assert [isinstance(frame, FrameError) for frame in frames] == [False, False, True, False, True, False]
    assert "No such file" in str(frames[2]) and "a/frame_000004.jpg" in str(frames[4])


def test_closed_files_after_use(built: Path) -> None:
    def open_shards() -> int:
        links = (os.path.join("/proc/self/fd", handle) for handle in os.listdir("/proc/self/fd"))
        return sum(str(built) in os.readlink(link) for link in links if os.path.islink(link))

    dataset = ShardDataset(built)
    dataset.read(range(FRAMES))
    assert open_shards() > 1
    del dataset
    gc.collect()
    assert open_shards() == 0


# ---- a plain folder with broken files


def break_files(root: Path) -> None:
    """Every kind of file that a build leaves out, at the ends of clips, in their middle, side by side, and alone."""
    (root / "a/frame_000000.jpg").write_bytes(b"")
    (root / "a/frame_000007.jpg").write_text("no picture at all")
    whole = (root / "a/frame_000012.jpg").read_bytes()
    (root / "a/frame_000012.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "a/frame_000013.jpg").write_bytes(whole[:100])
    hollow = bytearray((root / "b/frame_000009.jpg").read_bytes())
    late = len(hollow) * 9 // 10
    hollow[late : late + 20] = b"\xff\xd9" * 10  # its header and its end are whole
    (root / "b/frame_000009.jpg").write_bytes(bytes(hollow))
    (root / "b/frame_000019.jpg").unlink()
    (root / "b/frame_000019.jpg").symlink_to(root / "nowhere.jpg")
    (root / "c/frame_000000.jpg").write_bytes(b"GIF89a")  # all of its clip
    (root / "d/frame_000000.jpg").write_bytes(b"")


@pytest.fixture(scope="module")
def broken_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = data.make_clips(tmp_path_factory.mktemp("broken"), {"a": 25, "b": 20, "c": 1, "d": 9, "e": 11})
    break_files(root)
    cv2.imwrite(str(root / "e/frame_000003.png"), data.frame_image(0, 3, 48, 64))
    data.add_mac_clutter(root)
    return root


def test_a_checked_folder_has_the_clips_of_its_shards(broken_root: Path, tmp_path: Path) -> None:
    build_shards(broken_root, tmp_path / "s", workers=1, shard_size=20_000)
    packed, plain = ShardDataset(tmp_path / "s"), FolderDataset(broken_root, check=True)
    assert (plain.num_frames, plain.num_clips) == (packed.num_frames, packed.num_clips)
    assert np.array_equal(plain.clip_lengths, packed.clip_lengths)
    assert np.array_equal(plain.clip_offsets, packed.clip_offsets)
    clips = range(packed.num_clips)
    assert [(plain.clip_key(c), plain.clip_part(c)) for c in clips] == [
        (packed.clip_key(c), packed.clip_part(c)) for c in clips
    ]
    assert {packed.clip_part(c) for c in clips} == {0, 1, 2}
    frames = range(packed.num_frames)
    assert [plain.frame_name(f) for f in frames] == [packed.frame_name(f) for f in frames]
    assert plain.read(frames) == packed.read(frames)
    for name in ("size", "crc", "width", "height"):
        assert np.array_equal(plain.frame_records(frames)[name], packed.frame_records(frames)[name])
    report = json.loads((tmp_path / "s" / "report.json").read_text())["files"]
    left_out = {file["file"]: file["reason"] for file in report if file["what"] == "skipped"}
    assert plain.invalid.items() <= left_out.items() and len(plain.invalid) == 8


def test_windows_of_a_checked_folder_are_those_of_its_shards(broken_root: Path, tmp_path: Path) -> None:
    build_shards(broken_root, tmp_path / "s", workers=1)
    packed, plain = ShardDataset(tmp_path / "s"), FolderDataset(broken_root, check=True)
    ours, theirs = (WindowIndex(made.clip_lengths, 3, 2, 1) for made in (plain, packed))
    assert len(ours) == len(theirs) > 0
    assert np.array_equal(ours.frames(np.arange(len(ours))), theirs.frames(np.arange(len(theirs))))
    quick = FolderDataset(broken_root)
    assert len(WindowIndex(quick.clip_lengths, 3, 2, 1)) > len(ours)  # windows across the holes


def test_a_checked_folder_without_a_picture_is_refused(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "frames", {"a": 2})
    for path in root.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 files under .* is a complete image"):
        FolderDataset(root, check=True)


@pytest.mark.parametrize("seed", range(20))
def test_clips_are_cut_as_one_would_by_hand(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, 6).tolist()
    good = random.random(sum(lengths)) < 0.7
    good[random.integers(len(good))] = True
    expected, start = [], 0
    for folder, length in enumerate(lengths):
        runs = [len(run) for run in "".join("x" if ok else " " for ok in good[start : start + length]).split()]
        expected += [(run, folder, part) for part, run in enumerate(runs)]
        start += length
    rows = folder_module.cut_clips(lengths, good)
    found = zip(rows[layout.CLIP_LENGTH], rows[layout.CLIP_KEY], rows[layout.CLIP_PART], strict=True)
    assert [tuple(map(int, clip)) for clip in found] == expected


def test_a_set_says_what_it_holds(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "frames", {"a/one": 4, "b/two": 3})
    build_shards(tmp_path / "frames", tmp_path / "set", workers=1, splits="train=0.5,val=0.5", label_from="parent")
    held = "2 clips, 7 frames, splits train and val, 2 labels"
    assert repr(ShardDataset(tmp_path / "set")) == f"ShardDataset({str(tmp_path / 'set')!r}: {held})"
