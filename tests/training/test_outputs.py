"""What a run writes: on a disk that is full for a while nothing is lost, nothing lies about, and the run goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cltt import checkpoint
from cltt.checkpoint import CheckpointStore
from cltt.errors import DataError, OutputError
from cltt.files import atomic
from cltt.metrics import History
from cltt.training import factory, outputs
from cltt.training.outputs import Outputs, finish_writing
from cltt.training.signals import StopSignals
from cltt.training.trainer import Saver
from tests.helpers import training


class FullDisk:
    """Stands for ``atomic.create``: while ``full``, a file takes half of what is written and then refuses."""

    def __init__(self) -> None:
        self.full = True

    def __call__(self, path: Path) -> Any:
        file = open(path, "wb")  # noqa: SIM115
        return HalfFile(file) if self.full else file


class HalfFile:
    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> HalfFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: Any) -> int:
        self.file.write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk()
    for module in (checkpoint, atomic):
        monkeypatch.setattr(module, "create", disk)
    return disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_alone(tmp_path: Path, disk: FullDisk) -> None:
    lines: list[str] = []
    disk.full = False
    with CheckpointStore(tmp_path / "run", say=lines.append) as store:
        store.save({"weights": torch.zeros(1000)}, epoch=1)
        store.wait()
        before = {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")}
        disk.full = True
        for epoch in (2, 3):
            store.save({"weights": torch.ones(1000)}, epoch=epoch)
            store.wait()
            assert {name: (tmp_path / "run" / name).read_bytes() for name in names(tmp_path / "run")} == before
        assert store.failed_at is not None and len(lines) == 1
        assert "epoch-0002.pt: No space left on device; training goes on" in lines[0]
        assert "epoch-0003.pt (No space left on device); the newest checkpoint there: epoch-0001.pt" in store.retry()
        disk.full = False
        assert store.retry() == "" and store.failed_at is None and "can be written again" in lines[1]
    assert names(tmp_path / "run") == ["epoch-0001.pt", "epoch-0003.pt", "latest"]
    assert checkpoint.find_latest(tmp_path / "run")[::2] == (tmp_path / "run" / "epoch-0003.pt", [])


def test_a_failed_save_makes_the_next_one_due_after_five_minutes(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointStore(tmp_path, say=lambda line: None) as store:
        saver = Saver(store, minutes=0, extra={})
        saver.save({}, epoch=1, step=3)
        saver.wait()
        assert not saver.due
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + outputs.RETRY_SECONDS + 1)
        assert saver.due
        disk.full = False
        saver.save({}, epoch=1, step=9)
        saver.wait()
        assert not saver.due and names(tmp_path) == ["epoch-0001-step-000009.pt", "latest"]


def test_small_files_are_written_when_they_can_be_and_the_newest_wins(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    files = Outputs(lines.append)
    files.write(tmp_path / "a.csv", b"1")
    files.write(tmp_path / "b.json", b"x")
    files.write(tmp_path / "a.csv", b"1\n2")
    assert names(tmp_path) == [] and len(lines) == 1 and "a.csv (No space left on device)" in lines[0]
    files.retry_if_due()  # not yet
    disk.full = False
    files.retry_if_due()
    assert names(tmp_path) == []
    monkeypatch.setattr(outputs, "RETRY_SECONDS", 0.0)
    files.retry_if_due()
    assert (tmp_path / "a.csv").read_bytes() == b"1\n2" and names(tmp_path) == ["a.csv", "b.json"]
    assert lines[1:] == ["all files of the run can be written again"]


def test_the_end_waits_and_then_says_what_is_missing(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_PAUSE", 0.01)
    files = Outputs(lambda line: None)
    files.write(tmp_path / "metrics.csv", b"1")
    with CheckpointStore(tmp_path, say=lambda line: None) as store:
        store.save({}, epoch=2)
        with pytest.raises(OutputError, match=r"after 0.1 s .*epoch-0002.pt .*there: none; .*metrics.csv .*--resume") as raised:  # fmt: skip  # noqa: E501
            finish_writing([store, files], 0.1)
        assert raised.value.exit_status == 1
        disk.full = False
        finish_writing([store, files], 0.0)
    assert names(tmp_path) == ["epoch-0002.pt", "latest", "metrics.csv"]


def test_leftovers_of_a_killed_run_go(tmp_path: Path) -> None:
    for name in (".epoch-0001.pt.77.tmp", ".latest.77.tmp", ".metrics.csv.77.tmp", ".settings.json.77.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".mine.tmp").touch()
    with CheckpointStore(tmp_path) as store:
        store.save({}, epoch=1)
    assert names(tmp_path) == [".mine.tmp", "epoch-0001.pt", "latest"]


@pytest.mark.parametrize("error", [DataError("one broken image"), FileNotFoundError(2, "gone"), ValueError("x")])
def test_an_evaluation_that_fails_leaves_its_row_out(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cltt.config import DataSettings, TrainSettings, WindowSettings

    def evaluator(encoder: Any) -> Any:
        raise error

    settings = TrainSettings(windows=WindowSettings(), data=DataSettings(shards="s"))
    model = torch.nn.Linear(1, 1)
    stop = StopSignals()
    evaluate = factory._evaluation(settings, model, evaluator, History(), stop)  # type: ignore[arg-type]
    stop.restore()
    assert evaluate() == {}
    assert f"no evaluation this time: {error}; training goes on" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "none", disk]).returncode:
        pytest.skip("needs root, to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_a_sentence_and_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    shards = training.make_shards(tmp_path)
    run = small_disk / "run"
    arguments = training.flags(shards, run, "--resume", "--io-patience", "1", "--epochs", "2")
    (small_disk / "ballast").write_bytes(b"x" * 40_000)
    status, output = training.run_tiny(arguments, tmp_path / "losses")
    assert status == 1 and "Traceback" not in output, output
    assert "not written after 1 s of retries" in output and "epoch-0002.pt" in output
    assert output.count("cannot save") == 1
    assert len((tmp_path / "losses").read_text().split()) == 24  # training went on
    assert not list(run.glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    (small_disk / "ballast").unlink()
    status, output = training.run_tiny(arguments, tmp_path / "losses-again")
    assert status == 0 and (run / "epoch-0002.pt").is_file() and (run / "metrics.csv").read_text().count("\n") == 3


@pytest.mark.slow
def test_a_board_that_cannot_be_written_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from cltt.training.records import Board

    (tmp_path / "file").touch()
    board = Board(tmp_path / "file" / "tensorboard", 0)
    board.add({"loss": 1.0}, 1)
    board.add({"loss": 1.0}, 2)
    assert capsys.readouterr().out.count("cannot be written") == 1
    (tmp_path / "file").unlink()
    board.add({"loss": 1.0}, 3)
    board.close()
    assert len(list((tmp_path / "file" / "tensorboard").iterdir())) == 1
