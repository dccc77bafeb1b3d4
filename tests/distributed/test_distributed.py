"""Who a rank is, devices and the collectives: in one process, and over two gloo processes with different data."""

from __future__ import annotations

import os
import pickle
import pty
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from cltt import distributed
from cltt.distributed import RankInfo, pick_device, rank_info
from cltt.errors import DataError, FrameError, SettingsError
from tests.helpers import training


def test_rank_info_comes_from_torchrun_or_slurm() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    job = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # a batch script, not a task
    step = {**job, "SLURM_PROCID": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}
    assert rank_info({}) == RankInfo(0, 1, 0)
    assert rank_info(torchrun) == RankInfo(3, 8, 1)
    assert rank_info(step) == RankInfo(2, 4, 0)
    assert rank_info({**step, **torchrun}) == RankInfo(3, 8, 1)
    for alone in (job, {**job, "SLURM_STEP_ID": "0"}, {**job, "SLURM_STEP_NUM_TASKS": "1"}):
        assert rank_info(alone) == RankInfo(0, 1, 0)
    with pytest.raises(SettingsError, match=r"RANK=8 .*`unset RANK`"):
        rank_info({**torchrun, "RANK": "8"})


SAYS_RANK = "from cltt.distributed.identity import rank_info; print(rank_info())"


def test_the_terminal_of_srun_is_one_process_and_steps_started_there_are_not() -> None:
    """`srun -n 2 --pty bash`, and `srun -n 2 train.py` in that shell, which inherits SLURM_PTY_PORT."""
    step = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_PTY_PORT": "4000"}
    environment = {**os.environ, **step, "PYTHONPATH": str(training.ROOT)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", SAYS_RANK], environment)
    assert str(RankInfo(0, 1, 0)) in os.read(terminal, 1000).decode()
    os.close(terminal)
    os.waitpid(pid, 0)
    command = [sys.executable, "-c", SAYS_RANK]
    task = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert task.stdout.strip() == str(RankInfo(0, 2, 0))


def test_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    expected = r"SLURM_PROCID=0 and SLURM_STEP_NUM_TASKS=2 .*MASTER_ADDR and MASTER_PORT not set.*`unset SLURM_PROCID`"
    with pytest.raises(SettingsError, match=expected):
        distributed.start(rank_info(), cuda=False)


def test_pick_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu", RankInfo()) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto", RankInfo()) == torch.device("cpu")
    with pytest.raises(SettingsError, match="cuda asked for, but torch finds only: cpu"):
        pick_device("cuda", RankInfo())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto", RankInfo()) == torch.device("mps")
    with pytest.raises(SettingsError, match="several ranks"):
        pick_device("mps", RankInfo(1, 2, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match="local rank 1 has no GPU"):
        pick_device("auto", RankInfo(1, 2, 1))


@pytest.mark.parametrize("error", [SettingsError("a"), DataError("b"), FrameError(3, "clip/f.jpg", "CRC mismatch")])
def test_errors_travel_between_ranks(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def test_one_process_needs_no_group() -> None:
    x = torch.arange(3)
    assert distributed.all_gather_rows(x) is x
    assert distributed.all_gather_objects("a") == ["a"]
    assert distributed.from_main(lambda: 5) == 5
    assert distributed.agreed("x", "it") == "x"
    distributed.wait_for_all()
    distributed.stop()


TWO_RANKS = """
import torch
from cltt import distributed
from cltt.errors import DataError, SettingsError
info = distributed.rank_info()
cpu = torch.device("cpu")
distributed.start(info, cuda=False)
rank = info.rank
assert distributed.world().rank == rank and distributed.world().world_size == 2
rows = distributed.all_gather_rows(torch.full((2, 3), float(rank)))
assert rows[:, 0].tolist() == [0, 0, 1, 1], rows
assert distributed.all_gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
assert distributed.from_main(lambda: f"of {rank}") == "of 0"

def fail():
    raise SettingsError(f"from {rank}")

try:
    distributed.from_main(fail)
except SettingsError as error:
    assert str(error) == "from 0"
else:
    raise AssertionError("rank 0's error must reach every rank")
assert distributed.agreed(rank // 2, "their half") == 0
try:
    distributed.agreed(rank, "their number")
except DataError as error:
    assert "do not agree on their number: rank 0 0, rank 1 1" in str(error)
else:
    raise AssertionError("ranks that differ must not go on")
distributed.wait_for_all()
distributed.stop()
print("fine")
"""


def test_collectives_over_two_processes() -> None:
    port = training.free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS],
            cwd=training.ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **training.rank_environment(rank, 2, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert all("fine" in output for output in outputs)


ALONE = """
import torch.distributed  # as training has by then; an import may swallow what a signal raises
from cltt import distributed
from cltt.training.signals import StopSignals
StopSignals("", 85)
print("waits", flush=True)
distributed.start(distributed.rank_info(), cuda=False)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_says_for_whom_it_waits_and_names_who_never_came(rank: int) -> None:
    port = training.free_port()
    impatient = ALONE.replace("\ndistributed.start", "\nfrom cltt.distributed import group\n{}distributed.start")
    code = impatient.format("group.TELL_AFTER, group.TIMEOUT = 0.5, 2.0\n")
    command, own = [sys.executable, "-c", code], training.rank_environment(rank, 3, port)
    done = subprocess.run(command, cwd=training.ROOT, env={**os.environ, **own}, capture_output=True, text=True)
    place = f"MASTER_ADDR=127.0.0.1, MASTER_PORT={port}"
    awaited, sentence = (
        (f"rank 0 ({place})", f"rank 0 did not answer at {place} for 2 s")
        if rank
        else ("rank 1, rank 2", "ranks [1, 2] did not connect to rank 0 within 2 s")
    )
    assert f"waiting for {awaited}, because of RANK={rank} and WORLD_SIZE=3" in done.stderr
    assert f"DataError: {sentence}" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_the_others_ends_when_it_is_told_to(rank: int) -> None:
    own = training.rank_environment(rank, 2, training.free_port())
    command = [sys.executable, "-c", ALONE]
    with subprocess.Popen(command, cwd=training.ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE) as alone:
        try:
            assert alone.stdout is not None and alone.stdout.readline() == b"waits\n"
            time.sleep(0.5)
            alone.send_signal(signal.SIGUSR1)
            assert alone.wait(timeout=60) == 85
        finally:
            alone.kill()


def test_a_rank_ends_when_it_is_told_to_after_rank_0_has_died_while_it_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rank_0:
        own = training.rank_environment(1, 2, rank_0.getsockname()[1])
        command = [sys.executable, "-c", ALONE]
        with subprocess.Popen(command, cwd=training.ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE) as alone:
            try:
                rank_0.accept()[0].close()  # it listens, so the rank connects; then it is gone
                rank_0.close()
                time.sleep(2)
                alone.send_signal(signal.SIGUSR1)
                assert alone.wait(timeout=60) == 85
            finally:
                alone.kill()
