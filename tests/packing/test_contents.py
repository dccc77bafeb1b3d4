"""Contents: each kind of file ends as it should, with its line in report.json."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cltt import ShardDataset, build_shards
from cltt.errors import InvalidImage
from cltt.shards import layout
from cltt.shards.folder import FolderDataset
from cltt.source.image import MAYBE_DEPTH, as_stored
from tests.helpers import data


def _pil(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _picture() -> np.ndarray:
    """RGB uint8 [48, 64, 3]."""
    return np.ascontiguousarray(data.frame_image(1, 3, 48, 64)[:, :, ::-1])


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _jpeg(image: np.ndarray | None = None, **options: object) -> bytes:
    return _pil(Image.fromarray(_picture() if image is None else image), "JPEG", quality=92, **options)


def _png16() -> bytes:
    return cv2.imencode(".png", _picture()[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()


def _flipped(content: bytes, where: int) -> bytes:
    return content[:where] + bytes([content[where] ^ 8]) + content[where + 1 :]


GREY = np.ascontiguousarray(_picture()[:, :, 0])
COPIED = {
    "baseline.jpg": _jpeg(),
    "grey.jpg": _jpeg(GREY),
    "progressive.jpg": _jpeg(progressive=True),
    "upright_exif.jpg": _jpeg(exif=_exif(1)),
    "padded.jpg": _jpeg() + bytes(100),
}
REENCODED = {
    "named.jpg": (_pil(Image.fromarray(_picture()), "PNG"), "PNG"),
    "deep.png": (_png16(), MAYBE_DEPTH),
    "cmyk.jpg": (_pil(Image.fromarray(_picture()).convert("CMYK"), "JPEG", quality=95), "4 colour components"),
    "rotated.jpg": (_jpeg(exif=_exif(6)), "EXIF orientation 6"),
    "picture.bmp": (_pil(Image.fromarray(_picture()), "BMP"), "not a JPEG"),
}
BROKEN = {
    "empty.jpg": b"",
    "cut.jpg": _jpeg()[:-500],
    "cut_png.png": _pil(Image.fromarray(_picture()), "PNG")[:-200],
    "flipped_png.png": _flipped(_pil(Image.fromarray(_picture()), "PNG"), 300),
    "cut_in_header.jpg": _jpeg()[:30],
    "garbage.jpg": bytes(range(256)) * 20,
    "text.jpg": b"this is not a picture\n" * 40,
    "flipped.jpg": _jpeg()[:700] + b"\xff\xd9" * 100 + _jpeg()[900:],
}


@pytest.mark.parametrize("verify", ["decode", "header"])
@pytest.mark.parametrize("name", COPIED)
def test_copied_byte_for_byte(name: str, verify: str) -> None:
    stored = as_stored(COPIED[name], verify=verify)
    assert (stored.data, stored.width, stored.height, stored.reencoded) == (COPIED[name], 64, 48, "")


@pytest.mark.parametrize("name", REENCODED)
def test_reencoded_upright(name: str) -> None:
    source, reason = REENCODED[name]
    stored = as_stored(source)
    assert stored.reencoded == reason
    got = Image.open(io.BytesIO(stored.data))
    assert (got.format, got.mode, got.size) == ("JPEG", "RGB", (stored.width, stored.height))
    expected = np.rot90(_picture(), -1) if name == "rotated.jpg" else _picture()
    assert got.size == expected.shape[1::-1]
    assert np.abs(np.asarray(got).astype(int) - expected).mean() < 4


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_exif_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    from PIL import ImageOps

    source = _jpeg(exif=_exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(source)))).astype(int)
    got = np.asarray(Image.open(io.BytesIO(as_stored(source).data))).astype(int)
    assert np.abs(got - expected).mean() < 3


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_are_found(name: str) -> None:
    with pytest.raises(InvalidImage):
        as_stored(BROKEN[name], verify="decode")


def test_a_jpeg_cut_anywhere_is_found() -> None:
    whole = _jpeg()
    for length in [*range(0, len(whole) - 1, 37), len(whole) - 2, len(whole) - 1]:
        with pytest.raises(InvalidImage):
            as_stored(whole[:length], verify="header")


def test_broken_frames_cut_the_clip_and_are_reported(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"p/a": 10, "p/b": 5})
    data.add_mac_clutter(root)
    (root / "p/a/frame_000000.jpg").write_bytes(b"")
    for number, content in ((4, BROKEN["cut.jpg"]), (5, BROKEN["text.jpg"])):
        (root / f"p/a/frame_{number:06d}.jpg").write_bytes(content)
    (root / "p/a/frame_000009.jpg").unlink()
    (root / "p/a/frame_000009.jpg").symlink_to("nowhere.jpg")
    (root / "p/b/readme").write_text("words")
    report = build_shards(root, tmp_path / "out", workers=1, splits="x=0.5,y=0.5", label_from="regex:p/(.)")
    dataset = ShardDataset(tmp_path / "out")
    clips = [
        (dataset.clip_key(c), dataset.clip_part(c), int(dataset.clip_lengths[c])) for c in range(dataset.num_clips)
    ]
    assert clips == [("p/a", 0, 3), ("p/a", 1, 3), ("p/b", 0, 5)]
    assert [dataset.frame_name(k) for k in (0, 2, 3, 5)] == [f"p/a/frame_{k:06d}.jpg" for k in (1, 3, 6, 8)]
    assert dataset.label_names == ["a", "b"] and dataset.labels.tolist() == [0, 0, 1]
    assert all({0, 1} <= set(ids) or not {0, 1} & set(ids) for ids in map(dataset.split_clips, dataset.split_names))
    reasons = {file["file"]: file["reason"] for file in layout.read_report(tmp_path / "out")["files"]}
    assert reasons["p/a/frame_000000.jpg"] == "empty file"
    assert reasons["p/a/frame_000004.jpg"] == "invalid JPEG: Premature end of JPEG file"
    assert reasons["p/a/frame_000005.jpg"] == "not an image"
    assert reasons["p/a/frame_000009.jpg"] == "symbolic link that leads nowhere"
    assert reasons["p/b/readme"] == reasons["notes.txt"] == "not an image"
    assert report.cut == (1, 2)
    assert report.skipped["hidden file"] == 5 and sum(report.skipped.values()) == len(reasons) == 11


@pytest.mark.parametrize("shard_size", [1, 3000, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_clips_are_cut_as_a_plain_loop_cuts_them(tmp_path: Path, shard_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = data.make_clips(tmp_path / "root", {f"c{k}": int(rng.integers(1, 7)) for k in range(6)}, height=16, width=16)
    for file in sorted(root.rglob("*.jpg")):
        if rng.random() < 0.3:
            file.write_bytes(b"broken")
        elif rng.random() < 0.2:
            file.unlink()
    expected: list[tuple[str, int, list[str]]] = []
    for folder in sorted(root.iterdir()):
        runs: list[list[str]] = []
        last = None
        for file in sorted(folder.iterdir()):
            number = int(file.stem[-6:])
            if file.read_bytes() != b"broken":
                if last is None or number != last + 1:
                    runs.append([])
                runs[-1].append(f"{folder.name}/{file.name}")
                last = number
        expected += [(folder.name, part, run) for part, run in enumerate(runs)]
    build_shards(root, tmp_path / "out", workers=1, split_gaps=True, shard_size=shard_size)
    dataset = ShardDataset(tmp_path / "out")
    offsets = dataset.clip_offsets
    got = [
        (dataset.clip_key(c), dataset.clip_part(c), [dataset.frame_name(k) for k in range(offsets[c], offsets[c + 1])])
        for c in range(dataset.num_clips)
    ]
    assert got == expected


def test_gaps_split_only_when_asked(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 8})
    (root / "a/frame_000003.jpg").unlink()
    assert build_shards(root, tmp_path / "joined").clip_lengths.tolist() == [7]
    planned = build_shards(root, tmp_path / "split", split_gaps=True, dry_run=True)
    built = build_shards(root, tmp_path / "split", split_gaps=True)
    assert built.clip_lengths.tolist() == planned.clip_lengths.tolist() == [3, 4]
    assert (built.clips, built.cut) == (planned.clips, planned.cut) == (2, (1, 2))


def test_a_gap_is_more_than_the_usual_step_of_the_folder(tmp_path: Path) -> None:
    """Every fifth frame of a video was stored: 5 is no jump, and 10 is one."""
    root = data.make_clips(tmp_path / "root", {"a": 100})
    for file in (root / "a").iterdir():
        number = int(file.stem[-6:])
        if number % 5 or number == 50:
            file.unlink()
    assert build_shards(root, tmp_path / "out", split_gaps=True).clip_lengths.tolist() == [10, 9]


@pytest.mark.parametrize(("numbers", "lengths"), [((1, 50, 51), [1, 2]), ((0, 7), [1, 1]), ((1, 2, 50), [2, 1])])
def test_one_hole_is_no_usual_step(tmp_path: Path, numbers: tuple[int, ...], lengths: list[int]) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 60})
    for file in (root / "a").iterdir():
        if int(file.stem[-6:]) not in numbers:
            file.unlink()
    assert build_shards(root, tmp_path / "out", split_gaps=True).clip_lengths.tolist() == lengths


def test_a_number_that_comes_twice_is_no_gap(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 8})
    (root / "a/frame_5.jpg").write_bytes((root / "a/frame_000005.jpg").read_bytes())
    assert build_shards(root, tmp_path / "out", split_gaps=True).clip_lengths.tolist() == [9]


def test_resized_frames(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 3}, height=120, width=200)
    data.make_clips(root, {"b": 1}, height=30, width=20)
    report = build_shards(root, tmp_path / "out", resize_short=60, quality=85)
    dataset = ShardDataset(tmp_path / "out")
    records = dataset.frame_records(range(4))
    assert (records["width"].tolist(), records["height"].tolist()) == ([100, 100, 100, 20], [60, 60, 60, 30])
    assert report.reencoded == 4
    source = cv2.imread(str(root / "a/frame_000002.jpg"))
    expected = cv2.resize(source, (100, 60), interpolation=cv2.INTER_AREA).astype(int)
    got = cv2.imdecode(np.frombuffer(dataset.read([2])[0], np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(got - expected).mean() < 3


def test_a_plain_folder_reads_as_its_shards_do(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 3})
    for name, content in [*COPIED.items(), *((name, content) for name, (content, _) in REENCODED.items())]:
        (root / "a" / name).write_bytes(content)
    build_shards(root, tmp_path / "out")
    shards, folder = ShardDataset(tmp_path / "out"), FolderDataset(root)
    ids = range(shards.num_frames)
    assert shards.read(ids) == folder.read(ids)
    assert [shards.frame_name(k) for k in ids] == [folder.frame_name(k) for k in ids]
    for name in ("size", "crc", "width", "height"):
        assert shards.frame_records(ids)[name].tolist() == folder.frame_records(ids)[name].tolist(), name
