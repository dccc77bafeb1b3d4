"""The shards are plain tar: GNU tar, webdataset and DALI read the very bytes that went in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.shards import tar


@pytest.fixture(scope="module")
def built(real_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real frames, all copied as they are, in several shards."""
    out = tmp_path_factory.mktemp("interop") / "out"
    report = build_shards(real_root, out, verify="header", shard_size=4 << 20, workers=1)
    assert report.shards > 1 or report.bytes < 4 << 20
    assert report.reencoded == 0
    return out


def _members(dataset: ShardDataset) -> dict[str, bytes]:
    """Member path -> bytes of the source file, from the source folder itself."""
    names = [dataset.frame_name(frame) for frame in range(dataset.num_frames)]
    root = Path(dataset.root_dir)
    found = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        found[tar.member_name(folder.encode(), file.encode()).decode()] = (root / name).read_bytes()
    assert len(found) == len(names)
    return found


def test_gnu_tar_extracts_the_source_bytes(built: Path, tmp_path: Path) -> None:
    assert "GNU tar" in subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout
    for shard in sorted(built.glob("shard-*.tar")):
        done = subprocess.run(["tar", "xf", shard, "-C", tmp_path], capture_output=True, text=True, check=True)
        assert done.stderr == ""
    expected = _members(ShardDataset(built))
    found = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == expected


def test_webdataset_yields_the_same_keys_and_bytes_in_our_order(built: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = [str(shard) for shard in sorted(built.glob("shard-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    expected = _members(ShardDataset(built))
    assert {key for sample in samples for key in sample if not key.startswith("__")} == {"jpg"}
    assert [sample["__key__"] + ".jpg" for sample in samples] == list(expected)
    assert [sample["jpg"] for sample in samples] == list(expected.values())


def test_webdataset_keeps_names_with_dots_and_other_endings_apart(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    from tests.helpers import data

    root = data.make_clips(tmp_path / "root", {"v1.0/clip.a": 1})
    picture = (root / "v1.0/clip.a/frame_000000.jpg").read_bytes()
    for name in ("a.b.jpg", "a.c.jpg", "a_b.jpg", "a.JPG", "a.JPG.jpg", "a.jpeg", "50%.jpg", "a"):
        (root / "v1.0/clip.a" / name).write_bytes(picture)
    build_shards(root, tmp_path / "out", workers=1)
    samples = list(webdataset.WebDataset(str(tmp_path / "out" / "shard-000000.tar"), shardshuffle=False))
    assert len(samples) == len({sample["__key__"] for sample in samples}) == 9
    assert all(sample["jpg"] == picture for sample in samples)


def _write_dali_index(dataset: ShardDataset, shard: int, path: Path) -> int:
    """DALI's webdataset index, version 1.2: a line a sample of (extension, offset, size, file name)."""
    records = dataset.frame_records(range(dataset.num_frames))
    mine = np.flatnonzero(records["shard"] == shard)
    lines = [f"v1.2 {len(mine)}"]
    for frame in mine.tolist():
        folder, _, file = dataset.frame_name(frame).rpartition("/")
        member = tar.member_name(folder.encode(), file.encode()).decode()
        lines.append(f"jpg {records['offset'][frame]} {records['size'][frame]} {member}")
    path.write_text("\n".join(lines) + "\n")
    return len(mine)


def test_dali_reads_them_through_an_index_made_from_ours(built: Path, tmp_path: Path) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    dataset = ShardDataset(built)
    count = _write_dali_index(dataset, 0, tmp_path / "shard-000000.idx")

    @pipeline_def(batch_size=count, num_threads=1, device_id=None)
    def pipeline() -> object:
        return fn.readers.webdataset(
            paths=[str(built / "shard-000000.tar")], index_paths=[str(tmp_path / "shard-000000.idx")], ext=["jpg"]
        )

    pipe = pipeline()
    pipe.build()
    (frames,) = pipe.run()
    got = [frames.at(k).tobytes() for k in range(count)]
    assert got == list(_members(dataset).values())[:count]
