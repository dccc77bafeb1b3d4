"""The batch scripts on a real Slurm with two nodes: build, train, preempt, requeue, resume, sweep, crash.

Training runs on CPU with gloo: ResNet-18, 32 pixels, a few seconds an unbroken run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from cltt.distributed import RankInfo
from tests.helpers import data
from tests.slurm.conftest import Cluster
from tests.slurm.fakes import LEAKED, REPOSITORY

pytestmark = pytest.mark.slow
TRAIN = str(REPOSITORY / "slurm/train.sbatch")
SMALL = {
    "PYTHON": sys.executable,
    "OMP_NUM_THREADS": "1",
    "NUM_WORKERS": "1",
    "WINDOW_SIZE": "3",
    "FRAME_STEP": "2",
    "WINDOW_STRIDE": "2",
    "BATCH_SIZE": "8",
    "EPOCHS": "5",
    "IMAGE_SIZE": "32",
}
EPOCHS = int(SMALL["EPOCHS"])
STEPS = ["--max-batches-per-epoch", "12", "--device", "cpu"]  # an epoch of about two seconds on two processes
ONE_CPU = "--cpus-per-task=1"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "my clips"
    return data.make_clips(root, {f"day {k}/clip_{k:03d}": 60 for k in range(6)})


@pytest.fixture(scope="module")
def shards(clips: Path) -> Path:
    """The clips, built in one piece without Slurm."""
    out = clips.parent / "my shards"
    build = [sys.executable, str(REPOSITORY / "tools/build_shards.py"), "--root-dir", str(clips), "--out", str(out)]
    subprocess.run([*build, *BUILD_FLAGS], check=True, capture_output=True)
    return out


BUILD_FLAGS = ["--shard-size", "200000"]  # several shards, so that every task has one


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(run: Path) -> str:
    """The text of the CSV file of a run; there is no other where nothing is evaluated."""
    assert not (run / "metrics_eval.csv").exists()
    return (run / "metrics.csv").read_text()


def train(cluster: Cluster, shards: Path, run: str) -> str:
    """Submit the training on two nodes, one process each; the job's id."""
    env = {**SMALL, "SHARDS": str(shards), "CHECKPOINT_DIR": run}
    return cluster.submit("--nodes=2", ONE_CPU, TRAIN, *STEPS, **env)


