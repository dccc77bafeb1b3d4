"""The gallery with embeddings: a click on a frame lists the nearest frames of other clips, without a server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cltt.errors import SettingsError
from cltt.visualize import gallery as gallery_module
from cltt.visualize import inspect
from cltt.visualize.embeddings import Embeddings
from tests.helpers import data
from tests.helpers.browser import browse, needs_browser

LENGTHS = {"a/one": 20, "b/<i>two</i> & more": 33, "c/short": 3}
CLIPS = list(LENGTHS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data.make_clips(tmp_path_factory.mktemp("frames"), LENGTHS)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame f of the first clip is nearest to frame f of the second, and the third to the last of the first."""
    clip = np.repeat(np.arange(3), list(LENGTHS.values()))
    frame = np.concatenate([np.arange(length) for length in LENGTHS.values()])
    angle = frame * 0.05 + clip * 0.001
    angle[clip == 2] = 19 * 0.05 + 0.001 * frame[clip == 2]
    path = tmp_path_factory.mktemp("features") / "e.npz"
    Embeddings(
        features=np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
        label=np.full(len(clip), -1),
        clip=clip,
        frame=frame,
        time=np.full(len(clip), np.nan),
        path=np.array([f"{k}" for k in range(len(clip))]),
        clip_names=np.array(CLIPS),
        label_names=np.array([], np.str_),
        checkpoint={},
    ).save(path)
    return path


def write(folder: Path, out: Path, *more: str) -> Path:
    argv = ["--root-dir", str(folder), "--mode", "html", "--out", str(out), "--batch-size", "2", "--image-size", "16"]
    assert inspect.main([*argv, "--window-size", "2", "--frame-step", "1", *more]) == 0
    return out


@pytest.fixture(scope="module")
def gallery(folder: Path, embeddings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(folder, tmp_path_factory.mktemp("gallery") / "g", "--embeddings", str(embeddings))


def script(gallery: Path, number: int) -> list[list[list[float]]]:
    text = (gallery / gallery_module.neighbours_path(number)).read_text()
    found = re.fullmatch(r"neighbours\((\d+), (.*)\);\n", text)
    assert found and int(found[1]) == number
    return json.loads(found[2])  # type: ignore[no-any-return]


def test_each_clip_has_a_script_with_a_row_a_thumb(gallery: Path) -> None:
    assert [len(script(gallery, number)) for number in range(3)] == [20, 33, 3]
    first = script(gallery, 0)
    assert first[7][0][:2] == [1, 7] and all(0.9 < row[0][2] <= 1 for row in first)
    assert all(clip != 0 for row in first for clip, _, _ in row)
    assert all(len(row) == gallery_module.NEIGHBOURS for row in first)
    assert script(gallery, 2)[0][0][:2] in ([0, 19], [1, 19])


def test_without_embeddings_there_are_no_scripts_and_earlier_ones_go(
    gallery: Path, folder: Path, tmp_path: Path
) -> None:
    out = write(folder, tmp_path / "g")
    assert not (out / "neighbours").exists()
    assert '"neighbours":false' in (out / "index.html").read_text()
    (out / "neighbours").mkdir()
    (out / "neighbours" / "x.js").touch()
    write(folder, out)
    assert not (out / "neighbours").exists()


def test_embeddings_of_other_data_are_refused_before_the_old_gallery_goes(embeddings: Path, tmp_path: Path) -> None:
    other = data.make_clips(tmp_path / "frames", {"x": 12})
    out = write(other, tmp_path / "g")
    before = sorted(path.name for path in out.rglob("*"))
    with pytest.raises(SettingsError, match="of other clips"):
        write(other, out, "--embeddings", str(embeddings))
    assert sorted(path.name for path in out.rglob("*")) == before
    with pytest.raises(SettingsError, match="give --mode html"):
        inspect.main(["--root-dir", str(other), "--embeddings", str(embeddings)])


def click(clip: int, thumb: int, length: int) -> str:
    """JavaScript that clicks in the middle of a thumb on the strip of a clip."""
    columns = min(gallery_module.COLUMNS, length)
    row, column = divmod(thumb, columns)
    rows = -(-length // columns)
    return (
        f"{{ const strip = document.querySelector('[data-clip=\"{clip}\"] .strip'); "
        "const box = strip.querySelector('img').getBoundingClientRect(); "
        f"const at = {{bubbles: true, clientX: box.left + box.width * {(column + 0.5) / columns}, "
        f"clientY: box.top + box.height * {(row + 0.5) / rows}}}; "
        "strip.querySelector('img').dispatchEvent(new MouseEvent('click', at)); }"
    )


@needs_browser
@pytest.mark.parametrize(("clip", "thumb"), [(0, 0), (0, 7), (1, 31), (2, 2)])
def test_a_click_lists_the_nearest_frames_of_other_clips(gallery: Path, tmp_path: Path, clip: int, thumb: int) -> None:
    page = browse(tmp_path, gallery / "index.html", events=click(clip, thumb, LENGTHS[CLIPS[clip]]))
    rows = script(gallery, clip)[thumb]
    assert page.near == [f"{clip}:{thumb}", *(f"{number}:{place}" for number, place, _ in rows)]
    assert len(page.near) > 1 and all(not name.startswith(f"{clip}:") for name in page.near[1:])


@needs_browser
def test_without_embeddings_a_click_does_nothing(folder: Path, tmp_path: Path) -> None:
    page = browse(tmp_path, write(folder, tmp_path / "g") / "index.html", events=click(0, 3, 20))
    assert page.near == [] and len(page.images) == 3
