"""Tables beside a source: splits by key or folder, boxes by frame; and lists that pick clips of built shards."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import SettingsError
from cltt.shards import checks
from tests.helpers import data, video


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {"ada/m01/a": 4, "ada/m01/b": 3, "ada/m10/c": 5, "ben/m01/a": 4, "benny/a": 2}
    return data.make_clips(tmp_path_factory.mktemp("source") / "root", lengths, height=40, width=80)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# ---- splits


def test_splits_from_a_table_go_by_the_longest_entry(root: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "s.csv", "clip,split\nada,train\nada/m10/,val\nada/m01/b,test\nben,val\n")
    report = build_shards(root, tmp_path / "out", splits=f"csv:{table}")
    dataset = ShardDataset(tmp_path / "out")
    found = {name: [dataset.clip_key(clip) for clip in dataset.split_clips(name)] for name in dataset.split_names}
    assert found == {"train": ["ada/m01/a"], "val": ["ada/m10/c", "ben/m01/a"], "test": ["ada/m01/b"]}
    assert report.splits == {"train": 1, "val": 2, "test": 1}


def test_empty_cells_are_no_splits_and_no_labels(root: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "s.csv", "clip,split\nada/m01,train\nada/m10,Train\nben,\n,\n")
    labels = write(tmp_path / "l.csv", "clip,label\nada/m01/a,cup\nada/m01/b,\n,\n")
    report = build_shards(root, tmp_path / "out", splits=f"csv:{table}", label_from=f"csv:{labels}")
    dataset = ShardDataset(tmp_path / "out")
    assert report.splits == {"train": 2, "Train": 1} and dataset.label_names == ["cup"]
    assert "splits that differ only in upper and lower case: 1 (Train, train)" in report.odd
    assert any(line.startswith("clips without a row in the table of splits: 2") for line in report.odd)


def test_a_table_of_splits_counts_by_its_contents(root: Path, tmp_path: Path) -> None:
    rule = f"csv:{write(tmp_path / 's.csv', 'ada,train' + chr(10))}"
    build_shards(root, tmp_path / "out", splits=rule)
    assert build_shards(root, tmp_path / "out", splits=rule).already_complete
    write(tmp_path / "s.csv", "ada,val\n")
    with pytest.raises(SettingsError, match="split_table_sha256"):
        build_shards(root, tmp_path / "out", splits=rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody,train\n", "names no clip and no folder"),
        ("a,b,c\n", "two columns, clip key and split"),
        ("", "two columns"),
    ],
)
def test_a_table_of_splits_that_cannot_work_is_refused(root: Path, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_shards(root, tmp_path / "out", splits=f"csv:{write(tmp_path / 's.csv', text)}")
    assert not (tmp_path / "out").exists()


# ---- boxes


def test_boxes_are_kept_relative_to_the_source(root: Path, tmp_path: Path) -> None:
    table = write(
        tmp_path / "b.csv",
        "frame,x1,y1,x2,y2\nada/m01/a/frame_000001.jpg,20,10,60,30\nben/m01/a/frame_000003.jpg,-8,0,800,40\nno/where.jpg,1,1,2,2\n",
    )
    report = build_shards(root, tmp_path / "out", boxes=f"csv:{table}", resize_short=20)
    dataset = ShardDataset(tmp_path / "out")
    boxes = dataset.frame_boxes(np.arange(dataset.num_frames))
    assert boxes is not None and boxes.dtype == np.float32 and boxes.shape == (18, 4) and report.boxes == (2, 1)
    names = [dataset.frame_name(frame) for frame in range(18)]
    assert boxes[names.index("ada/m01/a/frame_000001.jpg")].tolist() == [0.25, 0.25, 0.75, 0.75]
    assert boxes[names.index("ben/m01/a/frame_000003.jpg")].tolist() == [0, 0, 1, 1], "within the frame"
    assert np.isnan(boxes).all(-1).sum() == 16
    assert checks.read_index(tmp_path / "out")["version"] == 2


def test_gaze_points_are_boxes_without_extent(root: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "b.csv", "frame,x,y\nbenny/a/frame_000000.jpg,40,10\n")
    build_shards(root, tmp_path / "out", boxes=f"csv:{table}")
    dataset = ShardDataset(tmp_path / "out")
    first = int(dataset.clip_offsets[-2])
    assert dataset.frame_boxes([[first]]).tolist() == [[[0.5, 0.25, 0.5, 0.25]]]  # type: ignore[union-attr]


def test_boxes_of_turned_pictures_are_in_pixels_of_the_upright_one(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "root" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(tmp_path / "root" / "a" / "f.jpg", exif=exif)  # 40 x 80 when upright
    table = write(tmp_path / "b.csv", "frame,x,y\na/f.jpg,20,60\n")
    build_shards(tmp_path / "root", tmp_path / "out", boxes=f"csv:{table}")
    assert ShardDataset(tmp_path / "out").frame_boxes([0]).tolist() == [[0.5, 0.75, 0.5, 0.75]]  # type: ignore[union-attr]


def test_boxes_of_videos_are_found_by_time(tmp_path: Path) -> None:
    pytest.importorskip("av")
    video.write_video(tmp_path / "root" / "v.mp4", 30)
    table = write(tmp_path / "b.csv", "v.mp4#t=0.200,64,40,128,80\n")
    build_shards(tmp_path / "root", tmp_path / "out", boxes=f"csv:{table}", fps=10, resize_short=40)
    boxes = ShardDataset(tmp_path / "out").frame_boxes(range(10))
    assert boxes is not None and boxes[2].tolist() == [0.5, 0.5, 1, 1] and np.isnan(boxes[[0, 1, 3]]).all()


def test_other_boxes_of_a_finished_set_are_refused(root: Path, tmp_path: Path) -> None:
    rule = f"csv:{write(tmp_path / 'b.csv', 'benny/a/frame_000000.jpg,1,1' + chr(10))}"
    build_shards(root, tmp_path / "out", boxes=rule)
    first = ShardDataset(tmp_path / "out").fingerprint
    write(tmp_path / "b.csv", "benny/a/frame_000000.jpg,2,1\n")
    with pytest.raises(SettingsError, match="box_table_sha256"):
        build_shards(root, tmp_path / "out", boxes=rule)
    build_shards(root, tmp_path / "out", boxes=rule, overwrite=True)
    assert ShardDataset(tmp_path / "out").fingerprint != first


BAD_BOXES = {
    "frame,x1,y1,x2,y2\nbenny/a/frame_000000.jpg,5,1,4,2\n": "line 2 .*must be frame,x1,y1,x2,y2",
    "benny/a/frame_000000.jpg,5\n": "line 1",
    "benny/a/frame_000000.jpg,a,b\n": "must be numbers",
    "benny/a/frame_000000.jpg,nan,1\nada/m01/a/frame_000000.jpg,-1,-1,-1,-1\n": "all 2 rows .* are without a box",
    # After https://github.com/pupil-labs/pupil/issues/559 and https://github.com/jiahansu/GazeJS/issues/7
    "benny/a/frame_000000.jpg,0.4,0.3\nada/m01/a/frame_000000.jpg,0,1\n": "between 0 and 1.*--boxes-unit share",
    "benny/a/frame_000000.jpg,0,0,1,1\n": "between 0 and 1",
    "benny/a/frame_000000.jpg,1,1\nbenny/a/frame_000000.jpg,1,1\n": "twice, the second time in line 2",
    "benny/frame_000000.jpg,1,1\n": "names no frame; frames are named such as 'ada/m01/a/frame_000000.jpg'",
}


@pytest.mark.parametrize("text", BAD_BOXES)
def test_a_table_of_boxes_that_cannot_work_is_refused(root: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=BAD_BOXES[text]):
        build_shards(root, tmp_path / "out", boxes=f"csv:{write(tmp_path / 'b.csv', text)}")
    assert not (tmp_path / "out").exists()


def test_shares_are_boxes_as_they_are(root: Path, tmp_path: Path) -> None:
    rows = "frame,x,y\nbenny/a/frame_000000.jpg,0.5,0.25\nbenny/a/frame_000001.jpg,1.2,0.5\n"
    rule = f"csv:{write(tmp_path / 'b.csv', rows)}"
    report = build_shards(root, tmp_path / "out", boxes=rule, boxes_unit="share")
    boxes = ShardDataset(tmp_path / "out").frame_boxes(range(16, 18))
    assert boxes is not None and boxes[0].tolist() == [0.5, 0.25, 0.5, 0.25] and np.isnan(boxes[1]).all()
    assert ShardDataset(tmp_path / "out").settings["boxes_unit"] == "share" and report.boxes == (1, 0)
    pixels = f"csv:{write(tmp_path / 'c.csv', 'benny/a/frame_000000.jpg,40,10' + chr(10))}"
    with pytest.raises(SettingsError, match="boxes_unit is pixel and was share"):
        build_shards(root, tmp_path / "out", boxes=pixels)
    with pytest.raises(SettingsError, match="outside of 0 to 1: give --boxes-unit pixel"):
        build_shards(root, tmp_path / "other", boxes=pixels, boxes_unit="share")


def test_what_is_no_box_is_none_and_counted(root: Path, tmp_path: Path) -> None:
    """After https://github.com/GazePlay/GazePlay/issues/45 (a heap of gaze in the corner), and gaze beside the screen:
    https://github.com/brownhci/WebGazer/issues/313.
    """
    cells = ["-1,-1", ",", "NaN,NaN", "-20,10", "40,500"]
    rows = [f"ada/m10/c/frame_{n:06d}.jpg,{cell}\n" for n, cell in enumerate(cells)]
    rows += ["./benny\\a/frame_000000.jpg ,40,10\n", "benny/a/frame_9.jpg,1,1\n"]
    report = build_shards(root, tmp_path / "out", boxes=f"csv:{write(tmp_path / 'b.csv', ''.join(rows))}", workers=1)
    boxes = ShardDataset(tmp_path / "out").frame_boxes(range(18))
    assert boxes is not None and np.flatnonzero(~np.isnan(boxes).any(-1)).tolist() == [16]
    assert boxes[16].tolist() == [0.5, 0.25, 0.5, 0.25] and report.boxes == (1, 1)
    assert report.odd == [
        "boxes outside of their frames, which count as none: 2 (as ada/m10/c/frame_000003.jpg)",
        "frames without a row in the table of boxes: 12 (as ada/m01/a/frame_000000.jpg)",
        "rows of the table of boxes that fit no frame: 1 (benny/a/frame_9.jpg)",
        "rows of the table of boxes without a box (-1, NaN or empty): 3 (as ada/m10/c/frame_000000.jpg)",
    ]


# ---- as other programs write them


ROWS = ["ada/m01", "./ada/m10/c", "ben\\m01\\a", " zoë/day 1 "]
ENCODINGS = {
    "plain": ("utf-8", ","),
    # After https://github.com/biolab/orange3/issues/7000 (a byte order mark) and
    # https://github.com/chembl/GLaDOS/issues/1156 (UTF-16 for Excel)
    "mark": ("utf-8-sig", ","),
    "utf-16": ("utf-16", ","),
    "semicolons": ("utf-8", ";"),
    "tabs": ("utf-16", "\t"),
}


@pytest.fixture(scope="module")
def accents(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with a folder as a Mac names it."""
    copy = tmp_path_factory.mktemp("accents") / "root"
    shutil.copytree(root, copy)
    data.make_clips(copy, {unicodedata.normalize("NFD", "zoë") + "/day 1": 2}, height=40, width=80)
    return copy


