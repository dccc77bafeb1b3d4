"""The gallery: complete and static on disk; in a browser it renders, and the slider moves the marked frames.

A screenshot by hand: ``chromium --headless --no-sandbox --screenshot=gallery.png --window-size=1440,900
--virtual-time-budget=3000 "file:///path/to/gallery/index.html#t=3"``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from tqdm import tqdm

from cltt import EpochPlan, WindowIndex, build_shards
from cltt.config import WindowSettings
from cltt.errors import SettingsError
from cltt.region import NO_REGION
from cltt.sampling.epoch_windows import EpochWindows
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import FolderDataset
from cltt.visualize import gallery as gallery_module
from cltt.visualize import inspect, views
from tests.helpers import data
from tests.helpers.browser import browse, needs_browser

LENGTHS = {"a/one": 20, "b/<i>two</i> & more": 33, "c/short": 3, **{f"d/{k:02d}": 10 for k in range(20)}}
WINDOWS = {"window_size": 3, "frame_step": 4, "window_stride": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.make_clips(tmp_path_factory.mktemp("frames"), LENGTHS)


@pytest.fixture(scope="module")
def gallery(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gallery") / "new" / "g"
    argv = ["--root-dir", str(folder), "--mode", "html", "--out", str(out), "--batch-size", "18", "--image-size", "40"]
    for name, value in WINDOWS.items():
        argv += ["--" + name.replace("_", "-"), str(value)]
    assert inspect.main(argv) == 0
    return out


def contents(gallery: Path) -> dict[str, Any]:
    found = re.search(r"^const contents = (.*);$", (gallery / "index.html").read_text(), re.MULTILINE)
    assert found
    return json.loads(found[1])


# ---- on disk


def test_every_clip_has_its_row_and_its_strip(gallery: Path) -> None:
    clips = contents(gallery)["clips"]
    assert {clip["name"]: clip["length"] for clip in clips} == LENGTHS
    for clip in clips:
        sheet = simplejpeg.decode_jpeg((gallery / clip["strip"]).read_bytes())
        columns = min(clip["thumbs"], gallery_module.COLUMNS)
        rows = -(-clip["thumbs"] // columns)
        assert clip["thumbs"] == clip["length"]
        assert sheet.shape == (rows * gallery_module.THUMB, columns * gallery_module.THUMB, 3)


def test_a_strip_shows_the_frames_in_order(gallery: Path, folder: Path) -> None:
    clip = next(clip for clip in contents(gallery)["clips"] if clip["name"].startswith("b/"))
    sheet = simplejpeg.decode_jpeg((gallery / clip["strip"]).read_bytes()).astype(float)
    dataset = FolderDataset(folder)
    first = int(dataset.clip_offsets[clip["id"]])
    ids = np.arange(first, first + 33)
    expected, _ = views.decode_frames(dataset, ids, gallery_module.THUMB, NO_REGION, None)
    for frame in range(33):
        top, left = (place * gallery_module.THUMB for place in divmod(frame, gallery_module.COLUMNS))
        drawn = sheet[top : top + gallery_module.THUMB, left : left + gallery_module.THUMB]
        errors = np.abs(expected - drawn).mean(axis=(1, 2, 3))
        assert errors.argmin() == frame and errors[frame] < 6


def test_the_batch_is_the_one_asked_for(gallery: Path, folder: Path) -> None:
    dataset = FolderDataset(folder)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    rows = contents(gallery)["batch"]["rows"]
    ids = views.random_ids(index, 18, 0, 0)
    assert [row["window"] for row in rows] == ids.tolist()
    view = views.view_windows(dataset, EpochWindows(index), ids, image_size=40)
    for number, row in enumerate(rows):
        assert row["times"] == view.times[number].tolist() and row["names"] == view.frame_names[number]
        picture = simplejpeg.decode_jpeg((gallery / f"batch/{number:06d}.jpg").read_bytes()).astype(float)
        assert np.abs(picture - np.concatenate(view.frames[number], axis=1)).mean() < 8


def test_nothing_is_fetched_from_anywhere_else(gallery: Path) -> None:
    page = (gallery / "index.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|src=\"/|import\(|fetch\(|XMLHttp", page)


@pytest.mark.parametrize("step", [1, 7, 10, 30])
def test_long_clips_get_thumbs_within_the_budget_that_fit_the_step(step: int) -> None:
    for length, clips, room in (
        (100_000, 10, gallery_module.MOST),
        (400, 5_000, gallery_module.FEWEST),
        (1000, 3000, 50),
    ):
        spacing = gallery_module.thumb_spacing(length, clips, step)
        assert -(-length // room) <= spacing and (spacing % step == 0 or step % spacing == 0)
        assert spacing < 2 * length / room + step
    assert gallery_module.thumb_spacing(gallery_module.MOST, 1, step) == 1


def test_an_earlier_gallery_is_replaced_and_other_files_are_not(folder: Path, tmp_path: Path) -> None:
    dataset, settings = FolderDataset(folder), WindowSettings(**WINDOWS)
    out = tmp_path / "g"
    gallery_module.write_gallery(dataset, out, settings, np.arange(5), None, "")
    gallery_module.write_gallery(dataset, out, settings, np.arange(2), None, "")
    assert len(list(out.rglob("*.jpg"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("my page")
    for other, says in ((tmp_path / "mine", "holds other files"), (tmp_path / "mine" / "index.html", "is a file")):
        with pytest.raises(SettingsError, match=says):
            gallery_module.write_gallery(dataset, other, settings, np.arange(2), None, "")
    assert (tmp_path / "mine" / "index.html").read_text() == "my page"


def test_the_progress_bar_keeps_out_of_log_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bars: list[dict[str, object]] = []

    def at_once(*given: object, **options: object) -> tqdm:
        bars.append(options)
        return tqdm(*given, **{**options, "delay": 0, "mininterval": 0})

    monkeypatch.setattr(gallery_module, "tqdm", at_once)
    settings = WindowSettings(**WINDOWS)
    gallery_module.write_gallery(FolderDataset(folder), tmp_path / "g", settings, np.arange(3), None, "")
    assert bars and capfd.readouterr().err == ""  # stderr is no terminal here


def test_a_damaged_frame_leaves_a_grey_thumb(folder: Path, tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "frames", {"a": 6})
    (root / "a/frame_000002.jpg").write_bytes(b"\xff\xd8\xff broken")
    gallery_module.write_gallery(
        FolderDataset(root), tmp_path / "g", WindowSettings(window_size=2), np.arange(1), None, ""
    )
    sheet = simplejpeg.decode_jpeg((tmp_path / "g" / gallery_module.strip_path(0)).read_bytes())
    thumb = sheet[:, 2 * gallery_module.THUMB : 3 * gallery_module.THUMB]
    assert np.abs(thumb.astype(int)[:, 8:-8] - 128).max() < 6


# ---- in a browser


def move(name: str, value: int | str) -> str:
    """JavaScript that does what a person does with an input: its value changes, and the page is told."""
    return f"get('{name}').value = '{value}'; get('{name}').dispatchEvent(new Event('input', {{bubbles: true}}));"


def expected_frames(length: int, t: int, size: int = 3, step: int = 4, stride: int = 2) -> list[int]:
    frames = [t * stride + k * step for k in range(size)]
    return frames if frames[-1] < length else []


def expected_box(frame: int, length: int) -> list[float]:
    """Left, top, width and height in percent of the sheet, for a clip all of whose frames have a thumb."""
    columns = min(gallery_module.COLUMNS, length)
    rows = -(-length // columns)
    row, column = divmod(frame, columns)
    return [pytest.approx(100 * part, abs=0.01) for part in (column / columns, row / rows, 1 / columns, 1 / rows)]


@needs_browser
def test_the_page_renders_and_the_address_sets_the_window(gallery: Path, tmp_path: Path) -> None:
    clips = contents(gallery)["clips"]
    page = browse(tmp_path, gallery / "index.html", "#t=3")
    assert page.frames == {clip["id"]: expected_frames(clip["length"], 3) for clip in clips[:20]}
    assert page.images == [clip["strip"] for clip in clips[:20]]
    assert page.text["page"] == "page 1 of 2 (23 clips)" and page.text["says"] == "window 4 of 13"


@needs_browser
def test_the_slider_moves_the_marked_frames(gallery: Path, tmp_path: Path) -> None:
    clips = {clip["id"]: clip["length"] for clip in contents(gallery)["clips"][:20]}
    page = browse(tmp_path, gallery / "index.html", events=move("t", 12))
    assert page.frames == {clip: expected_frames(length, 12) for clip, length in clips.items()}
    assert [box for boxes in page.boxes.values() for box in boxes] == [
        expected_box(frame, clips[clip]) for clip, frames in page.frames.items() for frame in frames
    ]
    page = browse(
        tmp_path, gallery / "index.html", events=move("size", 4) + move("step", 2) + move("stride", 7) + move("t", 1)
    )
    assert page.frames == {clip: expected_frames(length, 1, 4, 2, 7) for clip, length in clips.items()}
    assert page.frames[0] == [7, 9, 11, 13]


@needs_browser
def test_the_marks_of_a_long_clip_are_even(tmp_path: Path) -> None:
    """Each lies on the last thumb that is not after its frame; frames of one thumb share a mark."""
    root = data.make_clips(tmp_path / "frames", {"long": 400}, height=16, width=16)
    argv = ["--root-dir", str(root), "--mode", "html", "--out", str(tmp_path / "g"), "--batch-size", "2"]
    assert inspect.main([*argv, "--window-size", "5", "--frame-step", "10", "--image-size", "16"]) == 0
    (clip,) = contents(tmp_path / "g")["clips"]
    assert (clip["thumbs"], clip["every"]) == (80, 5)
    page = browse(tmp_path, tmp_path / "g" / "index.html", "#t=13")
    assert page.frames[0] == [13, 23, 33, 43, 53]
    assert [box[0] for box in page.boxes[0]] == [
        pytest.approx(100 * thumb / 30, abs=0.01) for thumb in (2, 4, 6, 8, 10)
    ]
    page = browse(tmp_path, tmp_path / "g" / "index.html", "#step=1&t=13")
    assert page.frames[0] == [13, 15]  # 13 and 14 on one thumb, 15 to 17 on the next


@needs_browser
def test_shuffled_frames_are_marked_in_no_clip(folder: Path, tmp_path: Path) -> None:
    """The clips show frames in time, where no window lies any more; the batch is that of training."""
    argv = ["--root-dir", str(folder), "--mode", "html", "--out", str(tmp_path / "g"), "--batch-size", "2"]
    assert inspect.main([*argv, "--window-size", "2", "--frame-step", "1", "--shuffle-frames"]) == 0
    page = browse(tmp_path, tmp_path / "g" / "index.html", "#t=1")
    assert len(page.images) == 20 and not any(page.frames.values())
    assert "shuffled by seed 0" in contents(tmp_path / "g")["batch"]["title"]


@needs_browser
def test_search_and_pages_and_the_batch(gallery: Path, tmp_path: Path) -> None:
    clips = contents(gallery)["clips"]
    page = browse(tmp_path, gallery / "index.html", events="get('after').click();")
    assert list(page.frames) == [clip["id"] for clip in clips[20:]]
    page = browse(tmp_path, gallery / "index.html", events=move("search", "TWO</I> & m"))
    assert [clips[clip]["name"] for clip in page.frames] == ["b/<i>two</i> & more"]
    page = browse(tmp_path, gallery / "index.html", events="get('view-batch').click(); get('after').click();")
    rows = contents(gallery)["batch"]["rows"]
    assert page.windows == [row["window"] for row in rows[16:]]
    assert page.images == ["batch/000016.jpg", "batch/000017.jpg"]


@needs_browser
def test_ten_thousand_clips_stay_usable(gallery: Path, tmp_path: Path) -> None:
    """The page lists twenty at a time, whatever there is; here the rows alone, without their strips."""
    page = (gallery / "index.html").read_text()
    known = contents(gallery)
    known["clips"] = [{**known["clips"][0], "id": number, "name": f"clip {number}"} for number in range(10_000)]
    many = gallery / "many.html"
    start, end = re.search(r"const contents = (.*);\n", page).span(1)  # type: ignore[union-attr]
    many.write_text(page[:start] + json.dumps(known) + page[end:])
    shown = browse(tmp_path, many, events=move("search", "clip 99") + "get('after').click();" + move("t", 2))
    assert len(shown.frames) == 20 and all(frames == [4, 8, 12] for frames in shown.frames.values())
    assert shown.text["page"] == "page 2 of 6 (111 clips)"


def test_all_clips_are_listed_while_the_batch_is_of_the_training_split(folder: Path, tmp_path: Path) -> None:
    build_shards(folder, tmp_path / "s", workers=1, splits="train=0.5,val=0.5")
    argv = ["--shards", str(tmp_path / "s"), "--mode", "html", "--out", str(tmp_path / "g"), "--batch-size", "5"]
    argv += ["--window-size", "2", "--frame-step", "1", "--image-size", "16", "--batch-sampling", "plan", "--step", "1"]
    assert inspect.main(argv) == 0
    dataset = ShardDataset(tmp_path / "s")
    index = WindowIndex(dataset.clip_lengths, 2, 1, clips=dataset.split_clips("train"))
    known = contents(tmp_path / "g")
    assert {clip["name"]: clip["split"] for clip in known["clips"]} == {
        dataset.clip_key(clip): split for split in ("train", "val") for clip in dataset.split_clips(split).tolist()
    }
    assert [row["window"] for row in known["batch"]["rows"]] == EpochPlan(index, 5).batch(1).tolist()


def test_fewer_windows_than_a_batch_are_a_gallery_too(folder: Path, tmp_path: Path) -> None:
    argv = ["--root-dir", str(folder), "--mode", "html", "--out", str(tmp_path / "g"), "--batch-size", "5000"]
    argv += ["--window-size", "2", "--frame-step", "1", "--image-size", "16"]
    assert inspect.main(argv) == 0 and (tmp_path / "g" / "index.html").is_file()
    with pytest.raises(SettingsError, match="--batch-size is 5000"):
        inspect.main([*argv, "--batch-sampling", "plan"])
