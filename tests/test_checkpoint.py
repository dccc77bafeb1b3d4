"""Checkpoints: whole or absent, the newest intact one found, old ones removed by rule."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cltt import checkpoint
from cltt.checkpoint import CheckpointStore
from cltt.errors import DataError, SettingsError
from cltt.files import atomic
from cltt.training.records import COMPLETE_FILE, FIRST_STEP_FILE, PLOT_FILE


def save_epochs(folder: Path, epochs: int, **options: int) -> None:
    with CheckpointStore(folder, **options) as store:
        for epoch in range(1, epochs + 1):
            store.save({"weights": torch.full((1000,), float(epoch))}, epoch=epoch)


def flip_bytes(path: Path) -> None:
    """Change 16 bytes in the middle, where the tensor lies."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(byte ^ 0x55 for byte in data[middle : middle + 16])
    path.write_bytes(data)


def test_state_comes_back_with_plain_torch_load(tmp_path: Path) -> None:
    state = {"t": torch.randn(3), "rng": [torch.get_rng_state()], "n": {"epoch": 3, "loss": 0.1}, "name": "x"}
    with CheckpointStore(tmp_path) as store:
        path = store.save(state, epoch=3, step=120)
    assert path.name == "epoch-0003-step-000120.pt"
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["t"], state["t"])
    assert torch.equal(found["rng"][0], state["rng"][0])
    assert found["n"] == state["n"]


def test_the_saved_state_is_that_of_the_call(tmp_path: Path) -> None:
    """Training goes on while the file is written; what it changes must not get into the file."""
    weights = torch.zeros(1_000_000)
    with CheckpointStore(tmp_path) as store:
        path = store.save({"weights": weights}, epoch=1)
        weights.fill_(1)
    assert checkpoint.load(path)["weights"].sum() == 0


def test_the_last_and_every_nth_are_kept(tmp_path: Path) -> None:
    save_epochs(tmp_path, 9, keep_last=2, keep_every=4)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == [
        f"epoch-{epoch:04d}.pt" for epoch in (4, 8, 9)
    ]


def test_checkpoints_within_an_epoch_are_ordered_and_not_kept_for_ever(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, keep_last=2, keep_every=1) as store:
        for epoch, step in [(1, 0), (1, 900), (1, 1000000), (2, 0), (2, 5)]:
            store.save({}, epoch=epoch, step=step)
    names = [path.name for path in checkpoint.list_checkpoints(tmp_path)]
    assert names == ["epoch-0001.pt", "epoch-0002.pt", "epoch-0002-step-000005.pt"]
    assert (tmp_path / "latest").read_text() == "epoch-0002-step-000005.pt\n"


@pytest.mark.parametrize("damage", [flip_bytes, lambda path: path.write_bytes(path.read_bytes()[:-100])])
def test_a_damaged_latest_falls_back_with_a_warning(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    save_epochs(tmp_path, 3)
    damage(tmp_path / "epoch-0003.pt")
    path, _, warnings = checkpoint.find_latest(tmp_path)
    assert path == tmp_path / "epoch-0002.pt"
    assert len(warnings) == 1 and "epoch-0003.pt" in warnings[0] and "damaged" in warnings[0]
    assert not (tmp_path / "epoch-0003.pt").exists()
    assert (tmp_path / "epoch-0003.pt.damaged").exists()


def test_a_missing_latest_and_a_missing_pointer_fall_back(tmp_path: Path) -> None:
    save_epochs(tmp_path, 3)
    (tmp_path / "epoch-0003.pt").unlink()
    assert checkpoint.find_latest(tmp_path)[::2] == (tmp_path / "epoch-0002.pt", [])
    (tmp_path / "latest").unlink()
    assert checkpoint.find_latest(tmp_path)[::2] == (tmp_path / "epoch-0002.pt", [])


def test_all_damaged_is_an_error_and_none_is_a_fresh_start(tmp_path: Path) -> None:
    assert checkpoint.find_latest(tmp_path / "nowhere")[::2] == (None, [])
    save_epochs(tmp_path, 2)
    for path in checkpoint.list_checkpoints(tmp_path):
        flip_bytes(path)
    with pytest.raises(DataError, match="none of the 2 checkpoints"):
        checkpoint.find_latest(tmp_path)
    assert len(checkpoint.list_checkpoints(tmp_path)) == 2


def test_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"version": 99}, tmp_path / "epoch-0001.pt")
    with pytest.raises(DataError, match="version 99"):
        checkpoint.load(tmp_path / "epoch-0001.pt")