@pytest.mark.parametrize("name", ENCODINGS)
def test_rows_fit_however_they_are_written(accents: Path, tmp_path: Path, name: str) -> None:
    encoding, comma = ENCODINGS[name]
    rows = ["clip,split", *(f"{row},{'val' if 'zo' in row else ' train '}" for row in ROWS), "nobody,val"]
    (tmp_path / "s.csv").write_bytes("\r\n".join(row.replace(",", comma) for row in rows).encode(encoding))
    report = build_shards(accents, tmp_path / "out", splits=f"csv:{tmp_path / 's.csv'}", workers=1)
    dataset = ShardDataset(tmp_path / "out")
    found = {name: [unicodedata.normalize("NFC", dataset.clip_key(c)) for c in dataset.split_clips(name)] for name in dataset.split_names}  # fmt: skip  # noqa: E501
    assert found == {"train": ["ada/m01/a", "ada/m01/b", "ada/m10/c", "ben/m01/a"], "val": ["zoë/day 1"]}
    assert report.odd == [
        "clips without a row in the table of splits: 1 (benny/a)",
        "rows of the table of splits that fit no clip: 1 (nobody)",
    ]
    assert build_shards(accents, tmp_path / "dry", splits=f"csv:{tmp_path / 's.csv'}", dry_run=True).odd == report.odd
    (tmp_path / "l.txt").write_bytes("\r\n".join(["# some", *ROWS]).encode(encoding))
    assert len(dataset.listed_clips(str(tmp_path / "l.txt"))) == 5


