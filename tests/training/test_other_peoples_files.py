"""Logs and demos replace what they wrote, and leave alone what they did not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cltt import checkpoint
from cltt.commands import train
from cltt.demo.pipeline import remove_demo, render_clips
from cltt.demo.settings import DemoSettings
from cltt.errors import SettingsError
from cltt.metrics import History, is_ours_to_replace
from cltt.training import records
from tests.helpers import hostile


def _check(folder: Path, *flags: str) -> None:
    argv = ["--shards", "x", "--checkpoint-dir", str(folder / "run"), "--csv-log", *flags]
    records.check_outputs(train.parse(argv))


@pytest.mark.parametrize("flag", ["--csv-log-path", "--eval-csv-log-path"])
@pytest.mark.parametrize("there", ["picture", "fifo", "link", "table", "folder"])
def test_a_log_does_not_replace_what_is_not_one(tmp_path: Path, flag: str, there: str) -> None:
    path, precious = tmp_path / "holiday.png", tmp_path / "precious"
    precious.write_bytes(hostile.odd_pictures()["png"])
    if there == "picture":
        path.write_bytes(precious.read_bytes())
    elif there == "fifo":
        os.mkfifo(path)
    elif there == "link":
        path.symlink_to(precious)
    elif there == "table":
        path.write_text("epoch,my own notes\n1,good\n")
    else:
        path.mkdir()
    before = path.lstat()
    with pytest.raises(SettingsError, match=r"holiday\.png (exists and is not a metrics file|is a folder)"):
        _check(tmp_path, flag, str(path))
    after = path.lstat()  # the time of the last access aside
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size) or (
        there == "folder"
    )
    assert precious.read_bytes() == hostile.odd_pictures()["png"]


def test_a_log_replaces_its_own(tmp_path: Path) -> None:
    train_log, eval_log = tmp_path / "metrics.csv", tmp_path / "metrics_eval.csv"
    for path, content in zip((train_log, eval_log), History().csv(), strict=True):
        path.write_bytes(content)
    assert is_ours_to_replace(train_log) and is_ours_to_replace(eval_log)
    (tmp_path / "empty.csv").touch()
    assert is_ours_to_replace(tmp_path / "empty.csv") and is_ours_to_replace(tmp_path / "new.csv")
    _check(tmp_path, "--csv-log-path", str(train_log))


@pytest.mark.parametrize("name", ["clips", "shards", "run"])
@pytest.mark.parametrize("stamp", [None, "[", "{}"])
def test_a_demo_deletes_no_folder_of_others(tmp_path: Path, name: str, stamp: str | None) -> None:
    precious = tmp_path / name / "precious"
    precious.parent.mkdir()
    precious.write_text("dear")
    settings = DemoSettings(out=str(tmp_path), objects=2, frames=16)
    if stamp is None:
        with pytest.raises(SettingsError, match="not of a demo, so it is left alone"):
            render_clips(settings)
        assert precious.read_text() == "dear"
        return
    (tmp_path / "rendered.json").write_text(stamp)  # of a demo, though not of these settings, or spoilt
    with pytest.raises(SettingsError, match=f"{name} is of a demo with other settings .*--fresh"):
        render_clips(settings)
    assert precious.read_text() == "dear"
    remove_demo(tmp_path)
    assert not precious.exists()


def test_a_demo_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("dear")
    out = tmp_path / "out"
    out.mkdir()
    (out / "rendered.json").write_text("{}")
    (out / "clips").symlink_to(tmp_path / "precious")
    with pytest.raises(SettingsError, match="left alone"):
        render_clips(DemoSettings(out=str(out), objects=2, frames=16))
    assert (tmp_path / "precious" / "file").read_text() == "dear"


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("there", [["simclr_epoch_002.pth", "simclr_epoch_011.pth", "metrics.csv"], ["metrics.csv"]])
def test_a_folder_of_the_older_script_is_left_alone(tmp_path: Path, there: list[str], resume: list[str]) -> None:
    folder = tmp_path / "ws5"
    folder.mkdir()
    for name in there:
        (folder / name).write_text("epoch,loss,learning_rate,decay_rate\n")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} | {"": folder.stat().st_mtime_ns}
    weights = folder / ("simclr_epoch_011.pth" if len(there) > 1 else "simclr_epoch_NNN.pth")
    says = f"--checkpoint-path {weights} --normalise imagenet .*2026-03-03.* --checkpoint-dir {folder}_cltt"
    with pytest.raises(SettingsError, match=says):
        train.main(["--shards", "x", "--checkpoint-dir", str(folder), "--csv-log", "--device", "cpu", *resume])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} | {"": folder.stat().st_mtime_ns} == before


@pytest.mark.parametrize("ours", ["settings.json", "epoch-0001.pt"])
def test_a_log_beside_a_run_of_ours_is_ours(tmp_path: Path, ours: str) -> None:
    for name in ("metrics.csv", ours):
        (tmp_path / name).touch()
    assert checkpoint.older_run(tmp_path) is None
