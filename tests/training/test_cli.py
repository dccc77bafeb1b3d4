"""``train.py``: its flags, its refusals, and runs from a folder of frames to curves."""

from __future__ import annotations

import csv
import fcntl
import importlib.util
import json
import logging
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import pytest

from cltt import cli
from cltt.commands import train
from tests.helpers import data, training
from tests.helpers.fork_server import fork_server

TINY = ["--window-size", "3", "--frame-step", "2", "--batch-size", "8", "--image-size", "32", "--epochs", "1"]
TINY += ["--max-batches-per-epoch", "2", "--num-workers", "1", "--device", "cpu"]


def run_train(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run train.py with the tiny model, in ``cwd``."""
    env = {**os.environ, "LOSSES": str(cwd / "losses"), **environment}
    return fork_server().run("tests.helpers.tiny_run", arguments, env, folder=cwd)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips under a path with spaces."""
    return data.make_clips(tmp_path_factory.mktemp("Some Disk") / "cropped images", {"a/one": 30, "a/two": 25})


def test_defaults() -> None:
    settings = train.parse(["--shards", "x"]).to_dict()
    wanted = {
        "window_size": 5, "frame_step": 10, "window_stride": 1, "batch_size": 64, "epochs": 25, "num_workers": 4,
        "image_size": 224, "backbone": "resnet18", "proj_dim": 128, "temperature": 0.5, "lr": 1e-3,
        "weight_decay": 1e-4, "max_grad_norm": 1.0, "split": None, "augment": "none", "shuffle_frames": False,
        "optimizer": "adam", "momentum": None, "schedule": "epochs", "warmup_steps": 0, "proj_hidden": None,
        "proj_layers": 2,
    }  # fmt: skip
    found = {name: value for group in settings.values() for name, value in group.items()}
    assert {name: found[name] for name in wanted} == wanted


def test_the_command_people_use_is_understood() -> None:
    settings = train.parse(
        [
            *("--root-dir", "/Volumes/Some Disk/cropped_images", "--window-size", "5", "--frame-step", "2"),
            *("--window-stride", "10", "--batch-size", "16", "--epochs", "25", "--num-workers", "4"),
            *("--checkpoint-dir", "checkpoints/ws5_fs2_wstr10", "--csv-log"),
            *("--csv-log-path", "checkpoints/ws5_fs2_wstr10/metrics.csv"),
        ]
    )
    assert settings.data.root_dir == "/Volumes/Some Disk/cropped_images"
    assert settings.csv_path == Path("checkpoints/ws5_fs2_wstr10/metrics.csv")
    assert settings.eval_csv_path == Path("checkpoints/ws5_fs2_wstr10/metrics_eval.csv")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--root-dir", "{tmp}/nowhere"], ["nowhere", "is not a folder"]),
        (["--root-dir", "{tmp}/empty"], ["empty", "no frames"]),
        (["--root-dir", "{tmp}/sidecars"], ["sidecars", "no frames"]),
        (["--shards", "{tmp}/nowhere"], ["nowhere"]),
        ([], ["--root-dir", "--shards"]),
        (["--shards", "x", "--backbone", "VGG"], ["--backbone", "VGG", "resnet18"]),
        (["--shards", "x", "--batch-size", "many"], ["--batch-size", "many"]),
        (["--shards", "x", "--batch-size", "0"], ["batch_size is 0"]),
        (["--shards", "x", "--no-such-flag"], ["there is no flag --no-such-flag (see"]),
        (["--shards", "x", "--frame-stp=3"], ["--frame-stp; did you mean --frame-step?"]),
        (["--shards", "x", "--momentum", "0.9"], ["--momentum needs --optimizer sgd", "the optimizer is adam"]),
        (["--shards", "x", "--optimizer", "lars"], ["--optimizer", "lars", "adamw"]),
        (["--shards", "x", "--schedule", "steps"], ["--schedule", "steps", "cosine"]),
        (["--shards", "x", "--proj-layers", "4"], ["proj_layers is 4; it must be from 2 to 3"]),
        (["--shards", "x", "--csv-log-path", "a.csv"], ["a.csv", "--csv-log"]),
        (["--shards", "x", "--root-dir", "y"], ["--root-dir", "--shards"]),
        (["--root-dir", "{frames}", "--frame-step", "100"], ["30", "window"]),
        (["--root-dir", "{frames}", "--batch-size", "1000", "--frame-step", "1"], ["1000"]),
        (["--root-dir", "{frames}", "--frame-step", "0"], ["--augment none", "crop or simclr"]),
        (
            [
                "--root-dir",
                "{frames}",
                "--frame-step",
                "1",
                "--batch-size",
                "8",
                "--epochs",
                "1",
                "--warmup-steps",
                "99",
            ],
            ["--warmup-steps is 99, but the run has 5 steps"],
        ),
        (["--root-dir", "{frames}", "--frame-step", "1", "--split", "val"], ["val", "none"]),
        (["--shards", "x", "--window-size", "1"], ["--window-size is 1", "2 or more"]),
        (["--shards", "x", "--image-size", "7"], ["image_size is 7", "16"]),
        (["--root-dir", "{frames}", "--checkpoint-dir", "{tmp}/afile"], ["afile", "file of that name", "--checkpoint"]),
        (["--root-dir", "{frames}", "--checkpoint-dir", "{tmp}/afile/x"], ["afile/x", "--checkpoint-dir"]),
        (["--root-dir", "{frames}", "--checkpoint-dir", "/proc/x"], ["/proc/x", "--checkpoint-dir"]),
        (["--root-dir", "{frames}", "--csv-log", "--csv-log-path", "/proc/x/m.csv"], ["/proc/x", "--csv-log-path"]),
        (["--root-dir", "{frames}", "--csv-log", "--csv-log-path", "{tmp}"], ["is a folder", "--csv-log-path"]),
        (["--root-dir", "{frames}", "--eval-data", "{tmp}/nowhere"], ["nowhere", "evaluation data"]),
        (
            ["--root-dir", "{frames}", "--frame-step", "1", "--batch-size", "8", "--checkpoint-path", "{tmp}/no.pt"],
            ["no.pt"],
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str],
    parts: list[str],
    frames: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "sidecars" / "clip").mkdir(parents=True)
    (tmp_path / "sidecars" / "clip" / "._frame_1.jpg").write_bytes(b"\x00\x05\x16\x07")
    filled = [argument.format(tmp=tmp_path, frames=frames) for argument in arguments]
    error = training.refusal([*filled, "--device", "cpu"], capsys)
    assert all(part in error for part in parts), error
    assert not (tmp_path / "checkpoints").exists()  # what is refused leaves no run behind


