"""ABX against its definition, and the frames that it takes."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cltt import ShardDataset, build_shards
from cltt.config import CheckpointSettings, DataSettings, LogSettings, TrainSettings, WindowSettings
from cltt.errors import SettingsError
from cltt.evaluation.__main__ import main
from cltt.evaluation.protocols import abx as abx_module
from cltt.evaluation.protocols.abx import AbxEvaluator, abx, window_frames
from cltt.metrics import EVAL_COLUMNS, History
from cltt.training.factory import _evaluation
from cltt.training.run import _open_abx
from cltt.training.signals import StopSignals
from tests.helpers import data
from tests.helpers.labelled import MeanColour, colour_folder, save_run


def by_definition(features: np.ndarray, clip: np.ndarray, window: np.ndarray) -> list[float]:
    """Every triple of frames by itself."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = unit @ unit.T
    means = []
    for is_b in (lambda x, b: clip[b] == clip[x] and window[b] != window[x], lambda x, b: clip[b] != clip[x]):
        each = []
        for x in range(len(unit)):
            wins = [
                1.0 if near[x, a] > near[x, b] else 0.5 if near[x, a] == near[x, b] else 0.0
                for a in range(len(unit))
                if a != x and window[a] == window[x]
                for b in range(len(unit))
                if is_b(x, b)
            ]
            each += [np.mean(wins)] if wins else []
        means.append(float(np.mean(each)))
    return means


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_share_of_triples(seed: int) -> None:
    """Windows of uneven size, a clip of one window; whole numbers, so that equal distances come."""
    rng = np.random.default_rng(seed)
    window = np.repeat(np.arange(6), [3, 1, 4, 2, 3, 3])
    clip = np.array([0, 0, 0, 1, 1, 2])[window]
    features = rng.choice([1.0, 4.0, 8.0], size=(len(window), 2))
    assert abx(features, clip, window) == pytest.approx(by_definition(features, clip, window))


