"""Runs that are killed, signalled and resumed, or spread over ranks, against unbroken ones in one process."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from cltt import checkpoint
from tests.helpers import training
from tests.helpers.fork_server import Child
from tests.helpers.tiny_run import read_losses

EPOCHS, STEPS = 4, 48
GOLDEN = Path(__file__).parents[1] / "golden" / "losses_cpu.txt"
GOLDEN_TOLERANCE = 2e-3  # JPEG and convolution code differ in their last bits between versions and processors


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run, with BatchNorm, that nothing disturbed; its losses lie in ``losses``."""
    folder = tmp_path_factory.mktemp("unbroken")
    arguments = training.flags(shards, folder / "run", "--eval-data", str(shards))
    status, output = training.run_tiny(arguments, folder / "losses", TINY_NORM="1")
    assert status == 0, output
    assert len(read_losses(folder / "losses")) == STEPS
    return folder


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(run_dir / f"epoch-{EPOCHS:04d}.pt")["model"]


def assert_same_end(run_dir: Path, unbroken: Path) -> None:
    """Final weights and the CSV files of ``run_dir`` are those of the unbroken run, to the last bit."""
    expected = final_weights(unbroken / "run")
    found = final_weights(run_dir)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logs = sorted(path.name for path in (unbroken / "run").glob("metrics*.csv"))
    assert logs in (["metrics.csv"], ["metrics.csv", "metrics_eval.csv"])
    for name in logs:
        assert (run_dir / name).read_bytes() == (unbroken / "run" / name).read_bytes()


def follow(process: Child, losses: Path, lines: int) -> None:
    """Wait until the loss log has ``lines`` lines; fail with the output if the process ends before."""
    while not (losses.is_file() and losses.read_text().count("\n") >= lines):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_ten_random_moments(shards: Path, unbroken: Path, tmp_path: Path) -> None:
    """Each start repeats the steps since the last checkpoint with the same losses, and goes on with the same ones."""
    rng = random.Random(7)
    expected = read_losses(unbroken / "losses")
    arguments = training.flags(shards, tmp_path / "run", "--eval-data", str(shards))
    arguments += ["--resume", "--checkpoint-minutes", "0.0005"]
    logs = [tmp_path / f"losses-{start}" for start in range(11)]
    for losses in logs[:-1]:
        process = training.start_tiny(arguments, losses, TINY_NORM="1")
        follow(process, losses, rng.randint(1, 2))
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    status, output = training.run_tiny(arguments, logs[-1], TINY_NORM="1")
    assert status == 0, output
    seen: set[int] = set()
    for losses in logs:
        found = read_losses(losses)
        place = next(i for i in range(STEPS) if expected[i : i + len(found)] == found)
        seen.update(range(place, place + len(found)))
    assert seen == set(range(STEPS))
    assert_same_end(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGUSR1, 85), (signal.SIGTERM, 85), (signal.SIGINT, 130)])
def test_a_signal_saves_within_the_epoch(
    number: signal.Signals, status: int, shards: Path, unbroken: Path, tmp_path: Path
) -> None:
    arguments = training.flags(shards, tmp_path / "run", "--eval-data", str(shards), "--resume")
    process = training.start_tiny(arguments, tmp_path / "losses", TINY_NORM="1")
    follow(process, tmp_path / "losses", 3)
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(number)  # a second one while it saves changes nothing
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status and "the same command continues from" in output, output
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run")
    assert checkpoint.position(saved)[1] == len(read_losses(tmp_path / "losses")) % (STEPS // EPOCHS)
    status, output = training.run_tiny(arguments, tmp_path / "losses", TINY_NORM="1")
    assert status == 0, output
    assert read_losses(tmp_path / "losses") == read_losses(unbroken / "losses")
    assert_same_end(tmp_path / "run", unbroken)


def test_a_resumed_run_reads_its_checkpoint_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = training.flags(shards, tmp_path / "run", "--epochs", "2")
    assert training.run_here(arguments, stop_after=5)[0] == 85
    read, real = [], checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda path: read.append(path.name) or real(path))
    status, losses = training.run_here([*arguments, "--resume"])
    assert status == 0 and len(losses) == 2 * 12 - 5
    assert read == ["epoch-0000-step-000005.pt"]


def test_what_the_loss_remembers_is_saved(shards: Path, tmp_path: Path) -> None:
    """A run that stops within an epoch and goes on makes the losses of one that does not, to the last bit."""
    more = ("--memory", "40", "--hard-negatives", "0.5", "--epochs", "1", "--resume")
    status, unbroken = training.run_here(training.flags(shards, tmp_path / "one", *more))
    assert status == 0
    arguments = training.flags(shards, tmp_path / "two", *more)
    first, second = training.run_here(arguments, stop_after=5), training.run_here(arguments)
    assert (first[0], second[0]) == (85, 0)
    assert first[1] + second[1] == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--memory", "40", "--hard-negatives", "0.5")], ids=["plain", "weighted"])
def test_two_ranks_make_the_steps_of_one(more: tuple[str, ...], shards: Path, tmp_path: Path) -> None:
    """Without BatchNorm two gloo ranks give one process's losses; so does a run that changes to one rank midway."""
    arguments = training.flags(shards, tmp_path / "one", *more)
    status, output = training.run_tiny(arguments, tmp_path / "losses-one")
    assert status == 0, output
    arguments = training.flags(shards, tmp_path / "two", "--resume", *more)
    port = training.free_port()
    ranks = [
        training.start_tiny(arguments, tmp_path / "losses-two", **training.rank_environment(rank, 2, port))
        for rank in range(2)
    ]
    follow(ranks[0], tmp_path / "losses-two", 5)
    ranks[1].send_signal(signal.SIGUSR1)  # one rank alone hears it; both must stop after the same step
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [85, 85], outputs
    status, output = training.run_tiny(arguments, tmp_path / "losses-two")
    assert status == 0, output
    one, two = read_losses(tmp_path / "losses-one"), read_losses(tmp_path / "losses-two")
    assert len(one) == len(two) == STEPS
    assert two == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
def test_losses_are_the_golden_ones(unbroken: Path) -> None:
    """``tests/golden/losses_cpu.txt``: the unbroken run above, one loss a line."""
    golden = [float(line) for line in GOLDEN.read_text().split()]
    assert read_losses(unbroken / "losses") == pytest.approx(golden, abs=GOLDEN_TOLERANCE)
