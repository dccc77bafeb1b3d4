"""Sets of shards from others: refused when opened, or a frame is; nothing outside is read, written or waited for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.distributed.identity import RankInfo
from cltt.errors import DataError, FrameError
from cltt.shards import layout
from cltt.shards.stage import stage
from cltt.shards.verify import verify_shards
from tests.helpers import data

REPOSITORY = Path(__file__).parents[2]
Index = dict[str, Any]
Tamper = Callable[[Path, Index], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = data.make_clips(tmp_path_factory.mktemp("source") / "root", {"a": 20, "b/c": 10, "b/d": 10})
    out = tmp_path_factory.mktemp("built") / "out"
    build_shards(root, out, shard_size=20_000, workers=1, splits="train=0.5,val=0.5", label_from="parent")
    return out


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "set"))


def _seal(shards: Path, index: Index) -> None:
    """Write ``index`` with the sizes, hashes and fingerprint of the files there: whoever tampers does that too."""
    for name in (*layout.INDEX_FILES, layout.REPORT):
        content = (shards / name).read_bytes()
        index["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index["fingerprint"] = layout.fingerprint(index["files"])
    (shards / layout.INDEX).write_text(json.dumps(index))


def _index(shards: Path) -> Index:
    return dict(json.loads((shards / layout.INDEX).read_text()))


def _set(path: str, value: Any) -> Tamper:
    """Put ``value`` at a path of keys and numbers in the index, as in ``shards|0|name``."""

    def tamper(_: Path, index: Index) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("|")]
        place: Any = index
        for part in way:
            place = place[part]
        place[last] = value

    return tamper


def _array(name: str, change: Callable[[np.ndarray], Any]) -> Tamper:
    def tamper(shards: Path, _: Index) -> None:
        array = np.load(shards / name)
        changed = change(array)
        np.save(shards / name, array if changed is None else changed, allow_pickle=True)

    return tamper


def _clip(row: int, clip: int, value: int) -> Tamper:
    return _array(layout.CLIPS, lambda clips: clips.__setitem__((row, clip), value))


NOT_OPENED: dict[str, Tamper] = {
    "a name that leads out": _set("shards|0|name", "./../../x"),
    "an absolute name": _set("shards|0|name", "/elsewhere/x"),
    "names in another order": _set("shards|0|name", "shard-000001.tar"),
    "a shard that is no table": _set("shards|0", "shard-000000.tar"),
    "a size below nothing": _set("shards|0|size", -1),
    "a size beyond all": _set("shards|0|size", 1 << 63),
    "a size that is true": _set("shards|0|size", True),
    "a size in halves": _set("shards|0|size", 1024.5),
    "a CRC of text": _set("shards|0|crc", "0"),
    "shards that are no list": _set("shards", {}),
    "no shards": _set("shards", []),
    "more files": _set("files|../../x", {"size": 1, "sha256": "0" * 64}),
    "frames of another number": _set("counts|frames", 41),
    "frames beyond all": _set("counts|frames", 10**22),
    "no frames": _set("counts|frames", 0),
    "clips of another number": _set("counts|clips", 2),
    "clips beyond memory": _set("counts|clips", 1 << 40),
    "bytes that do not add up": _set("counts|bytes", 5),
    "counts that are no numbers": _set("counts|skipped", {"hidden file": "many"}),
    "no counts": _set("counts", None),
    "label names that are no text": _set("label_names", [1, 2]),
    "label names twice": _set("label_names", ["b", "b"]),
    "split names in a table": _set("split_names", {"train": 1}),
    "too few label names": _set("label_names", []),
    "too few split names": _set("split_names", []),
    "settings that are no table": _set("settings", "none"),
    "a quality beyond all": _set("settings|quality", 10**9),
    "a source folder of numbers": _set("root_dir", 7),
    "another format": _set("format", "tar"),
    "another version": _set("version", 99),
    "a version that is true": _set("version", True),
    "clips of floats": _array(layout.CLIPS, lambda clips: clips.astype(float)),
    "clips of objects": _array(layout.CLIPS, lambda clips: clips.astype(object)),
    "clips in columns": _array(layout.CLIPS, lambda clips: np.asfortranarray(clips)),
    "clips with a row less": _array(layout.CLIPS, lambda clips: clips[:-1].copy()),
    "clips in one row": _array(layout.CLIPS, lambda clips: clips.reshape(-1)),
    "no clips": _array(layout.CLIPS, lambda clips: clips[:, :0]),
    "a first frame before all": _clip(layout.CLIP_FIRST, 1, -5),
    "a clip without frames": _clip(layout.CLIP_LENGTH, 0, 0),
    "a clip of less than nothing": _clip(layout.CLIP_LENGTH, 0, -20),
    "a clip that overlaps": _clip(layout.CLIP_LENGTH, 0, 21),
    "a clip beyond all": _clip(layout.CLIP_LENGTH, 2, (1 << 63) - 1),
    "a key beyond all": _clip(layout.CLIP_KEY, 2, 99),
    "keys counted down": _clip(layout.CLIP_KEY, 1, 0),
    "a part from nowhere": _clip(layout.CLIP_PART, 1, 3),
    "a label without a name": _clip(layout.CLIP_LABEL, 0, 5),
    "a label below none": _clip(layout.CLIP_LABEL, 0, -2),
    "a split without a name": _clip(layout.CLIP_SPLIT, 0, 2),
    "records of another type": _array(layout.FRAMES, lambda frames: frames["offset"].copy()),
    "records with a field less": _array(layout.FRAMES, lambda frames: frames[["offset", "size"]].copy()),
    "a record less": _array(layout.FRAMES, lambda frames: frames[:-1]),
    "key offsets beyond the keys": _array(layout.KEY_OFFSETS, lambda offsets: offsets + 1),
    "key offsets downwards": _array(layout.KEY_OFFSETS, lambda offsets: offsets[::-1].copy()),
    "a key offset less": _array(layout.KEY_OFFSETS, lambda offsets: offsets[:-1]),
}


@pytest.mark.parametrize("name", NOT_OPENED)
def test_a_tampered_index_is_refused_when_opened(shards: Path, name: str) -> None:
    index = _index(shards)
    NOT_OPENED[name](shards, index)
    _seal(shards, index)
    for call in (ShardDataset, verify_shards):
        with pytest.raises(DataError) as caught:
            call(shards)
        assert "\n" not in str(caught.value) and str(shards) in str(caught.value)


RAW = {
    "no JSON": b"{cut off",
    "no UTF-8": b"\xff\xfe{}",
    "deep": b"[" * 100_000,
    "a huge number": b'{"format": "cltt-shards", "version": ' + b"9" * 5000 + b"}",
    "not a number": b'{"format": "cltt-shards", "version": NaN}',
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("name", RAW)
def test_an_index_that_is_none(shards: Path, name: str) -> None:
    (shards / layout.INDEX).write_bytes(RAW[name])
    with pytest.raises(DataError):
        ShardDataset(shards)


@pytest.mark.parametrize("name", layout.INDEX_FILES)
@pytest.mark.parametrize("fault", ["cut", "longer", "header", "pickle"])
def test_array_files_that_are_none(shards: Path, name: str, fault: str) -> None:
    file = shards / name
    content = file.read_bytes()
    if fault == "pickle":
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
        file.with_name(name + ".npy").replace(file) if not name.endswith(".npy") else None
    else:
        file.write_bytes(
            {"cut": content[:-1], "longer": content + b"\0", "header": b"\x93NUMPY\x09\x09" + content[8:]}[fault]
        )
    index = _index(shards)
    _seal(shards, index)
    if name == layout.KEYS and fault in ("header", "pickle"):
        return  # a blob of any bytes; its length is held to the offsets
    with pytest.raises(DataError):
        ShardDataset(shards)


RECORDS = {
    "offset": [0, 511, -1, 1 << 40, (1 << 63) - 1, -(1 << 63)],
    "size": [0, (1 << 32) - 1],
    "shard": [99, (1 << 32) - 1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in RECORDS.items() for value in values])
def test_a_record_that_leads_out_of_its_shard_is_a_bad_frame(shards: Path, field: str, value: int) -> None:
    index = _index(shards)
    _array(layout.FRAMES, lambda frames: frames[field].__setitem__(7, value))(shards, index)
    _seal(shards, index)
    whole = ShardDataset(shards)
    found = whole.read_each(range(whole.num_frames))
    assert [k for k, frame in enumerate(found) if isinstance(frame, FrameError)] == [7]
    assert "its record lies outside its shard" in str(found[7]) and "in clip 'a'" in str(found[7])
    with pytest.raises(DataError):
        whole.frame_name(7)
    assert [mismatch.name for mismatch in verify_shards(shards)] == [layout.FRAMES]


def test_frames_that_overlap_or_go_back_are_found_by_the_verifier(shards: Path) -> None:
    def swap(frames: np.ndarray) -> None:
        frames[[3, 4]] = frames[[4, 3]]

    index = _index(shards)
    _array(layout.FRAMES, swap)(shards, index)
    _seal(shards, index)
    assert "are not in order" in str(verify_shards(shards)[0])


@pytest.mark.parametrize("key", [b"../../x", b"/x", b"a\0b", b"x/./y", b"//x"])
def test_a_key_or_member_that_leads_out_is_refused(built: Path, shards: Path, tmp_path: Path, key: bytes) -> None:
    index, keys = _index(shards), (shards / layout.KEYS).read_bytes()
    (shards / layout.KEYS).write_bytes(key + keys[1:])
    offsets = np.load(shards / layout.KEY_OFFSETS)
    offsets[1:] += len(key) - 1
    np.save(shards / layout.KEY_OFFSETS, offsets)
    _seal(shards, index)
    with pytest.raises(DataError, match="not a path below the root folder"):
        ShardDataset(shards).clip_key(0)
    assert ShardDataset(shards).clip_key(1) == "b/c"
    (tmp_path / "root").mkdir()
    assert verify_shards(shards, source_dir=tmp_path / "root")


def test_a_member_that_leads_out_is_not_looked_for(shards: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    dataset = ShardDataset(shards)
    secret.write_bytes(dataset.read([0])[0])
    (tmp_path / "root").mkdir()
    tar, offset = shards / "shard-000000.tar", int(dataset.frame_records([0])["offset"][0])
    content = bytearray(tar.read_bytes())
    content[offset - 512 : offset - 412] = b"../secret.jpg".ljust(100, b"\0")
    tar.write_bytes(content)
    with pytest.raises(DataError, match="not a path below the root folder"):
        dataset.frame_name(0)
    problems = [str(mismatch) for mismatch in verify_shards(shards, source_dir=tmp_path / "root")]
    assert any("not a path below the root folder" in problem for problem in problems)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to a fifo": lambda path: (os.mkfifo(path.with_name("fifo")), path.symlink_to("fifo"))[0],  # type: ignore[func-returns-value]
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", ["fifo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*SPECIAL][1:])])
@pytest.mark.parametrize("name", ["shard-000000.tar", layout.FRAMES, layout.KEYS, layout.REPORT, layout.INDEX])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(
    shards: Path, tmp_path: Path, name: str, kind: str
) -> None:
    (shards / name).unlink()
    SPECIAL[kind](shards / name)
    (tmp_path / "root").mkdir()
    code = f"""