def test_a_table_in_another_encoding_is_refused_if_it_does_not_fit(accents: Path, tmp_path: Path) -> None:
    """After https://github.com/t-markmann/nc-userimporter/issues/21 and https://github.com/muchdogesec/file2txt/issues/54."""
    (tmp_path / "t.csv").write_bytes("ada,1\nzoë/day 1,2\n".encode("cp1252"))
    for rule in ("splits", "label_from"):
        with pytest.raises(SettingsError, match=r"t.csv' names .* which matches no path: save the table as UTF-8"):
            build_shards(accents, tmp_path / "out", **{rule: f"csv:{tmp_path / 't.csv'}"})


# ---- lists of clips


@pytest.fixture(scope="module")
def dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    root_with_hole = tmp_path_factory.mktemp("hole") / "root"
    data.make_clips(root_with_hole, {"ada/m01/a": 4, "ada/m01/b": 3, "ada/m10/c": 5, "ben/m01/a": 4, "benny/a": 2})
    cv2.imwrite(str(root_with_hole / "ada" / "m10" / "c" / "frame_000002.jpg"), np.zeros((1, 1, 3)))
    (root_with_hole / "ada" / "m10" / "c" / "frame_000002.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = tmp_path_factory.mktemp("shards") / "out"
    build_shards(root_with_hole, out, splits="train=0.5,val=0.5", split_seed=4)
    return ShardDataset(out)


LISTS = {
    "ada/m01/a\n": ["ada/m01/a"],
    "# the young\n\nada/m01  # all of it\nbenny/a/\n": ["ada/m01/a", "ada/m01/b", "benny/a"],
    "ada/m10/c\n": ["ada/m10/c", "ada/m10/c"],  # both parts
    "ben\n": ["ben/m01/a"],
    ".\n": ["ada/m01/a", "ada/m01/b", "ada/m10/c", "ada/m10/c", "ben/m01/a", "benny/a"],
}


@pytest.mark.parametrize("text", LISTS)
def test_a_list_picks_clips_by_key_or_folder(dataset: ShardDataset, tmp_path: Path, text: str) -> None:
    clips = dataset.listed_clips(write(tmp_path / "list.txt", text))
    assert [dataset.clip_key(int(clip)) for clip in clips] == LISTS[text] and clips.dtype == np.int64


def test_a_list_and_a_split_pick_what_both_have(dataset: ShardDataset, tmp_path: Path) -> None:
    listed = write(tmp_path / "list.txt", "ada\n")
    name, clips = dataset.training_clips("val", listed)
    in_split = set(dataset.split_clips("val").tolist())
    assert name == "val" and set(clips.tolist()) == {
        clip for clip in dataset.listed_clips(listed).tolist() if clip in in_split
    }
    assert dataset.training_clips("all", listed)[1].tolist() == dataset.listed_clips(listed).tolist()
    assert dataset.training_clips(None, None)[1].tolist() == dataset.split_clips("train").tolist()


def test_lists_that_pick_nothing_are_refused(dataset: ShardDataset, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"line 2 of .* is 'adam', which is no clip or folder"):
        dataset.listed_clips(write(tmp_path / "list.txt", "ada\nadam\n"))
    with pytest.raises(SettingsError, match="is empty"):
        dataset.listed_clips(write(tmp_path / "list.txt", "# nothing\n"))
    with pytest.raises(SettingsError, match="cannot read the list of clips"):
        dataset.listed_clips(str(tmp_path / "none.txt"))
    split = "val" if 5 not in dataset.split_clips("val") else "train"
    with pytest.raises(SettingsError, match="picks no clips of the split"):
        dataset.training_clips(split, write(tmp_path / "list.txt", "benny/a\n"))
