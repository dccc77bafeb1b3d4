"""inspect_windows.py: the windows and batches that it prints and draws are what training sees."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from cltt import WindowIndex, build_shards
from cltt.errors import SettingsError
from cltt.sampling.epoch_windows import EpochWindows
from cltt.shards import folder as folder_module
from cltt.shards.dataset import ShardDataset
from cltt.visualize import figures, inspect, views
from cltt.visualize import windows as windows_module
from tests.helpers.inspecting import SMALL, WINDOWS, drawn_frames, info, obvious_windows, refusal


def test_every_sample_is_the_window_it_says(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    windows = obvious_windows()
    for window in (0, 1, 12, len(windows) - 1):
        shown = info(capsys, "--shards", shards, *SMALL, "--sample-idx", window, "--save-path", tmp_path / "w.png")
        assert shown["window_ids"] == [window] and shown["windows"] == len(windows)
        assert shown["frame_names"] == [windows[window]]
        assert shown["clips_shown"] == [windows[window][0].rpartition("/")[0]]
        assert shown["times"] == [[int(name[-10:-4]) for name in windows[window]]]
        assert shown["shape"] == [1, 3, 3, 32, 32]


def test_a_folder_shows_what_its_shards_show(
    shards: Path, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = [*SMALL, "--mode", "batch", "--batch-size", "6", "--save-path"]
    packed = info(capsys, "--shards", shards, *argv, tmp_path / "shards.png")
    plain = info(capsys, "--root-dir", folder, *argv, tmp_path / "folder.png")
    assert {**packed, "data": ""} == {**plain, "data": ""}
    assert (tmp_path / "shards.png").read_bytes() == (tmp_path / "folder.png").read_bytes()


def test_text_names_the_data_the_window_and_its_frames(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    inspect.main(["--shards", str(shards), *SMALL, "--sample-idx", "2", "--save-path", str(tmp_path / "w.png")])
    printed = capsys.readouterr().out
    assert "5 clips, 127 frames, 47 windows" in printed
    assert "1 x 3 x 3 x 32 x 32" in printed
    assert all(name in printed for name in obvious_windows()[2])


def test_the_picture_holds_the_very_pixels(shards: Path, tmp_path: Path) -> None:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    view = views.view_windows(dataset, EpochWindows(index), np.array([3, 17]), image_size=32)
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
    assert np.array_equal(changes[:, :, ::times, ::times], windows_module.differences(view.frames)[0])


def test_a_picture_too_high_to_draw_is_refused_with_a_way_out() -> None:
    assert windows_module.Layout(300, 2, 5, 32).height < 60_000
    with pytest.raises(SettingsError, match=r"2000 windows would be .* at most \d+ windows, or .* --mode html"):
        windows_module.Layout(2000, 1, 5, 32)


def test_contiguous_batches_are_neighbours_and_random_ones_are_not(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", shards, *SMALL, "--mode", "batch", "--batch-size", "6", "--save-path", tmp_path / "b.png"]
    inspect.main([str(part) for part in argv])
    assert "training makes no such batch; --batch-sampling plan" in capsys.readouterr().err
    inspect.main([*map(str, argv), "--batch-sampling", "plan"])
    assert "training makes no such batch" not in capsys.readouterr().err
    shown = info(capsys, *argv, "--batch-sampling", "contiguous", "--batch-idx", "1")
    windows = obvious_windows()
    assert shown["window_ids"] == list(range(6, 12))
    assert shown["overlapping_pairs"] == sum(
        2 * (j - i) <= 8 and windows[i][0][:5] == windows[j][0][:5] for i in range(6, 12) for j in range(i + 1, 12)
    )
    drawn = info(capsys, *argv, "--batch-idx", "2", "--seed", "9")["window_ids"]
    assert len(set(drawn)) == 6 and np.ptp(drawn) > 12


def test_random_batches_take_all_windows_alike(shards: Path) -> None:
    index = WindowIndex(ShardDataset(shards).clip_lengths, 3, 4, 2)
    batches = [views.random_ids(index, 20, number, 1) for number in range(1000)]
    assert all(len(set(batch.tolist())) == 20 for batch in batches)
    counts = np.bincount(np.concatenate(batches), minlength=47)
    assert np.abs(counts - 1000 * 20 / 47).max() < 5 * np.sqrt(1000 * 20 / 47)


def test_the_same_seed_gives_the_same_picture(shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def picture(name: str, *argv: str) -> bytes:
        small = ["--shards", shards, *SMALL, "--mode", "batch", "--batch-size", "4"]
        info(capsys, *small, "--save-path", tmp_path / name, *argv)
        return (tmp_path / name).read_bytes()

    first = picture("1.png", "--seed", "3")
    assert picture("2.png", "--seed", "3") == first
    assert picture("3.png", "--seed", "4") != first
    assert picture("4.png", "--seed", "3", "--batch-idx", "1") != first


@pytest.mark.parametrize(
    ("augment", "scope", "shuffle"),
    [("none", "frame", False), ("crop", "frame", False), ("simclr", "window", False), ("none", "frame", True)],
)
def test_a_plan_batch_is_the_batch_of_training(
    shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, augment: str, scope: str, shuffle: bool
) -> None:
    """Ids, names and pixels, in several epochs and steps, of a loader that knows nothing of the script."""
    import torch

    from cltt import WindowLoader

    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2, shuffle_seed=5 if shuffle else None)
    look = {"image_size": 32, "augment": augment, "augment_scope": scope, "dtype": torch.uint8, "device": "cpu"}
    loader = WindowLoader(dataset, index, 4, seed=5, min_gap=1, depth=6, num_threads=1, **look)  # type: ignore[arg-type]
    argv = [*SMALL, "--shards", shards, "--mode", "batch", "--batch-sampling", "plan", "--batch-size", "4"]
    argv += ["--seed", "5", "--min-gap", "1", "--depth", "6", "--augment", augment, "--augment-scope", scope]
    argv += ["--shuffle-frames"] if shuffle else []
    layout = windows_module.Layout(4, 1 if augment == "none" else 2, 3, 32)
    compared = 0
    with loader:
        for epoch in (0, 2):
            loader.set_epoch(epoch)
            for step, batch in enumerate(loader):
                if step % 4:
                    continue
                save_path = tmp_path / f"{epoch}-{step}.png"
                shown = info(capsys, *argv, "--epoch", epoch, "--step", step, "--save-path", save_path)
                assert shown["window_ids"] == batch.window_ids.tolist()
                assert shown["clip_ids"] == batch.clip_ids.tolist()
                assert shown["frame_ids"] == batch.frame_ids.tolist()
                assert shown["overlapping_pairs"] == 0 and ("shuffled by seed 5" in shown["showing"]) is shuffle
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
    stats = info(capsys, "--root-dir", root, *WINDOWS, "--mode", "stats")
    packed = info(capsys, "--shards", tmp_path / "s", *WINDOWS, "--mode", "stats")
    assert {**stats, "data": ""} == {**packed, "data": ""} and stats["windows"] == len(index)
    argv = ["--root-dir", root, *SMALL, "--mode", "batch", "--batch-sampling", "plan", "--batch-size", "4"]
    with WindowLoader(dataset, index, 4, seed=5, image_size=32, device="cpu", num_threads=1) as loader:
        for step, batch in enumerate(loader):
            shown = info(capsys, *argv, "--seed", "5", "--step", step)
            assert shown["window_ids"] == batch.window_ids.tolist()
            assert shown["frame_ids"] == batch.frame_ids.tolist()
            names = [[dataset.frame_name(frame) for frame in row] for row in batch.frame_ids.tolist()]
            assert shown["frame_names"] == names and shown["damaged"] == []
    inspect.main([*map(str, argv), "--save-path", str(tmp_path / "b.png")])
    note = capsys.readouterr().err.splitlines()[0]
    assert note.startswith("note: 3 files left out") and "b/one/frame_000020.jpg (not an image)" in note


def test_only_what_counts_windows_reads_every_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checked, check_files = [], folder_module.check_files
    monkeypatch.setattr(folder_module, "check_files", lambda *given: checked.append(given) or check_files(*given))
    argv = ["--root-dir", str(folder), *SMALL, "--json", "--batch-size", "4", "--mode"]
    for mode in (["sample"], ["batch"], ["batch", "--batch-sampling", "contiguous"], ["verify"]):
        inspect.main([*argv, *mode])
        assert not checked
    plan = ["--batch-sampling", "plan"]
    for mode in (["stats"], ["batch", *plan], ["html", *plan, "--out", str(tmp_path / "g")]):
        inspect.main([*argv, *mode])
        assert checked.pop() and not checked


def test_pictures_are_of_the_training_split_as_in_training(
    split_shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["--shards", split_shards, *SMALL, "--save-path", tmp_path / "w.png"]
    dataset = ShardDataset(split_shards)
    for split, clips in (("train", dataset.split_clips("train")), ("val", dataset.split_clips("val"))):
        chosen = [] if split == "train" else ["--split", split]
        assert info(capsys, *argv, *chosen)["frames"] == int(dataset.clip_lengths[clips].sum())
    assert info(capsys, *argv, "--split", "all")["frames"] == 127
    assert info(capsys, "--shards", split_shards, "--mode", "stats")["frames"] == 127
    assert "no split 'test'" in refusal(capsys, *argv, "--split", "test")


@pytest.mark.parametrize("mode", ["sample", "batch", "stats", "verify"])
def test_an_empty_split_is_named(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str) -> None:
    build_shards(folder, tmp_path / "s", workers=1, splits="train=1,val=0")
    argv = ["--shards", tmp_path / "s", *SMALL, "--json", "--mode", mode, "--split", "val"]
    assert "the split 'val' has no clips (clips per split: train 5, val 0)" in refusal(capsys, *argv)