import sys
from pathlib import Path
from cltt import ShardDataset
from cltt.distributed import RankInfo
from cltt.errors import DataError
from cltt.shards.stage import stage
from cltt.shards.verify import verify_shards
shards = Path({str(shards)!r})
uses = (
    lambda: verify_shards(shards, decode=True, source_dir={str(tmp_path / "root")!r}),
    lambda: stage(shards, shards.parent / "there", RankInfo()),
    lambda: [str(frame)[:9] for frame in ShardDataset(shards).read_each([0, 1])],
)
for use in uses:
    try:
        print(use())
    except DataError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "regular file" in done.stdout or "symbolic link" in done.stdout or "no index.json" in done.stdout


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("shards|0|name", "./../../x"),
        ("fingerprint", "../../../../../../../../x/y/zzzz"),
        ("fingerprint", "/" * 32),
        ("files|../../x", {"size": 1, "sha256": "0" * 64}),
    ],
)
def test_staging_writes_nothing_outside_its_folder(shards: Path, tmp_path: Path, path: str, value: Any) -> None:
    index = _index(shards)
    _set(path, value)(shards, index)
    (shards / layout.INDEX).write_text(json.dumps(index))
    before = sorted(tmp_path.rglob("*"))
    target = tmp_path / "node" / "local"
    with pytest.raises(DataError):
        stage(shards, target, RankInfo())
    assert sorted(tmp_path.rglob("*")) == before


