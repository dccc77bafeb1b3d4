"""inspect_windows.py: mistakes get one sentence, pictures go where they are asked for."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from cltt import ShardDataset, WindowIndex
from cltt.errors import SettingsError
from cltt.sampling.epoch_windows import EpochWindows
from cltt.visualize import figures, gallery, inspect, views
from cltt.visualize import windows as windows_module
from tests.helpers import data
from tests.helpers.inspecting import ROOT, SMALL, info, refusal, script


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--sample-idx", "47"], "--sample-idx is 47; these settings give windows 0 to 46"),
        (["--sample-idx", "-1"], "sample_idx is -1; it must be from 0"),
        (
            ["--mode", "batch", "--batch-size", "8", "--batch-sampling", "contiguous", "--batch-idx", "6"],
            "batches 0 to 4",
        ),
        (["--mode", "batch", "--batch-size", "8", "--batch-idx", "-1"], "batch_idx is -1; it must be from 0"),
        (["--mode", "batch", "--batch-size", "8", "--batch-sampling", "plan", "--step", "5"], "steps 0 to 4"),
        (["--mode", "batch", "--batch-size", "48"], "the clips give only 47 windows"),
        (["--mode", "batch", "--seed", "-1"], "seed is -1"),
        (["--window-size", "60"], "the longest of the 5 clips has 41"),
        (["--fps", "0"], "fps is 0.0"),
        (["--mode", "html"], "mode html needs --out"),
        (["--mode", "grid"], "invalid choice: 'grid'"),
        (["--save-path", "picture.txt"], "its ending must be one of"),
    ],
)
def test_a_mistake_gets_one_sentence(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], says: str
) -> None:
    assert says in refusal(capsys, "--shards", shards, *SMALL, "--save-path", tmp_path / "w.png", *argv)
    assert list(tmp_path.iterdir()) == []


def test_data_that_are_not_there_get_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flag in ("--shards", "--root-dir"):
        assert "nowhere" in refusal(capsys, flag, tmp_path / "nowhere", "--mode", "stats")
    assert "--root-dir" in refusal(capsys, "--mode", "stats")


@pytest.mark.parametrize("argv", [["--save-path"], ["--mode", "html", "--batch-size", "2", "--out"]])
def test_a_place_that_cannot_be_written_gets_one_sentence(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: list[str]
) -> None:
    """A file where a folder must be, no permission found before the work, and a disk that fails in its midst."""
    asked = ["--shards", shards, *SMALL, *argv]
    (tmp_path / "file").write_text("")
    said = refusal(capsys, *asked, tmp_path / "file/new/w.png")
    assert "cannot write to" in said and f"Not a directory; give another {argv[-1]}" in said

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", refuse)
        patched.setattr(inspect, "open_dataset", None)  # not come to
        said = refusal(capsys, *asked, tmp_path / "new/w.png")
    assert f"Permission denied; give another {argv[-1]}" in said and not (tmp_path / "new").exists()
    for module in (figures, gallery):
        monkeypatch.setattr(module, "check_writable", lambda *_: None)
    monkeypatch.setattr(Path, "mkdir", refuse)
    capsys.readouterr()
    with pytest.raises(SettingsError, match=rf"new/w\.png: Permission denied; give another {argv[-1]}"):
        inspect.main([*map(str, asked), str(tmp_path / "new/w.png")])


@pytest.mark.parametrize("mode", [["sample", "--augment", "crop"], ["batch", "--batch-size", "4"]])
def test_json_needs_no_picture(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: list[str]
) -> None:
    drawing = {
        figures: ("require_window", "show_figure"),
        windows_module: ("draw_windows",),
        views: ("augment_windows",),
    }
    for module, names in drawing.items():
        for name in names:
            monkeypatch.setattr(module, name, None)
    assert info(capsys, "--shards", shards, *SMALL, "--mode", *mode)["windows"] == 47


def test_help_says_that_nothing_is_built() -> None:
    printed = " ".join(script("--help").stdout.split())
    assert "nothing is built" in printed and "shards are built from it" not in printed
    assert printed.count("--root-dir ROOT_DIR") == 2  # in the usage and once in the list


def test_one_of_a_thing_is_not_called_many(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "frames", {"a": 1})
    argv = ["--root-dir", str(root), "--window-size", "1", "--image-size", "32", "--batch-size", "1"]
    save = ["--save-path", str(tmp_path / "w.png")]
    for mode in (["sample", *save], ["batch", *save], ["stats"], ["verify"]):
        inspect.main([*argv, "--mode", *mode])
    printed = capsys.readouterr().out
    assert "1 clip, 1 frame, 1 window (split: all)" in printed and "1 frame read, 0 damaged" in printed
    assert not re.search(r"\b1 (clips|frames|windows|distinct frames)\b", printed)
    assert "only 1 window;" in refusal(capsys, *argv, "--json", "--mode", "batch", "--batch-size", "2")


def test_without_display_and_path_it_says_to_pass_one(shards: Path) -> None:
    done = script("--shards", shards, *SMALL)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "inspect_windows.py: error: there is no display to open a window on; pass --save-path FILE.png\n"
    )


def test_it_saves_without_any_environment_and_makes_the_folders(shards: Path, tmp_path: Path) -> None:
    save_path = tmp_path / "new" / "folder" / "w.png"
    done = script("--shards", shards, *SMALL, "--save-path", save_path)
    assert done.returncode == 0, done.stderr
    assert matplotlib.image.imread(save_path).ndim == 3


@pytest.mark.parametrize("mode", [["sample"], ["stats"], ["verify"], ["html", "--batch-size", "3"]])
def test_names_of_any_letters(tmp_path: Path, mode: list[str]) -> None:
    root = data.make_clips(tmp_path / "frames", {"$x_{a}^2": 12, "日本": 12, "z" * 200: 12})
    with contextlib.suppress(OSError):  # a file system that takes Unicode names only
        os.rename(os.fsencode(root / "$x_{a}^2"), os.fsencode(root) + b"/\xff$x_{a}^2$")
    argv = ["--root-dir", root, *SMALL, "--save-path", tmp_path / "w.png", "--out", tmp_path / "g", "--mode", *mode]
    for encoding in ("ascii", "utf-8"):
        done = script(*argv, env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
        assert done.stderr in ("", f"wrote {tmp_path / 'w.png'}\n")


BACKEND = """
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas
from matplotlib.backend_bases import FigureManagerBase as FigureManager, _Backend
def show(*args, **kwargs):
    from matplotlib import pyplot
    pyplot.gcf().savefig({path!r})