@pytest.fixture(scope="module")
def unbroken(slurm: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """CSV file of a run that nothing interrupted."""
    cluster = Cluster(tmp_path_factory.mktemp("unbroken") / "my project")
    info = cluster.wait(train(cluster, shards, "a run"))
    assert (info["JobState"], info["Restarts"]) == ("COMPLETED", "0"), cluster.logs()
    return metrics(cluster.folder / "a run")


def test_two_nodes_train_together(unbroken: str) -> None:
    rows = unbroken.splitlines()
    assert rows[0] == "epoch,loss,learning_rate,decay_rate"
    assert [row.split(",")[0] for row in rows[1:]] == [str(epoch) for epoch in range(1, EPOCHS + 1)]


@pytest.mark.parametrize("how", ["USR1", "urgent"])
def test_a_preempted_run_ends_as_if_nothing_had_happened(
    cluster: Cluster, shards: Path, unbroken: str, how: str
) -> None:
    job = train(cluster, shards, "a run")
    cluster.wait_for(job, cluster.folder / "a run/metrics.csv", 2)
    if how == "USR1":
        cluster.call("scancel", "--signal=USR1", "--batch", job)
    else:
        urgent = cluster.submit(
            "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
        )
        assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    info = cluster.wait(job)
    assert (info["JobState"], info["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    assert metrics(cluster.folder / "a run") == unbroken
    (log,) = (cluster.folder / "logs").glob("*.out")  # one file, appended to
    assert [log.read_text().count(words) for words in ("start 1 on", "start 2 on", "slurm: complete")] == [1, 1, 1]


def test_a_cancelled_run_stays_cancelled(cluster: Cluster, shards: Path) -> None:
    job = train(cluster, shards, "a run")
    cluster.wait_for(job, cluster.folder / "a run/metrics.csv", 2)
    cluster.call("scancel", job)
    info = cluster.wait(job)
    assert (info["JobState"], info["Restarts"]) == ("CANCELLED", "0"), cluster.logs()


def test_a_run_that_crashes_is_not_requeued_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    """One process fails and the other would wait for it until the time limit."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$SLURM_PROCID" = 1 ]; then exit 3; fi\nexec sleep 600\n')
    python.chmod(0o755)
    env = {**SMALL, "PYTHON": str(python), "MAX_REQUEUES": "1", "STRAGGLER_WAIT": "1"}
    info = cluster.wait(cluster.submit("--nodes=2", ONE_CPU, TRAIN, **env))
    assert (info["JobState"], info["Restarts"]) == ("FAILED", "1"), cluster.logs()
    assert "not requeued" in cluster.logs()


def python_that(folder: Path, does: str) -> dict[str, str]:
    """Variables for a job whose Python is a shell script."""
    python = folder / "python"
    python.write_text(f"#!/bin/bash\n{does}\n")
    python.chmod(0o755)
    return {**SMALL, "PYTHON": str(python), "CHECKPOINT_DIR": "a run"}


UNTIL_TOLD = """trap 'told=1' USR1
echo started >"a run/started"
for k in {1..600}; do
    if [ "$SLURM_RESTART_COUNT" = 1 ]; then echo epoch 1 >"a run/complete"; exit 0; fi
    if [ -n "${told:-}" ]; then exit 85; fi
    sleep 0.1
done"""
BUSY = """#!/bin/bash
echo x >>"{folder}/$(basename "$0")"
if [ "$(wc -l <"{folder}/$(basename "$0")")" -le 2 ]; then
    echo "slurm_load_jobs error: Socket timed out on send/recv operation" >&2
    exit {status}
fi
exec "/usr/bin/$(basename "$0")" "$@"
"""


@pytest.mark.parametrize("status", [0, 1])
def test_a_controller_that_does_not_answer_for_a_while(cluster: Cluster, tmp_path: Path, status: int) -> None:
    """squeue and scontrol fail twice each at the moment when the job is told to stop: it is requeued all the same."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("squeue", "scontrol"):
        (stubs / name).write_text(BUSY.format(folder=tmp_path, status=status))
        (stubs / name).chmod(0o755)
    env = {**python_that(tmp_path, UNTIL_TOLD), "PATH": f"{stubs}:{os.environ['PATH']}"}
    job = cluster.submit(ONE_CPU, TRAIN, **env)
    cluster.wait_for(job, cluster.folder / "a run/started", 1)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    info = cluster.wait(job)
    assert (info["JobState"], info["Restarts"]) == ("COMPLETED", "1"), cluster.logs()


def test_a_job_submitted_from_within_another(cluster: Cluster, tmp_path: Path) -> None:
    """All that the other job's variables say is forgotten, and --export drops nothing that the training needs."""
    show = 'echo "$SLURM_NTASKS $MASTER_ADDR $CUDA_VISIBLE_DEVICES" >>"a run/seen"; touch "a run/complete"'
    env = {**python_that(tmp_path, show), **LEAKED, "SLURM_NTASKS": "7"}
    nodes = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2")
    job = cluster.submit("--export=PYTHON,CHECKPOINT_DIR,CLTT_HOME," + ",".join(LEAKED), *nodes, ONE_CPU, TRAIN, **env)
    assert cluster.wait(job)["JobState"] == "COMPLETED", cluster.logs()
    assert (cluster.folder / "a run/seen").read_text() == "4 127.0.0.1 0,1\n" * 4


def test_a_step_that_srun_refuses_is_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    info = cluster.wait(cluster.submit(ONE_CPU, TRAIN, **python_that(tmp_path, "exit 0"), SLURM_MPI_TYPE="none_such"))
    assert (info["JobState"], info["ExitCode"], info["Restarts"]) == ("FAILED", "2:0", "0"), cluster.logs()
    assert "was not started: srun: error: Invalid MPI type 'none_such'" in cluster.logs()


def test_a_python_of_another_cpu_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    info = cluster.wait(cluster.submit(ONE_CPU, TRAIN, **python_that(tmp_path, "ulimit -c 0; kill -ILL $$")))
    assert (info["JobState"], info["Restarts"]) == ("FAILED", "1"), cluster.logs()
    assert "Python died before the first step twice" in cluster.logs()


# ---- ranks


ANSWER = "answer 42"
WHO = "from cltt.distributed.identity import rank_info; print('I am', rank_info())"


@pytest.mark.parametrize("way", ["salloc", "srun --pty"])
def test_a_shell_in_a_job_is_one_process_and_its_steps_are_ranks(cluster: Cluster, way: str) -> None:
    """The interactive step of salloc; a pty of a step with two tasks; in both, a step of two tasks."""
    shell = {"salloc": "salloc --ntasks=2", "srun --pty": "srun --ntasks=2 --pty bash --norc"}[way]
    (cluster.folder / "who.py").write_text(WHO)
    who = f"{sys.executable} who.py"
    typed = f"{who}\nsrun --overlap --ntasks=2 {who} </dev/null\nexit\n"
    # The interactive step of salloc runs $SHELL, which a service or a container may not set.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SHELL": "/bin/bash"}
    output = type_into(shell, typed, cluster.folder, environment)
    said = [line.partition("I am ")[2] for line in output.splitlines() if "I am RankInfo" in line]
    assert said and said[0] == str(RankInfo(0, 1, 0)), output
    assert sorted(said[1:]) == [str(RankInfo(rank, 2, rank)) for rank in range(2)], output


def type_into(shell: str, typed: str, folder: Path, environment: dict[str, str]) -> str:
    """Output of a terminal in which ``typed`` is typed once its shell answers; what is typed before can be lost."""
    command = ["script", "--quiet", "--flush", "--command", shell, "/dev/null"]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as terminal:
        assert terminal.stdin is not None and terminal.stdout is not None
        lines = []
        stop = threading.Timer(120, terminal.kill)
        stop.start()
        answered = threading.Event()
        asking = threading.Thread(target=keep_asking, args=(terminal.stdin, answered))
        asking.start()
        for line in terminal.stdout:
            lines.append(line.decode(errors="replace"))
            if not answered.is_set() and ANSWER in lines[-1]:
                answered.set()
                asking.join()
                terminal.stdin.write(typed.encode())
        answered.set()
        stop.cancel()
    return "".join(lines)


def keep_asking(terminal: IO[bytes], answered: threading.Event) -> None:
    while not answered.wait(1):
        with contextlib.suppress(BrokenPipeError):  # the shell has ended before it answered
            terminal.write(b"echo answer $((6 * 7))\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_run_ends_as_if_nothing_had_happened(
    cluster: Cluster, shards: Path, unbroken: tuple[str, str], rank: int
) -> None:
    job = train(cluster, shards, "a run")
    cluster.wait_for(job, cluster.folder / "a run/metrics.csv", 2)
    os.kill(process_of(job, rank), signal.SIGKILL)
    deadline = time.monotonic() + 75
    while "slurm: requeueing job" not in cluster.logs():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.2)
    assert cluster.logs().count(f"rank {rank} ended without a message") == 1, cluster.logs()
    info = cluster.wait(job)
    assert (info["JobState"], info["Restarts"]) == ("COMPLETED", "1"), cluster.logs()
    assert metrics(cluster.folder / "a run") == unbroken


def process_of(job: str, rank: int) -> int:
    """The process of a rank of the job's training."""
    for folder in Path("/proc").iterdir():
        try:
            command, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        wanted = (f"SLURM_JOB_ID={job}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0")
        if os.fsencode(REPOSITORY / "train.py") in command and all(word.encode() in variables for word in wanted):
            return int(folder.name)
    raise AssertionError(f"job {job} has no rank {rank}")


def test_a_rank_that_is_refused_ends_all_with_its_status(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """Both are at different places: the shards of one are not there. That would not mend itself: no requeue."""
    elsewhere = python_that(tmp_path, f'if [ "$SLURM_PROCID" = 1 ]; then cd /; fi; exec {sys.executable} "$@"')
    (cluster.folder / "shards").symlink_to(shards)
    env = {**SMALL, **elsewhere, "SHARDS": "shards", "CHECKPOINT_DIR": "a run"}
    job = cluster.submit("--nodes=2", ONE_CPU, TRAIN, *STEPS, **env)
    info = cluster.wait(job, seconds=120)
    assert (info["JobState"], info["ExitCode"], info["Restarts"]) == ("FAILED", "2:0", "0"), cluster.logs()
    assert cluster.logs().count("train.py: error:") == 1 and "(rank 1 of 2, on " in cluster.logs()


def test_a_sweep_of_two_lines(cluster: Cluster, shards: Path) -> None:
    """One task is told to stop: it alone is requeued, and both end complete."""
    (cluster.folder / "my table.txt").write_text("window-size frame-step\n3 2\n2 4\n")
    env = {**SMALL, "SHARDS": str(shards), "SWEEP_DIR": "my sweep", "CHECKPOINT_DIR": "must not be used"}
    output = cluster.call(str(REPOSITORY / "slurm/submit_sweep.sh"), ONE_CPU, "my table.txt", *STEPS, **env)
    job = output.split()[3]
    runs = [cluster.folder / "my sweep" / name for name in ("window-size=3,frame-step=2", "window-size=2,frame-step=4")]
    # The last task is the one whose SLURM_JOB_ID is the id of the whole array.
    cluster.wait_for(f"{job}_1", runs[1] / "metrics.csv", 2)
    cluster.call("scancel", "--signal=USR1", "--batch", f"{job}_1")
    jobs = [cluster.wait(f"{job}_{task}") for task in (0, 1)]
    assert [info["JobState"] for info in jobs] == ["COMPLETED", "COMPLETED"], cluster.logs()
    assert [info["Restarts"] for info in jobs] == ["0", "1"], cluster.logs()
    for run, window_size in zip(runs, (3, 2), strict=True):
        assert len(metrics(run).splitlines()) == 1 + EPOCHS
        assert json.loads((run / "settings.json").read_text())["windows"]["window_size"] == window_size
    assert not (cluster.folder / "must not be used").exists()


KILLED = """#!/bin/bash
# Python, but task 1 is killed as soon as the build has begun.
{python} "$@" &
if [ "${{SLURM_ARRAY_TASK_ID:-}}" = 1 ]; then
    until [ -e "my shards/.build" ]; do sleep 0.01; done
    kill -KILL $!
    exit 137
fi
wait $!
"""


def test_a_build_with_a_killed_task(cluster: Cluster, clips: Path, shards: Path, tmp_path: Path) -> None:
    """Nothing is published; that task built again alone, the shards are byte for byte those of one process."""
    killed = tmp_path / "killed python"
    killed.write_text(KILLED.format(python=sys.executable))
    killed.chmod(0o755)
    submit = [str(REPOSITORY / "slurm/submit_build.sh"), ONE_CPU, str(clips), "my shards", "3", *BUILD_FLAGS]
    array, merge = job_ids(cluster.call(*submit, PYTHON=str(killed)))
    states = [cluster.wait(f"{array}_{task}")["JobState"] for task in range(3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"], cluster.logs()
    assert cluster.wait(merge)["JobState"] == "CANCELLED"
    assert not (cluster.folder / "my shards/index.json").exists()

    array, merge = job_ids(cluster.call(*submit, PYTHON=sys.executable, TASKS="1"))
    assert cluster.wait(merge)["JobState"] == "COMPLETED", cluster.logs()
    assert contents(cluster.folder / "my shards") == contents(shards)


def job_ids(output: str) -> list[str]:
    """The ids of the array and of the merge job in what submit_build.sh says."""
    return [word.rstrip(";") for word in output.split() if word.rstrip(";").isdigit()]