def test_checking_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    atomic.check_writable(tmp_path / "a" / "b", "")
    assert not list(tmp_path.iterdir())
    (tmp_path / "kept" / "run").mkdir(parents=True)
    atomic.check_writable(tmp_path / "kept" / "run" / "new", "")
    atomic.check_writable(tmp_path / "kept", "")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["kept", "run"]
    (tmp_path / "kept" / "file").touch()
    with pytest.raises(SettingsError, match="elsewhere"):
        atomic.check_writable(tmp_path / "kept" / "file", "look elsewhere")


def test_a_folder_is_checked_while_others_check_make_and_use_it(tmp_path: Path) -> None:
    folders = [tmp_path / f"run-{number}" / "kept" for number in range(200)]

    def make_and_use() -> None:
        for folder in folders:
            folder.mkdir(parents=True)
            (folder / "used").touch()

    def check() -> None:
        for folder in folders:
            atomic.check_writable(folder, "")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for work in (check, check, make_and_use, check)]:
            done.result()
    assert sorted(path.parent for path in tmp_path.rglob("used")) == sorted(folders)
    assert len(list(tmp_path.iterdir())) == len(folders)


KILLED_WHILE_SAVING = """
import sys, torch
from pathlib import Path
from cltt.checkpoint import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]), keep_last=2)
print("ready", flush=True)
for epoch in range(1, 100000):
    store.save({"weights": torch.full((200_000,), float(epoch)), "epoch": epoch}, epoch=epoch)
"""


@pytest.mark.slow
def test_killed_while_saving_leaves_whole_checkpoints(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.2 + 0.037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        path, _, warnings = checkpoint.find_latest(tmp_path)
        assert path is not None and warnings == []
        state = checkpoint.load(path)
        assert torch.equal(state["weights"], torch.full((200_000,), float(state["epoch"])))
    with CheckpointStore(tmp_path):  # removes what the killed ones left
        pass
    assert list(tmp_path.glob(".epoch-*.tmp")) == []


def test_a_save_leaves_files_alone_that_the_run_is_writing(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path) as store, atomic.replacing(tmp_path / "metrics.csv") as file:
        store.save({}, epoch=1)
        store.wait()
        file.write(b"1")
    assert (tmp_path / "metrics.csv").read_bytes() == b"1"


def test_a_start_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    ours = [checkpoint.checkpoint_name(1), checkpoint.LATEST, COMPLETE_FILE, FIRST_STEP_FILE, PLOT_FILE]
    ours += [checkpoint.SETTINGS_FILE, "metrics.csv", "evaluation.json"]
    for name in (*ours, "thesis.tex"):
        (tmp_path / f".{name}.77.tmp").write_bytes(b"half")
    with CheckpointStore(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".thesis.tex.77.tmp"]


def test_a_leftover_that_cannot_be_removed_fails_no_save(tmp_path: Path) -> None:
    (tmp_path / ".latest.77.tmp").mkdir()
    with CheckpointStore(tmp_path) as store:
        store.save({}, epoch=1)
        assert store.retry() == ""


def test_a_folder_that_comes_and_goes_holds_no_checkpoints(tmp_path: Path) -> None:
    """Rank 0 tries whether the run's folder can be made while the others look for what is in it."""
    folder, over = tmp_path / "run", threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            folder.mkdir()
            folder.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        assert all(checkpoint.list_checkpoints(folder) == [] for _ in range(2000))
    finally:
        over.set()
        thread.join()
