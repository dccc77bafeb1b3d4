"""The demo end to end, small; and what a second run finds."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.cli import EXIT_INTERRUPTED
from cltt.demo import pipeline, render
from cltt.demo.__main__ import main
from cltt.demo.pipeline import CLIPS_PER_OBJECT, SPLIT_SEED, SPLITS, remove_demo, render_clips
from cltt.demo.settings import DemoSettings
from cltt.errors import SettingsError
from cltt.loader.loader import Batch
from cltt.training.trainer import Trainer
from tests.helpers.data import make_clips

FLAGS = ("--objects", "2", "--frames", "16", "--image-size", "32", "--batch-size", "8", "--epochs", "1")


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    make_clips(tmp_path / "frames", {"mine": 3})
    before = sorted(tmp_path.rglob("*"))
    for more in ((), ("--fresh",)):
        with pytest.raises(SettingsError, match="frames holds files that are not of a demo; give another --out"):
            main(["--out", str(tmp_path / "frames"), *FLAGS, *more])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a tiny run, and the path asked for."""
    out = tmp_path_factory.mktemp("demo") / "my demo"
    assert main(["--out", str(out), *FLAGS, "--device", "cpu"]) == 0
    return out, str(out)


def test_the_demo_leaves_what_it_promises(finished: tuple[Path, str]) -> None:
    out, _ = finished
    for name in ("windows.png", "loss.png", "accuracy.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None and picture.std() > 5, name
    with (out / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["epoch"] == "1" and float(row["loss"]) > 0
    figures = json.loads((out / "accuracy.json").read_text())
    results = {name: figures[name] for name in (*pipeline.BASELINES, pipeline.BEFORE, pipeline.AFTER)}
    for accuracy in results.values():
        assert set(accuracy) == {pipeline.ONE_SHOT, pipeline.PROBE}
        assert all(0 <= value <= 1 for value in accuracy.values())
    assert results[pipeline.BEFORE] != results[pipeline.AFTER]


def test_a_second_run_keeps_what_is_there_and_says_where_all_is(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = finished
    before = json.loads((out / "accuracy.json").read_text())
    metrics = (out / "metrics.csv").read_text()
    (out / "run" / "evaluation.json").write_text("of cltt evaluate")
    monkeypatch.setattr(render, "write_clip", lambda *_: pytest.fail("a clip was rendered again"))
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("a step was trained again"))
    monkeypatch.setattr(pipeline, "evaluate", lambda *_: pytest.fail("an encoder was evaluated again"))
    kept = {path: path.stat().st_ino for path in [out / "shards" / "index.json", *(out / "run").glob("*.pt")]}
    assert main(["--out", given, *FLAGS, "--device", "cpu"]) == 0
    assert len(kept) == 2 and {path: path.stat().st_ino for path in kept} == kept
    assert json.loads((out / "accuracy.json").read_text()) == before
    assert (out / "metrics.csv").read_text() == metrics
    assert (out / "run" / "evaluation.json").is_file()
    lines = capsys.readouterr().out.strip().splitlines()
    assert "minutes" not in lines[0]
    assert lines[-1].startswith("next: cltt train --root-dir")
    assert lines[-2].startswith(f"{given}: windows.png, loss.png, accuracy.png, metrics.csv")
    shown = re.findall(r"([\d.]+)% -> ([\d.]+)%", lines[-2])
    gains = [
        (before[pipeline.BEFORE][name], before[pipeline.AFTER][name]) for name in (pipeline.ONE_SHOT, pipeline.PROBE)
    ]
    assert shown == [(f"{100 * a:.1f}", f"{100 * b:.1f}") for a, b in gains]


def test_results_of_an_earlier_run_do_not_keep_the_time_from_being_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(settings: DemoSettings) -> Path:
        raise SettingsError("as far as this")

    (tmp_path / "accuracy.json").write_text("{}")
    monkeypatch.setattr(pipeline, "build", refused)
    with pytest.raises(SettingsError, match="as far as this"):
        main(["--out", str(tmp_path), *FLAGS, "--fresh"])
    assert "minutes" in capsys.readouterr().out


@pytest.mark.parametrize(("flag", "word"), [("--seed", "seed is 1 and was 0"), ("--epochs", "epochs is 2 and was 1")])
def test_other_settings_delete_nothing(finished: tuple[Path, str], flag: str, word: str) -> None:
    out, given = finished
    flags = [*FLAGS, "--device", "cpu", flag, word.split()[2]]
    with pytest.raises(SettingsError, match=rf"{word}\); give --fresh .*, or another --out"):
        main(["--out", given, *flags])
    assert list((out / "run").glob("*.pt"))


def test_an_interrupted_demo_names_no_flag_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def interrupted(trainer: Trainer, batch: Batch) -> float:
        if trainer.history.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, batch)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    command = ["--out", str(tmp_path), *FLAGS, "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == EXIT_INTERRUPTED
    said = capsys.readouterr().out
    assert "stopped on request at epoch 1/1, step 2; the same command continues from" in said and "--resume" not in said
    monkeypatch.setattr(Trainer, "_step", step)
    assert main(command) == 0
    assert "resuming from" in capsys.readouterr().out


def test_an_interrupted_rendering_goes_on_and_fresh_starts_anew(tmp_path: Path) -> None:
    settings = DemoSettings(out=str(tmp_path), objects=2, frames=16)
    whole = [path.relative_to(tmp_path) for path in sorted(render_clips(settings).rglob("*.jpg"))]
    pictures = [(tmp_path / path).read_bytes() for path in whole]
    for folder in list((tmp_path / "clips" / "obj01").iterdir())[3:]:
        folder.rename(tmp_path / f"gone-{folder.name}")
    render_clips(settings)
    assert [(tmp_path / path).read_bytes() for path in whole] == pictures
    remove_demo(tmp_path)
    assert not (tmp_path / "clips").exists()
    render_clips(DemoSettings(out=str(tmp_path), objects=2, frames=16, seed=1))
    assert [(tmp_path / path).read_bytes() for path in whole if (tmp_path / path).exists()] != pictures
    assert len(list((tmp_path / "clips").glob("*/*"))) == 2 * CLIPS_PER_OBJECT


def test_every_object_has_clips_in_both_parts(tmp_path: Path) -> None:
    objects = DemoSettings().objects
    names = [f"obj{number:02d}/clip_{clip:02d}" for number in range(objects) for clip in range(CLIPS_PER_OBJECT)]
    make_clips(tmp_path / "clips", dict.fromkeys(names, 1), height=16, width=16)
    build_shards(tmp_path / "clips", tmp_path / "shards", splits=SPLITS, split_seed=SPLIT_SEED, label_from="parent")
    shards = ShardDataset(tmp_path / "shards")
    assert len(shards.label_names) == objects
    for part, fewest in (("train", 8), ("test", 2)):
        assert np.bincount(shards.labels[shards.split_clips(part)], minlength=objects).min() >= fewest


@pytest.mark.parametrize("bad", [{"objects": 1}, {"objects": 99}, {"frames": 9}])
def test_settings_that_cannot_work(bad: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}"):
        DemoSettings(**bad)


def test_a_picture_that_is_gone_is_made_again(finished: tuple[Path, str]) -> None:
    out, given = finished
    before = json.loads((out / "accuracy.json").read_text())
    (out / "accuracy.png").unlink()
    assert main(["--out", given, *FLAGS, "--device", "cpu"]) == 0
    assert (out / "accuracy.png").is_file()
    assert json.loads((out / "accuracy.json").read_text()) == before