def test_staging_does_not_write_through_what_lies_there(shards: Path, tmp_path: Path) -> None:
    precious, target = tmp_path / "precious", tmp_path / "node"
    precious.write_text("dear")
    copy = target / f"{shards.name}-{_index(shards)['fingerprint'][:12]}"
    copy.mkdir(parents=True)
    for name in (".frames.npy.tmp", "clips.npy", ".shard-000000.tar.tmp"):
        (copy / name).symlink_to(precious)
    assert stage(shards, target, RankInfo()) == copy
    assert precious.read_text() == "dear" and verify_shards(copy) == []
    assert not any(path.is_symlink() for path in copy.iterdir() if path.name in layout.INDEX_FILES)


@pytest.mark.slow
def test_four_hundred_shards_under_two_hundred_and_fifty_six_files(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 400}, height=16, width=16)
    assert build_shards(root, tmp_path / "out", shard_size=1, workers=2).shards == 400
    code = f"""
import resource, os, numpy as np
from concurrent.futures import ThreadPoolExecutor
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from cltt import ShardDataset
dataset = ShardDataset({str(tmp_path / "out")!r})
expected = dataset.read(range(400))
def read(seed):
    ids = np.random.default_rng(seed).integers(0, 400, 300)
    return dataset.read(ids) == [expected[k] for k in ids]
with ThreadPoolExecutor(16) as pool:
    assert all(pool.map(read, range(40)))
print(len(os.listdir("/proc/self/fd")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128


def test_a_hundred_million_frames_open_at_once(shards: Path) -> None:
    """The records lie in a file with holes: opening must not look at them."""
    frames, clips = 100_000_000, 11_000
    rows = np.zeros((layout.CLIP_ROWS, clips), "<i8")
    rows[layout.CLIP_LENGTH] = np.diff(np.linspace(0, frames, clips + 1).astype(np.int64))
    rows[layout.CLIP_FIRST, 1:] = np.cumsum(rows[layout.CLIP_LENGTH])[:-1]
    rows[layout.CLIP_KEY] = np.arange(clips)
    np.save(shards / layout.CLIPS, rows)
    (shards / layout.KEYS).write_bytes(b"".join(b"clip_%05d" % k for k in range(clips)))
    np.save(shards / layout.KEY_OFFSETS, np.arange(clips + 1, dtype=np.int64) * 10)
    with (shards / layout.FRAMES).open("wb") as file:
        header = {"descr": layout.FRAME_DTYPE.descr, "fortran_order": False, "shape": (frames,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + frames * layout.FRAME_DTYPE.itemsize)
    index = _index(shards)
    index["counts"] |= {"frames": frames, "clips": clips}
    for name in layout.INDEX_FILES:
        index["files"][name]["size"] = (shards / name).stat().st_size
    (shards / layout.INDEX).write_text(json.dumps(index))
    took = []
    for _ in range(5):
        start = time.perf_counter()
        dataset = ShardDataset(shards)
        took.append(time.perf_counter() - start)
    assert dataset.num_frames == frames and min(took) < 0.5  # reading them takes seconds
    assert isinstance(dataset.read_each([frames - 1])[0], FrameError)