"""


def test_with_a_display_it_opens_a_window(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "backend_of_test.py").write_text(BACKEND.format(path=str(tmp_path / "window.png")))
    env = {"DISPLAY": ":77", "MPLBACKEND": "module://backend_of_test", "PYTHONPATH": str(tmp_path)}
    done = script("--shards", shards, *SMALL, env=env)
    assert done.returncode == 0, done.stderr
    shown, saved = tmp_path / "window.png", tmp_path / "saved.png"
    script("--shards", shards, *SMALL, "--save-path", saved)
    assert np.allclose(matplotlib.image.imread(shown)[..., :3], matplotlib.image.imread(saved)[..., :3], atol=2 / 255)


def test_looking_needs_neither_torch_nor_dali(shards: Path, tmp_path: Path) -> None:
    modes = [
        ["sample"],
        ["batch", "--batch-size", "2"],
        ["batch", "--batch-size", "2", "--batch-sampling", "plan"],
        ["stats"],
        ["verify", "--decode"],
    ]
    common = ["--shards", str(shards), *SMALL, "--save-path", str(tmp_path / "w.png"), "--mode"]
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from cltt.visualize import inspect
for mode in {modes!r}:
    inspect.main({common!r} + mode)
    print("heavy:", [name for name in ("torch", "nvidia.dali") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True)
    heavy = [line for line in done.stdout.splitlines() if line.startswith("heavy:")]
    assert heavy == ["heavy: []"] * len(modes), done.stderr


@pytest.mark.parametrize(
    "mode", [["sample"], ["batch", "--batch-size", "4"], ["batch", "--batch-size", "4", "--batch-sampling", "plan"]]
)
def test_drawn_steps_are_those_of_the_epoch(shards: Path, capsys: pytest.CaptureFixture[str], mode: list[str]) -> None:
    argv = ["--shards", shards, "--image-size", "32", "--window-size", "3", "--frame-step", "1-5", "--mode", *mode]
    shown = [info(capsys, *argv, "--epoch", str(epoch)) for epoch in range(6)]
    dataset = ShardDataset(shards)
    for epoch, found in enumerate(shown):
        windows = EpochWindows(WindowIndex(dataset.clip_lengths, 3, (1, 5)), epoch=epoch)
        assert found["frame_ids"] == windows.frames(found["window_ids"]).tolist()
        assert f"steps 1-5 of epoch {epoch}, seed 0" in found["showing"]
    assert len({str(found["frame_ids"]) for found in shown}) > 1


def test_the_gallery_and_statistics_of_drawn_steps(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", shards, "--image-size", "32", "--window-size", "3", "--frame-step", "1-5"]
    picture = tmp_path / "stats.png"
    found = info(capsys, *argv, "--mode", "stats", "--epoch", "2", "--save-path", picture)
    assert found["window_settings"]["span"] == 11 and picture.exists()
    inspect.main([*map(str, argv), "--mode", "html", "--batch-size", "3", "--epoch", "2", "--out", str(tmp_path / "g")])
    assert '"marked":false' in (tmp_path / "g/index.html").read_text()


def test_letters_are_drawn_in_a_font_that_has_them() -> None:
    """Or, where there is none, as one character that says that something is left out."""
    from matplotlib.figure import Figure

    figure = Figure()
    known, unknown = figure.text(0, 0, "日本/walk.mp4"), figure.text(0, 0, "\U000f0001\U000f0002/walk.mp4 é")
    figures._use_fonts(figure)
    assert unknown.get_text() == "…/walk.mp4 é"  # of a private area: no font has these
    families, missing = figures._fonts_for(frozenset("日本"))
    assert known.get_fontfamily() == ["sans-serif", *families]
    assert known.get_text() == ("…/walk.mp4" if missing else "日本/walk.mp4") and bool(families) != bool(missing)


def test_a_caption_does_not_run_into_the_next() -> None:
    assert windows_module._fitting("short", 100) == "short"
    for letter in "a日":
        fitted = windows_module._fitting(letter * 60 + ".mp4", 200)
        assert "…" in fitted and sum(map(windows_module._letter_width, fitted)) <= 200 and fitted.endswith(".mp4")
