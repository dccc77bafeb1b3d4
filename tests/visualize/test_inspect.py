"""inspect_windows.py: what it prints and draws is what training sees, and what it counts is what is there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

import inspect_windows
from cltt import WindowIndex, build_shards
from cltt.cli import run
from cltt.config import WindowSettings
from cltt.errors import FrameError, SettingsError
from cltt.shards import damage
from cltt.shards import folder as folder_module
from cltt.shards.dataset import ShardDataset
from cltt.shards.folder import FolderDataset
from cltt.visualize import figures, stats_page, views
from cltt.visualize import stats as stats_module
from cltt.visualize import windows as windows_module
from tests.helpers import data

ROOT = Path(__file__).parents[2]
LENGTHS = {"a/one": 30, "a/two": 25, "b/one": 41, "b/two": 3, "c/one": 28}
WINDOWS = ["--window-size", "3", "--frame-step", "4", "--window-stride", "2"]
SMALL = [*WINDOWS, "--image-size", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = data.make_clips(tmp_path_factory.mktemp("frames"), LENGTHS)
    for number in (8, 9, 20):  # repeats of the frame before
        (root / f"a/one/frame_{number:06d}.jpg").write_bytes((root / f"a/one/frame_{number - 1:06d}.jpg").read_bytes())
    data.add_mac_clutter(root)
    return root


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "s"
    build_shards(folder, out, workers=1, label_from="parent")
    return out


@pytest.fixture(scope="module")
def split_shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "split"
    build_shards(folder, out, workers=1, splits="train=0.6,val=0.4")
    return out


def facts(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    """The JSON that the script prints; it must end with status 0."""
    capsys.readouterr()
    assert inspect_windows.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one sentence with which the script refuses; it must end with status 2 and print nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(lambda: inspect_windows.main([*map(str, argv)]), "inspect_windows.py")
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def obvious_windows() -> list[list[str]]:
    """Frame names of every window, listed one by one."""
    size, step, stride = 3, 4, 2
    windows = []
    for clip, length in sorted(LENGTHS.items()):
        for start in range(0, length - (size - 1) * step, stride):
            windows.append([f"{clip}/frame_{start + k * step:06d}.jpg" for k in range(size)])
    return windows


# ---- sample


def test_every_sample_is_the_window_it_says(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    windows = obvious_windows()
    for window in (0, 1, 12, len(windows) - 1):
        shown = facts(capsys, "--shards", shards, *SMALL, "--sample-idx", window, "--save-path", tmp_path / "w.png")
        assert shown["window_ids"] == [window] and shown["windows"] == len(windows)
        assert shown["frame_names"] == [windows[window]]
        assert shown["clips_shown"] == [windows[window][0].rpartition("/")[0]]
        assert shown["times"] == [[int(name[-10:-4]) for name in windows[window]]]
        assert shown["shape"] == [1, 3, 3, 32, 32]


def test_a_folder_shows_what_its_shards_show(
    shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [*SMALL, "--mode", "batch", "--batch-size", "6", "--save-path"]
    packed = facts(capsys, "--shards", shards, *argv, tmp_path / "shards.png")
    plain = facts(capsys, "--root-dir", folder, *argv, tmp_path / "folder.png")
    assert {**packed, "data": ""} == {**plain, "data": ""}
    assert (tmp_path / "shards.png").read_bytes() == (tmp_path / "folder.png").read_bytes()


def test_text_names_the_data_the_window_and_its_frames(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    inspect_windows.main(["--shards", str(shards), *SMALL, "--sample-idx", "2", "--save-path", str(tmp_path / "w.png")])
    printed = capsys.readouterr().out
    assert "5 clips, 127 frames, 47 windows" in printed
    assert "1 x 3 x 3 x 32 x 32" in printed
    assert all(name in printed for name in obvious_windows()[2])


def drawn_frames(path: Path, layout: windows_module.Layout, row: int) -> np.ndarray:
    """The frames of one row of cells of a saved picture, uint8 [windows, columns, cell, cell, 3]."""
    page = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(np.uint8)
    assert page.shape == (layout.height, layout.width, 3)
    cells = [
        [
            page[top : top + layout.cell, left : left + layout.cell]
            for left in (layout.left(column) for column in range(layout.columns))
        ]
        for top in (layout.top(window, row) for window in range(layout.windows))
    ]
    return np.array(cells)


def test_the_picture_holds_the_very_pixels(shards: Path, tmp_path: Path) -> None:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    view = views.view_windows(dataset, index, np.array([3, 17]), image_size=32)
    figures.save_figure(windows_module.draw_windows(view, "two", difference=True), tmp_path / "two.png")
    layout = windows_module.Layout(2, 2, 3, 32)
    assert layout.cell % 32 == 0
    times = layout.cell // 32
    drawn = drawn_frames(tmp_path / "two.png", layout, 0)
    assert np.array_equal(drawn[:, :, ::times, ::times], view.frames)
    page = matplotlib.image.imread(tmp_path / "two.png")[..., :3]
    for top, left in ((0, 0), (layout.top(1, 0), 0), (layout.top(0, 1) + layout.cell, layout.left(1))):
        label = page[top : top + 30, left : left + 100]  # title, a window's label, a frame's name: dark on white
        assert label.min() < 0.4 and np.median(label) == 1
    changes = drawn_frames(tmp_path / "two.png", layout, 1)
    assert np.array_equal(changes[:, :, ::times, ::times], windows_module.differences(view.frames))


def test_a_picture_too_high_to_draw_is_refused_with_a_way_out() -> None:
    assert windows_module.Layout(300, 2, 5, 32).height < 60_000
    with pytest.raises(SettingsError, match=r"2000 windows would be .* at most \d+ windows, or .* --mode html"):
        windows_module.Layout(2000, 1, 5, 32)


# ---- batches


def test_contiguous_batches_are_neighbours_and_random_ones_are_not(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", shards, *SMALL, "--mode", "batch", "--batch-size", "6", "--save-path", tmp_path / "b.png"]
    shown = facts(capsys, *argv, "--batch-sampling", "contiguous", "--batch-idx", "1")
    windows = obvious_windows()
    assert shown["window_ids"] == list(range(6, 12))
    assert shown["overlapping_pairs"] == sum(
        2 * (j - i) <= 8 and windows[i][0][:5] == windows[j][0][:5] for i in range(6, 12) for j in range(i + 1, 12)
    )
    drawn = facts(capsys, *argv, "--batch-idx", "2", "--seed", "9")["window_ids"]
    assert len(set(drawn)) == 6 and np.ptp(drawn) > 12


def test_random_batches_take_all_windows_alike(shards: Path) -> None:
    index = WindowIndex(ShardDataset(shards).clip_lengths, 3, 4, 2)
    batches = [views.random_ids(index, 20, number, 1) for number in range(1000)]
    assert all(len(set(batch.tolist())) == 20 for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=47)
    assert np.abs(counts - 1000 * 20 / 47).max() < 5 * np.sqrt(1000 * 20 / 47)


def test_the_same_seed_gives_the_same_picture(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def picture(name: str, *argv: str) -> bytes:
        facts(
            capsys,
            "--shards",
            shards,
            *SMALL,
            "--mode",
            "batch",
            "--batch-size",
            "4",
            "--save-path",
            tmp_path / name,
            *argv,
        )
        return (tmp_path / name).read_bytes()

    first = picture("1.png", "--seed", "3")
    assert picture("2.png", "--seed", "3") == first
    assert picture("3.png", "--seed", "4") != first
    assert picture("4.png", "--seed", "3", "--batch-idx", "1") != first


@pytest.mark.parametrize(("augment", "scope"), [("none", "frame"), ("crop", "frame"), ("simclr", "window")])
def test_a_plan_batch_is_the_batch_of_training(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, augment: str, scope: str
) -> None:
    """Ids, names and pixels, in several epochs and steps, of a loader that knows nothing of the script."""
    import torch

    from cltt import WindowLoader

    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    look = {"image_size": 32, "augment": augment, "augment_scope": scope, "dtype": torch.uint8, "device": "cpu"}
    loader = WindowLoader(dataset, index, 4, seed=5, min_gap=1, depth=6, num_threads=1, **look)  # type: ignore[arg-type]
    argv = [*SMALL, "--shards", shards, "--mode", "batch", "--batch-sampling", "plan", "--batch-size", "4"]
    argv += ["--seed", "5", "--min-gap", "1", "--depth", "6", "--augment", augment, "--augment-scope", scope]
    layout = windows_module.Layout(4, 1 if augment == "none" else 2, 3, 32)
    compared = 0
    with loader:
        for epoch in (0, 2):
            loader.set_epoch(epoch)
            for step, batch in enumerate(loader):
                if step % 4:
                    continue
                save_path = tmp_path / f"{epoch}-{step}.png"
                shown = facts(capsys, *argv, "--epoch", epoch, "--step", step, "--save-path", save_path)
                assert shown["window_ids"] == batch.window_ids.tolist()
                assert shown["clip_ids"] == batch.clip_ids.tolist()
                assert shown["frame_ids"] == batch.frame_ids.tolist()
                drawn = drawn_frames(save_path, layout, layout.rows - 1)[
                    :, :, :: layout.cell // 32, :: layout.cell // 32
                ]
                assert np.array_equal(drawn, batch.frames.permute(0, 1, 3, 4, 2).numpy())
                compared += 1
    assert compared == 6


def test_a_plan_batch_of_a_folder_with_broken_files_is_the_batch_of_training(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Training packs the folder, which cuts clips at the broken files; what is shown of the plain folder must agree."""
    from cltt import WindowLoader

    root = shutil.copytree(folder, tmp_path / "frames")
    (root / "a/one/frame_000011.jpg").write_bytes(b"")
    (root / "b/one/frame_000020.jpg").write_text("no picture")
    cut_off = (root / "c/one/frame_000002.jpg").read_bytes()
    (root / "c/one/frame_000002.jpg").write_bytes(cut_off[: len(cut_off) // 2])
    build_shards(root, tmp_path / "s", workers=1)
    dataset = ShardDataset(tmp_path / "s")
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    stats = facts(capsys, "--root-dir", root, *WINDOWS, "--mode", "stats")
    packed = facts(capsys, "--shards", tmp_path / "s", *WINDOWS, "--mode", "stats")
    assert {**stats, "data": ""} == {**packed, "data": ""} and stats["windows"] == len(index)
    argv = ["--root-dir", root, *SMALL, "--mode", "batch", "--batch-sampling", "plan", "--batch-size", "4"]
    with WindowLoader(dataset, index, 4, seed=5, image_size=32, device="cpu", num_threads=1) as loader:
        for step, batch in enumerate(loader):
            shown = facts(capsys, *argv, "--seed", "5", "--step", step)
            assert shown["window_ids"] == batch.window_ids.tolist()
            assert shown["frame_ids"] == batch.frame_ids.tolist()
            names = [[dataset.frame_name(frame) for frame in row] for row in batch.frame_ids.tolist()]
            assert shown["frame_names"] == names and shown["damaged"] == []
    inspect_windows.main([*map(str, argv), "--save-path", str(tmp_path / "b.png")])
    note = capsys.readouterr().err.splitlines()[0]
    assert note.startswith("note: 3 files left out") and "b/one/frame_000020.jpg (not an image)" in note


def test_only_what_counts_windows_reads_every_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checked = []
    monkeypatch.setattr(
        folder_module, "check_files", lambda *given: checked.append(given) or folder_module.check_files(*given)
    )
    argv = ["--root-dir", str(folder), *SMALL, "--json", "--batch-size", "4", "--mode"]
    for mode in (["sample"], ["batch"], ["batch", "--batch-sampling", "contiguous"], ["verify"]):
        inspect_windows.main([*argv, *mode])
        assert not checked
    plan = ["--batch-sampling", "plan"]
    for mode in (["stats"], ["batch", *plan], ["html", *plan, "--out", str(tmp_path / "g")]):
        inspect_windows.main([*argv, *mode])
        assert checked.pop() and not checked


def test_pictures_are_of_the_training_split_as_in_training(
    split_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", split_shards, *SMALL, "--save-path", tmp_path / "w.png"]
    dataset = ShardDataset(split_shards)
    for split, clips in (("train", dataset.split_clips("train")), ("val", dataset.split_clips("val"))):
        chosen = [] if split == "train" else ["--split", split]
        assert facts(capsys, *argv, *chosen)["frames"] == int(dataset.clip_lengths[clips].sum())
    assert facts(capsys, *argv, "--split", "all")["frames"] == 127
    assert facts(capsys, "--shards", split_shards, "--mode", "stats")["frames"] == 127
    assert "no split 'test'" in refusal(capsys, *argv, "--split", "test")


@pytest.mark.parametrize("mode", ["sample", "batch", "stats", "verify"])
def test_an_empty_split_is_named(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str) -> None:
    build_shards(folder, tmp_path / "s", workers=1, splits="train=1,val=0")
    argv = ["--shards", tmp_path / "s", *SMALL, "--json", "--mode", mode, "--split", "val"]
    assert "the split 'val' has no clips (clips a split: train 5, val 0)" in refusal(capsys, *argv)


# ---- errors


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--sample-idx", "47"], "--sample-idx is 47; these settings give windows 0 to 46"),
        (["--sample-idx", "-1"], "windows 0 to 46"),
        (
            ["--mode", "batch", "--batch-size", "8", "--batch-sampling", "contiguous", "--batch-idx", "6"],
            "batches 0 to 4",
        ),
        (["--mode", "batch", "--batch-size", "8", "--batch-idx", "-1"], "batch_idx is -1; it must be 0 or more"),
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
    assert f"{tmp_path / 'file'} is not a folder; give another {argv[-1]}" in refusal(
        capsys, *asked, tmp_path / "file/new/w.png"
    )
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
        patched.setattr(inspect_windows, "open_dataset", None)  # not come to
        said = refusal(capsys, *asked, tmp_path / "new/w.png")
    assert f"no permission to write to {tmp_path}; give another {argv[-1]}" in said

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    capsys.readouterr()
    with pytest.raises(SettingsError, match=rf"new/w\.png: Permission denied; give another {argv[-1]}"):
        inspect_windows.main([*map(str, asked), str(tmp_path / "new/w.png")])


@pytest.mark.parametrize("mode", [["sample", "--augment", "crop"], ["batch", "--batch-size", "4"]])
def test_json_needs_no_picture(
    shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: list[str]
) -> None:
    for drawing in ("require_window", "draw_windows", "augment_windows", "show_figure"):
        monkeypatch.setattr(windows_module, drawing, None)
    assert facts(capsys, "--shards", shards, *SMALL, "--mode", *mode)["windows"] == 47


def test_help_says_that_nothing_is_built() -> None:
    printed = " ".join(script("--help").stdout.split())
    assert "nothing is built" in printed and "shards are built from it" not in printed
    assert printed.count("--root-dir ROOT_DIR") == 2  # in the usage and once in the list


def test_one_of_a_thing_is_not_called_many(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "frames", {"a": 1})
    argv = ["--root-dir", str(root), "--window-size", "1", "--image-size", "32", "--batch-size", "1"]
    save = ["--save-path", str(tmp_path / "w.png")]
    for mode in (["sample", *save], ["batch", *save], ["stats"], ["verify"]):
        inspect_windows.main([*argv, "--mode", *mode])
    printed = capsys.readouterr().out
    assert "1 clip, 1 frame, 1 window (split: all)" in printed and "1 frame read, 0 damaged" in printed
    assert not re.search(r"\b1 (clips|frames|windows|distinct frames)\b", printed)
    assert "only 1 window;" in refusal(capsys, *argv, "--json", "--mode", "batch", "--batch-size", "2")


# ---- showing and saving


def script(*argv: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The script as a person runs it, in an environment of ``env`` alone."""
    command = [sys.executable, str(ROOT / "inspect_windows.py"), *map(str, argv)]
    return subprocess.run(command, env=env or {}, capture_output=True, text=True)


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
import inspect_windows
for mode in {modes!r}:
    inspect_windows.main({common!r} + mode)
    print("heavy:", [name for name in ("torch", "nvidia.dali") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True)
    heavy = [line for line in done.stdout.splitlines() if line.startswith("heavy:")]
    assert heavy == ["heavy: []"] * len(modes), done.stderr


# ---- stats


def obvious_stats(folder: Path) -> dict[str, Any]:
    """Counted file by file."""
    clips = {clip: sorted((folder / clip).glob("[!.]*.jpg")) for clip in sorted(LENGTHS)}
    contents = {clip: [path.read_bytes() for path in paths] for clip, paths in clips.items()}
    repeats = {clip: sum(a == b for a, b in pairwise(frames)) for clip, frames in contents.items()}
    return {
        "clips": len(clips),
        "frames": sum(map(len, clips.values())),
        "bytes": sum(len(frame) for frames in contents.values() for frame in frames),
        "repeats": {clip: count for clip, count in repeats.items() if count},
    }


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_stats_count_what_is_there(
    shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(stats_module, "PIECE", piece)
    expected = obvious_stats(folder)
    for flag, path in (("--shards", shards), ("--root-dir", folder)):
        stats = facts(capsys, flag, path, *WINDOWS, "--mode", "stats")
        assert {key: stats[key] for key in ("clips", "frames", "bytes")} == {
            key: expected[key] for key in ("clips", "frames", "bytes")
        }
        assert {item["clip"]: item["pairs"] for item in stats["duplicates"]["most"]} == expected["repeats"]
        assert stats["duplicates"]["pairs"] == 3
        assert stats["frame_sizes"] == [{"width": 64, "height": 48, "frames": 127}]
        assert stats["windows"] == len(obvious_windows())
        assert stats["too_short"] == {"clips": 1, "frames": 3, "examples": [{"clip": "b/two", "frames": 3}]}
        assert sum(stats["clip_lengths"]["histogram"]["clips"]) == 5
        assert [stats["clip_lengths"][key] for key in ("shortest", "median", "longest")] == [3, 28, 41]


def test_windows_at_other_settings_are_counted_one_by_one() -> None:
    lengths = np.array([0, 1, 9, 30, 100])
    table = stats_module._windows_at(lengths, WindowSettings(window_size=4, frame_step=7, window_stride=3))
    assert 7 in table["frame_steps"] and 3 in table["window_strides"]
    for step, row in zip(table["frame_steps"], table["windows"], strict=True):
        for stride, count in zip(table["window_strides"], row, strict=True):
            assert count == sum(len(range(0, length - 3 * step, stride)) for length in lengths.tolist())


def test_stats_of_splits_and_labels_add_up(
    shards: Path, split_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = facts(capsys, "--shards", shards, *WINDOWS, "--mode", "stats")["labels"]
    assert {item["name"]: (item["clips"], item["frames"]) for item in labels} == {
        "a": (2, 55),
        "b": (2, 44),
        "c": (1, 28),
    }
    stats = facts(capsys, "--shards", split_shards, *WINDOWS, "--mode", "stats")
    for key in ("clips", "frames", "windows"):
        assert sum(item[key] for item in stats["splits"]) == stats[key]
    train = facts(capsys, "--shards", split_shards, *WINDOWS, "--mode", "stats", "--split", "train")
    named = {item["name"]: item for item in stats["splits"]}
    assert [train[key] for key in ("clips", "frames", "windows")] == [
        named["train"][key] for key in ("clips", "frames", "windows")
    ]


def test_stats_in_text_and_as_a_page(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    inspect_windows.main(
        ["--shards", str(shards), *WINDOWS, "--mode", "stats", "--save-path", str(tmp_path / "new" / "s.png")]
    )
    printed = capsys.readouterr().out
    for part in ("5 clips, 127 frames", "64x48 (127)", "b/two (3)", "a/one (3)", "label a: 2 clips", "step \\ stride"):
        assert part in printed
    assert matplotlib.image.imread(tmp_path / "new" / "s.png").shape == (800, 1200, 4)


def test_the_page_of_stats_has_no_empty_panel(shards: Path, split_shards: Path, folder: Path) -> None:
    def titles(dataset: ShardDataset | FolderDataset) -> list[str]:
        figure = stats_page.draw_stats(stats_module.dataset_stats(dataset, WindowSettings()), "t")
        return [axes.get_title(loc="left") for axes in figure.axes][1:]

    always = ["Clip lengths", "Frame sizes (frames)", "Windows at other settings"]
    assert titles(ShardDataset(shards)) == [*always, "Labels (clips)"]
    assert titles(ShardDataset(split_shards)) == [*always, "Splits (clips)"]
    assert titles(FolderDataset(folder)) == always


def test_stats_need_no_window_to_fit(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = facts(capsys, "--shards", shards, "--window-size", "60", "--mode", "stats")
    assert stats["windows"] == 0 and stats["too_short"]["frames"] == 127


# ---- damage


def flip(shards: Path, dataset: ShardDataset, frame: int) -> None:
    """Flip one bit in the middle of a frame."""
    record = dataset.frame_facts([frame])[0]
    with (shards / f"shard-{record['shard']:06d}.tar").open("r+b") as file:
        file.seek(int(record["offset"]) + int(record["size"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def damaged_shards(folder: Path, tmp_path: Path) -> Path:
    build_shards(folder, tmp_path / "s", workers=1)
    for frame in (4, 70):
        flip(tmp_path / "s", ShardDataset(tmp_path / "s"), frame)
    return tmp_path / "s"


def test_verify_names_every_damaged_frame(
    shards: Path, damaged_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert facts(capsys, "--shards", shards, "--mode", "verify", "--decode")["damaged"] == []
    assert inspect_windows.main(["--shards", str(damaged_shards), "--mode", "verify"]) == 1
    reason, *lines, last = capsys.readouterr().out.splitlines()
    dataset = ShardDataset(damaged_shards)
    named = [f"frame {frame} ({dataset.frame_name(frame)})" for frame in (4, 70)]
    assert lines == [f"  {name}" for name in named]
    assert reason.startswith("2 frames: ") and "shard-000000.tar: CRC mismatch" in reason
    assert last == "127 frames read, 2 damaged"
    assert inspect_windows.main(["--shards", str(damaged_shards), "--mode", "verify", "--json"]) == 1
    damaged = json.loads(capsys.readouterr().out)["damaged"]
    assert [line.split(":")[0] for line in damaged] == named


def test_one_damaged_frame_has_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_shards(folder, tmp_path / "s", workers=1)
    flip(tmp_path / "s", ShardDataset(tmp_path / "s"), 4)
    inspect_windows.main(["--shards", str(tmp_path / "s"), "--mode", "verify"])
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith("frame 4 (a/one/frame_000004.jpg): ") and total == "127 frames read, 1 damaged"


def test_a_cut_off_shard_has_a_line_a_clip_not_a_frame(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_shards(folder, tmp_path / "s", workers=1)
    tar = tmp_path / "s/shard-000000.tar"
    cut = int(ShardDataset(tmp_path / "s").frame_facts([40])["offset"][0]) - 512  # before the frame's own header
    os.truncate(tar, cut)
    assert inspect_windows.main(["--shards", str(tmp_path / "s"), "--mode", "verify"]) == 1
    reason, *lines, total = capsys.readouterr().out.splitlines()
    assert reason.startswith(f"87 frames: {tar}: cut off; ")
    ranges = {"a/two": (40, 54), "b/one": (55, 95), "b/two": (96, 98), "c/one": (99, 126)}
    assert lines == [f"  frames {first} to {last} (in clip {clip!r})" for clip, (first, last) in ranges.items()]
    assert total == "127 frames read, 87 damaged"


def test_a_picture_full_of_damage_names_some_and_counts_the_others(
    damaged_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (damaged_shards / "shard-000000.tar").unlink()
    argv = ["--shards", str(damaged_shards), *SMALL, "--mode", "batch", "--batch-size", "8", "--json"]
    inspect_windows.main(argv)
    named = json.loads(capsys.readouterr().out)["damaged"]
    inspect_windows.main([*argv[:-1], "--save-path", str(tmp_path / "b.png")])
    *lines, more, _ = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert lines == [f"damaged: {sentence}" for sentence in named[: len(lines)]] and 5 < len(lines) < len(named)
    assert more == f"damaged: {len(named) - len(lines)} frames more; --json names all"


def test_of_very_many_damaged_frames_the_first_are_named_and_the_others_counted() -> None:
    errors = [FrameError(2 * k, f"a/{k}.jpg", "CRC mismatch") for k in range(100)]
    reason, *lines, rest = damage.damaged_text(errors)
    assert reason == "100 frames: CRC mismatch"
    assert lines == [f"  frame {2 * k} (a/{k}.jpg)" for k in range(len(lines))]
    assert rest == f"  and {100 - len(lines)} frames more; --json names all" and 5 < len(lines) < 50


def test_decoding_finds_what_a_crc_cannot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that was broken before it was packed, let through by a build that looks at headers only."""
    root = data.make_clips(tmp_path / "frames", {"a": 12})
    broken = bytearray((root / "a/frame_000005.jpg").read_bytes())
    late = len(broken) * 9 // 10
    broken[late : late + 20] = b"\xff\xd9" * 10
    (root / "a/frame_000005.jpg").write_bytes(bytes(broken))
    build_shards(root, tmp_path / "s", workers=1, verify="header")
    argv = ["--shards", str(tmp_path / "s"), "--mode", "verify"]
    assert inspect_windows.main(argv) == 0
    assert inspect_windows.main([*argv, "--decode"]) == 1
    assert "frame 5 (a/frame_000005.jpg): cannot be decoded" in capsys.readouterr().out


def test_a_damaged_frame_is_shown_grey_and_named(
    damaged_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", damaged_shards, *SMALL, "--sample-idx", "0", "--save-path", tmp_path / "w.png"]
    shown = facts(capsys, *argv)
    assert len(shown["damaged"]) == 1 and "a/one/frame_000004.jpg" in shown["damaged"][0]
    drawn = drawn_frames(tmp_path / "w.png", windows_module.Layout(1, 1, 3, 32), 0)[0]
    assert (drawn[1] == 128).all() and not (drawn[0] == 128).all()
    inspect_windows.main([*map(str, argv), "--augment", "simclr"])
    drawn = drawn_frames(tmp_path / "w.png", windows_module.Layout(1, 2, 3, 32), 1)[0]
    assert (drawn[1] == 128).all() and not (drawn[0] == 128).all()


def test_a_damaged_frame_comes_with_what_training_does_about_it(
    damaged_shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of shards it takes a neighbour instead; of a folder it builds shards first, without the broken file."""
    argv = [*SMALL, "--sample-idx", "0", "--save-path", str(tmp_path / "w.png")]
    inspect_windows.main(["--shards", str(damaged_shards), *argv])
    assert "drawn grey; training takes the nearest good frame instead\n" in capsys.readouterr().out
    broken = shutil.copytree(folder, tmp_path / "frames")
    (broken / "a/one/frame_000004.jpg").write_bytes(b"")
    inspect_windows.main(["--root-dir", str(broken), *argv])
    assert "drawn grey; training cuts the clip there\n" in capsys.readouterr().out
    index = WindowIndex([30], 3, 4, 2)
    view = views.view_windows(FolderDataset(broken), index, np.array([0]), image_size=32)
    texts = [text.get_text() for axes in windows_module.draw_windows(view, "t").axes for text in axes.texts]
    assert "grey: 1 damaged frame; training cuts the clip there" in texts


def test_a_missing_shard_is_damage_not_a_crash(damaged_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (damaged_shards / "shard-000000.tar").unlink()
    assert inspect_windows.main(["--shards", str(damaged_shards), "--mode", "verify"]) == 1
    assert "127 frames read, 127 damaged" in capsys.readouterr().out