def test_what_is_known_by_hand() -> None:
    window, clip = np.repeat(np.arange(8), 4), np.repeat(np.arange(4), 8)
    moments = np.eye(8, dtype=np.float32)[window]
    assert abx(moments, clip, window) == (1.0, 1.0)
    assert abx(np.eye(4)[clip], clip, window) == (0.5, 1.0)  # the encoder tells clips apart, not moments
    assert abx(np.ones((32, 3)), clip, window) == (0.5, 0.5)  # a collapse
    assert abx(moments, np.zeros(32), window) == (1.0, None)
    random = np.random.default_rng(0).normal(size=(32, 64))
    assert abx(random, clip, window) == pytest.approx((0.5, 0.5), abs=0.1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("abx")
    frames = data.make_clips(folder / "frames", {**{f"c{k}": 20 + 9 * k for k in range(6)}, "short": 6})
    build_shards(frames, folder / "s")
    return folder / "s"


@pytest.mark.parametrize("most", [24, 60, 800])
def test_windows_share_no_moment_and_are_few(shards: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abx_module, "MAX_FRAMES", most)
    dataset = ShardDataset(shards)
    clips = np.array([0, 1, 3, 4, 5, 6])
    images = window_frames(dataset, clips, WindowSettings(window_size=3, frame_step="2-4"))
    assert len(images) <= most and set(images.labels) <= {0, 1, 3, 4, 5} and len(set(images.labels)) >= 2
    assert (dataset.clip_of(images.ids) == images.labels).all()
    frames = images.ids.reshape(-1, 3)
    assert (np.diff(frames) == 4).all() and (images.groups.reshape(-1, 3) == np.arange(len(frames))[:, None]).all()
    same = np.diff(images.labels[::3]) == 0
    assert (np.diff(frames[:, 0])[same] >= 9).all()  # the span
    if most == 800:
        assert len(frames) == sum(length // 9 for length in dataset.clip_lengths[[0, 1, 3, 4, 5]])


def test_fewer_windows_are_a_sample_of_all(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not those that lie farthest apart, which are the easiest."""
    dataset, clips, windows = ShardDataset(shards), np.arange(7), WindowSettings(window_size=2, frame_step=1)
    everything = window_frames(dataset, clips, windows)
    assert len(everything) == 2 * sum(length // 2 for length in dataset.clip_lengths)
    monkeypatch.setattr(abx_module, "MAX_FRAMES", 56)
    few = window_frames(dataset, clips, windows)
    assert len(few) == 2 * (6 * 4 + 3)
    starts = set(everything.ids[::2].tolist())
    assert set(few.ids[::2].tolist()) < starts and (np.diff(few.ids[::2]) > 0).all()
    assert (np.diff(few.ids[::2])[np.diff(few.labels[::2]) == 0] == 2).any()


def test_clips_without_two_windows_are_refused(shards: Path) -> None:
    dataset = ShardDataset(shards)
    reading = {"image_size": 16, "device": torch.device("cpu"), "normalise": "none"}
    trained: list[tuple[range, WindowSettings, str]] = [
        (range(7), WindowSettings(), "ABX compares frames of clips that are not trained on, and all are"),
        (range(6), WindowSettings(), "the 1 clips that are not trained on hold 0 of 5 frames at step 10"),
        (range(2, 7), WindowSettings(frame_step=0), "two windows of two frames or more"),
    ]
    for clips, windows, says in trained:
        with pytest.raises(SettingsError, match=says):
            AbxEvaluator(dataset, np.array(clips), windows, **reading)  # type: ignore[arg-type]
    windows = WindowSettings(window_size=2, frame_step=1)
    result = AbxEvaluator(dataset, np.arange(2), windows, **reading)(MeanColour())  # type: ignore[arg-type]
    assert set(result.row()) == {"abx_within", "abx_across"} and "within clips 0." in result.describe()
    assert result.columns() == result.row() | {"abx_windows": "2 frames, step 1"}


def test_training_writes_it_and_metrics_eval_keeps_its_columns(shards: Path, tmp_path: Path) -> None:
    settings = TrainSettings(
        windows=WindowSettings(window_size=2, frame_step=1),
        data=DataSettings(shards=str(shards), image_size=16, clips=str(tmp_path / "picked")),
        checkpoint=CheckpointSettings(checkpoint_dir=str(tmp_path)),
        log=LogSettings(eval="abx"),
    )
    (tmp_path / "picked").write_text("c0\nc1\n")
    dataset, history, stop = ShardDataset(shards), History(), StopSignals()
    abx = _open_abx(dataset, settings, torch.device("cpu"))
    assert abx is not None and set(abx.images.labels) == set(range(dataset.num_clips)) - {0, 1}
    for epoch in (1, 2):
        history.epoch = epoch
        row = _evaluation(settings, MeanColour(), None, history, stop, abx)()
        assert row and set(row) == {"abx_within", "abx_across"}
        history.add_evaluation(row)
    stop.restore()
    with (tmp_path / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["checkpoint"], float(row["abx_within"])) for row in rows] == [
        (f"in training, epoch {row['epoch']:.0f}", row["abx_within"]) for row in history.evaluation
    ]
    assert history.csv()[1].decode() == ",".join(EVAL_COLUMNS) + "\n"
    assert _open_abx(dataset, replace(settings, log=LogSettings()), torch.device("cpu")) is None


def test_the_command_writes_it_for_shards_without_labels(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "run", windows=WindowSettings(window_size=2, frame_step=3))
    flags = ["--checkpoint", str(tmp_path / "run"), "--device", "cpu", "--abx", "--data"]
    assert main([*flags, str(shards)]) == 0
    with (tmp_path / "run" / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == ["untrained", "epoch-0001.pt", "epoch-0001-step-000007.pt"]
    assert all(0.4 < float(row["abx_within"]) <= 1 and 0.4 < float(row["abx_across"]) <= 1 for row in rows)
    assert "test_acc" not in rows[0] and {row["abx_windows"] for row in rows} == {"2 frames, step 3"}
    save_run(tmp_path / "other", steps=(0,), windows=WindowSettings(window_size=3, frame_step=1))
    both = ["--checkpoint", str(tmp_path / "run"), str(tmp_path / "other"), *flags[2:], str(shards)]
    assert main([*both, "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "evaluation.csv").open(newline="") as file:
        assert {row["abx_windows"] for row in csv.DictReader(file)} == {"3 frames, step 1"}
    capsys.readouterr()
    with pytest.raises(SettingsError, match="ABX compares two windows of two frames or more"):
        save_run(tmp_path / "one", windows=WindowSettings(window_size=2, frame_step=9_000))
        main(["--checkpoint", str(tmp_path / "one"), *flags[2:], str(shards)])
    assert "untrained" not in capsys.readouterr().out, "refused before any work"
    with pytest.raises(SettingsError, match="--abx takes shards"):
        main([*flags, str(colour_folder(tmp_path / "images", 4))])