def test_warnings_are_one_line_each_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        warnings.warn("beware", stacklevel=1)
        warnings.warn("beware", stacklevel=1)
        logging.getLogger("cltt.some_module").warning("frame %d is bad", 3)
        return 5

    with pytest.raises(SystemExit) as exit:
        cli.run(main, "prog")
    assert exit.value.code == 5
    assert capsys.readouterr().err == "warning: beware\nwarning: frame 3 is bad\n"


def test_only_a_closed_output_ends_quietly() -> None:
    """``| head`` is no error; a pipe to something else that breaks is one."""
    code = "from cltt import cli\ncli.run(lambda: [print(i) for i in range(10**5)] and 0, 'prog')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()

    def worker_died() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        cli.run(worker_died, "prog")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_while_torch_is_imported_asks_to_be_run_again(name: str, tmp_path: Path) -> None:
    slow = "print('importing', flush=True)\nimport time\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(slow)
    command = [sys.executable, str(training.ROOT / "train.py"), "--shards", "x"]
    path = os.pathsep.join([str(tmp_path), str(training.ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "importing\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=30) == 85


@pytest.mark.parametrize("rows_and_columns", [(0, 0), (24, 80)])
def test_the_bar_moves_on_a_terminal(rows_and_columns: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on one that does not know its size."""
    import torch

    from cltt.training.progress import Progress

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *rows_and_columns, 0, 0))
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = Progress(
            total_steps=400,
            done_steps=0,
            steps_per_epoch=4,
            batch_size=1000,
            wait_share=lambda: 0.125,
            device=torch.device("cpu"),
        )
        for _ in range(3):
            time.sleep(0.12)  # tqdm draws at most every 0.1 s
            progress.step(1.25)
        terminal.flush()
        seen = b""
        while b" 3/400" not in seen or not seen.endswith(b"%"):  # a terminal hands over what it has so far
            assert select.select([screen], [], [], 10)[0], seen
            seen += screen.read(10_000)
        shown = seen.decode().split("\r")
        progress.close()
    for step in (1, 2, 3):
        (line,) = (line for line in shown if f" {step}/400" in line)
        assert "train " in line and "loss 1.250" in line and "windows/s" in line, line
        assert line.rstrip().endswith("waiting for data 12%"), line


def test_a_working_folder_that_takes_no_shards_names_the_way_out(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cltt.config import DataSettings
    from cltt.errors import SettingsError
    from cltt.training import factory

    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").write_text("no folder")
    with pytest.raises(SettingsError, match=r"cannot write to .*shards: .*give --shards, or start in another"):
        factory.open_dataset(DataSettings(root_dir=str(frames)))


@pytest.mark.slow
def test_a_folder_with_spaces_becomes_a_run(frames: Path, tmp_path: Path) -> None:
    """Shards, checkpoint, both CSV files, settings, curves; a second start without --resume is refused."""
    arguments = ["--root-dir", str(frames), *TINY, "--checkpoint-dir", "runs/my run", "--csv-log"]
    arguments += ["--csv-log-path", "runs/my run/metrics.csv", "--eval-data", str(frames.parent / "cropped images")]
    arguments += ["--tensorboard"] if importlib.util.find_spec("tensorboard") else []
    done = run_train(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "my run"
    for name in ("epoch-0001.pt", "latest", "settings.json", "evaluation.json", "plots.png"):
        assert (run / name).stat().st_size > 0
    assert (run / "metrics.csv").read_text().startswith("epoch,loss,learning_rate,decay_rate\n1,")
    assert json.loads((run / "settings.json").read_text())["data"]["root_dir"] == str(frames)
    assert "complete" in done.stdout
    if "--tensorboard" in arguments:
        assert len(list((run / "tensorboard").iterdir())) == 1
    again = run_train(arguments, tmp_path)
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = run_train([*arguments, "--resume"], tmp_path)
    assert resumed.returncode == 0 and "resuming" in resumed.stdout


@pytest.mark.slow
def test_a_second_run_in_the_folder_of_a_running_one_is_refused(tmp_path: Path) -> None:
    from cltt.files.locks import locked

    arguments = ["--shards", str(training.make_shards(tmp_path)), *TINY, "--checkpoint-dir", "run"]
    with locked(tmp_path / "run" / ".lock"):
        refused = run_train(arguments, tmp_path)
    assert refused.returncode == 2 and "give another --checkpoint-dir" in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1 and f"process {os.getpid()}" in refused.stderr
    assert not list((tmp_path / "run").glob("epoch-*"))
    assert run_train(arguments, tmp_path).returncode == 0


def test_a_folder_that_others_saved_in_meanwhile_is_refused(tmp_path: Path) -> None:
    from contextlib import ExitStack

    from cltt.config import CheckpointSettings, DataSettings, TrainSettings, WindowSettings
    from cltt.errors import DataError
    from cltt.training import run as run_module

    settings = TrainSettings(
        windows=WindowSettings(),
        data=DataSettings(shards="s"),
        checkpoint=CheckpointSettings(checkpoint_dir=str(tmp_path / "run")),
    )
    with ExitStack() as stack:
        run_module._hold_run_dir(stack, settings, [])
    (tmp_path / "run" / "epoch-0001.pt").touch()
    with ExitStack() as stack, pytest.raises(DataError, match="while this one started"):
        run_module._hold_run_dir(stack, settings, [])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr", "inf"], "lr is inf; it must be from"),
        (["--csv-log", "--csv-log-path", "a.csv", "--eval-csv-log-path", "a.csv"], "both name a.csv"),
        (["--cache-gb", "1e300"], "cache_gb is 1e+300; it must be from"),
        (["--stage-to", "/proc/nowhere"], "give another --stage-to"),
        (["--stage-to", "$SLURM_TMPDIR/cltt"], "no shell has replaced the $; give another --stage-to"),
        # https://github.com/OPM/opm-simulators/issues/5063: a folder of the name ~
        (["--batch-size", "1"], "--batch-size is 1; the loss needs windows to compare"),
        (["--shards", "shard"], "there is no folder shard; did you mean shards? (. holds shards); build"),
        (["--checkpoint-dir=~/run"], "no shell has replaced the ~; give another --checkpoint-dir"),
    ],
)
def test_values_that_would_lose_something_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    arguments = ["--shards", str(training.make_shards(tmp_path)), *TINY, *flags]
    done = run_train(arguments, tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("source", ["--shards", "--root-dir"])
def test_a_wrong_path_is_said_before_what_the_folder_of_the_run_holds(source: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "epoch-0001.pt").touch()
    done = run_train([source, "nowhere", *TINY, "--checkpoint-dir", "run"], tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and "holds a run" not in done.stderr, done.stderr


@pytest.mark.slow
def test_resume_refuses_other_settings_and_data_naming_each(frames: Path, tmp_path: Path) -> None:
    shards = training.make_shards(tmp_path)
    arguments = ["--shards", str(shards), *TINY, "--checkpoint-dir", "run", "--resume"]
    fresh = run_train(arguments, tmp_path)
    assert fresh.returncode == 0 and "no checkpoint in run: starting fresh" in fresh.stdout, fresh.stderr
    other = run_train([*arguments, "--lr", "0.5", "--frame-step", "1", "--num-workers", "2"], tmp_path)
    assert other.returncode == 2
    assert "lr is 0.5 and was 0.001" in other.stderr and "frame_step is 1 and was 2" in other.stderr
    assert "num_workers" not in other.stderr
    data.make_clips(tmp_path / "frames", {"c/three": 20})
    changed = run_train(["--root-dir", str(tmp_path / "frames"), *arguments[2:]], tmp_path)
    assert changed.returncode == 2 and "fingerprint" in changed.stderr
    (tmp_path / "run" / "epoch-0001.pt").write_bytes(b"damaged")
    broken = run_train(arguments, tmp_path)
    assert broken.returncode == 2 and "damaged" in broken.stderr


@pytest.mark.slow
def test_checkpoint_path_starts_a_new_run_from_weights(tmp_path: Path) -> None:
    import torch

    from cltt import checkpoint

    shards = training.make_shards(tmp_path)
    first = run_train(["--shards", str(shards), *TINY, "--checkpoint-dir", "first"], tmp_path)
    assert first.returncode == 0, first.stderr
    arguments = ["--shards", str(shards), *TINY, "--checkpoint-dir", "second", "--checkpoint-path"]
    second = run_train([*arguments, "first/epoch-0001.pt", "--lr", "1e-12", "--csv-log"], tmp_path)
    assert second.returncode == 0, second.stderr
    weights = [checkpoint.load(tmp_path / run / "epoch-0001.pt")["model"] for run in ("first", "second")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-6, rtol=0)
    with open(tmp_path / "second" / "metrics.csv") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1"]
    (tmp_path / "first" / "epoch-0001.pt").rename(tmp_path / "first" / "gone")
    resumed = run_train([*arguments, "first/epoch-0001.pt", "--lr", "1e-12", "--resume"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr  # the weights to start from are not needed any more
    (tmp_path / "first" / "gone").rename(tmp_path / "first" / "epoch-0001.pt")
    wrong = run_train([*arguments[:-2], "third", "--checkpoint-path", "first", "--proj-dim", "4"], tmp_path)
    assert wrong.returncode == 2 and "--proj-dim" in wrong.stderr, wrong.stderr


@pytest.mark.slow
def test_staged_shards_are_copied_once_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cltt.config import DataSettings
    from cltt.errors import DataError
    from cltt.training import factory

    shards = training.make_shards(tmp_path)
    settings = DataSettings(shards=str(shards), stage_to=str(tmp_path / "node disk"))
    original, staged = factory.open_dataset(DataSettings(shards=str(shards))), factory.open_dataset(settings)
    assert staged.fingerprint == original.fingerprint
    assert staged.read([0, 17]) == original.read([0, 17])
    (copy,) = (path for path in (tmp_path / "node disk").iterdir() if path.is_dir())
    tar = copy / "shard-000000.tar"
    first = tar.stat().st_mtime_ns
    factory.open_dataset(settings)
    assert tar.stat().st_mtime_ns == first
    # A copy that was interrupted: one shard cut short, no index. The shard is copied again, the rest is kept.
    (copy / "index.json").unlink()
    tar.write_bytes(tar.read_bytes()[:1000])
    factory.open_dataset(settings)
    assert tar.read_bytes() == (shards / "shard-000000.tar").read_bytes()
    damaged = bytearray((shards / "shard-000000.tar").read_bytes())
    damaged[2000] ^= 1
    (shards / "shard-000000.tar").write_bytes(damaged)
    shutil.rmtree(copy)
    with pytest.raises(DataError, match="size and hash"):
        factory.open_dataset(settings)
