"""verify_shards: every fault that is put in is named, and nothing else."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.shards import dataset as dataset_module
from cltt.shards import layout
from cltt.shards.verify import verify_shards
from tests.helpers import data
from tests.helpers.quick import shorten_pauses


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = data.make_clips(tmp_path_factory.mktemp("source") / "root", {"a": 30, "b": 30})
    (root / "a/frame_000003.jpg").write_bytes(b"broken")
    import cv2

    cv2.imwrite(str(root / "b" / "z.png"), data.frame_image(0, 0, 48, 64))
    return root


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    build_shards(root, out, shard_size=20_000, workers=1)
    return out


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy"))


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def _names(path: Path, **options: object) -> list[str]:
    return [mismatch.name for mismatch in verify_shards(path, **options)]  # type: ignore[arg-type]


def test_whole_shards_are_whole(shards: Path, root: Path) -> None:
    assert verify_shards(shards, decode=True, source_dir=root) == []


def test_a_flipped_byte_in_each_frame_of_a_few(shards: Path) -> None:
    dataset = ShardDataset(shards)
    rng = np.random.default_rng(0)
    victims = sorted(rng.choice(dataset.num_frames, 5, replace=False).tolist())
    for frame in victims:
        record = dataset.frame_records([frame])[0]
        where = int(record["offset"]) + int(rng.integers(record["size"]))
        _flip(shards / layout.shard_name(int(record["shard"])), where)
    found = _names(shards)
    assert [name for name in found if not name.startswith("shard-")] == [dataset.frame_name(k) for k in victims]
    touched = {layout.shard_name(int(shard)) for shard in dataset.frame_records(victims)["shard"]}
    assert {name for name in found if name.startswith("shard-")} == touched


def test_a_flipped_byte_anywhere_is_found(shards: Path) -> None:
    """Headers, padding and the end of the archive included."""
    tar = shards / "shard-000001.tar"
    content = tar.read_bytes()
    for where in [0, 257, len(content) - 1, *np.random.default_rng(1).integers(len(content), size=40).tolist()]:
        _flip(tar, where)
        assert "shard-000001.tar" in _names(shards), where
        tar.write_bytes(content)
    assert _names(shards) == []


def test_a_flipped_byte_between_frames(shards: Path) -> None:
    _flip(shards / "shard-000001.tar", 3)
    (mismatch,) = verify_shards(shards)
    assert mismatch.name == "shard-000001.tar" and "checksum mismatch" in mismatch.problem


def test_a_cut_off_shard_names_the_frames_it_lost(shards: Path) -> None:
    dataset = ShardDataset(shards)
    tar = shards / "shard-000000.tar"
    mine = np.flatnonzero(dataset.frame_records(range(dataset.num_frames))["shard"] == 0)
    cut = int(dataset.frame_records(mine[-3:])["offset"][0]) + 10
    with tar.open("r+b") as file:
        file.truncate(cut)
    mismatches = verify_shards(shards)
    assert mismatches[0].name == tar.name and f"{cut} bytes" in mismatches[0].problem
    assert len(mismatches) == 4 and all(f"{tar}: cut off" in mismatch.problem for mismatch in mismatches[1:])
    assert mismatches[1].name == dataset.frame_name(int(mine[-3]))  # its header is still there


def test_a_missing_shard(shards: Path, root: Path) -> None:
    (shards / "shard-000001.tar").unlink()
    assert _names(shards) == ["shard-000001.tar"]
    assert "shard-000001.tar" in _names(shards, source_dir=root)


@pytest.mark.parametrize("name", layout.INDEX_FILES)
@pytest.mark.parametrize("fault", [Path.unlink, lambda path: _flip(path, -1)])
def test_a_damaged_index_file(shards: Path, name: str, fault: Callable[[Path], None]) -> None:
    fault(shards / name)
    assert _names(shards) == [name]


def test_the_source_is_compared(shards: Path, root: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(root, tmp_path / "source"))
    (source / "a/frame_000001.jpg").unlink()
    (source / "a/frame_000002.jpg").write_bytes((source / "b/frame_000002.jpg").read_bytes())
    (source / "b/z.png").write_bytes(b"not a picture any more")
    shutil.copy(source / "b/frame_000000.jpg", source / "b/new.jpg")
    problems = {mismatch.name: mismatch.problem for mismatch in verify_shards(shards, source_dir=source)}
    assert problems == {
        "a/frame_000001.jpg": "no source file: No such file or directory",
        "a/frame_000002.jpg": "differs from what the source file gives",
        "b/z.png": "the source file is no valid image now: not an image",
        "b/new.jpg": "in the source, not in the shards",
    }


def test_a_folder_that_one_side_lacks_is_named_once(shards: Path, root: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(root, tmp_path / "source"))
    (source / "a").rename(source / "moved")
    (source / "b/frame_000007.jpg").unlink()
    problems = {mismatch.name: mismatch.problem for mismatch in verify_shards(shards, source_dir=source)}
    assert problems == {
        "a": "no such folder in the source (29 frames here)",
        "b/frame_000007.jpg": "no source file: No such file or directory",
        "moved": "folder with 30 files in the source, not in the shards",
    }


def test_decode_finds_what_a_header_check_lets_through(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 3})
    victim = root / "a/frame_000001.jpg"
    content = victim.read_bytes()
    victim.write_bytes(content[:700] + content[900:])  # still ends as a JPEG must
    build_shards(root, tmp_path / "out", verify="header")
    assert verify_shards(tmp_path / "out") == []
    (mismatch,) = verify_shards(tmp_path / "out", decode=True)
    assert mismatch.name == "a/frame_000001.jpg" and "invalid JPEG" in mismatch.problem
    assert build_shards(root, tmp_path / "out2").skipped == {mismatch.problem: 1}


def test_reads_are_retried(shards: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)
    calls = itertools.count()

    def faulty(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            if next(calls) % 7 == 3:
                raise OSError(errno.EIO, "Input/output error")
            return real(*given)

        return call

    monkeypatch.setattr(os, "pread", faulty(os.pread))
    monkeypatch.setattr(dataset_module, "_pread_into", faulty(dataset_module._pread_into))
    assert verify_shards(shards, decode=True, source_dir=root) == [] and next(calls) > 100
