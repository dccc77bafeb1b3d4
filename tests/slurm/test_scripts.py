"""The batch scripts against stand-ins for Slurm: signals, requeueing, ids, limits, paths with spaces."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.fakes import LEAKED, REPOSITORY, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def value(run: dict, flag: str) -> str:
    return run["argv"][run["argv"].index(flag) + 1]


# --- what becomes of an exit status -----------------------------------------------------------


def test_a_complete_run_is_not_requeued(bench: Bench) -> None:
    status, output = bench.train(STEPS="exit 0")
    assert (status, bench.requeued()) == (0, [])
    assert "complete" in output


@pytest.mark.parametrize("status", [85, 1, 137])
def test_a_preempted_or_crashed_run_is_requeued(bench: Bench, status: int) -> None:
    assert bench.train(STEPS=f"exit {status}")[0] == status
    assert bench.requeued() == ["41"]


def test_refused_settings_are_not_tried_again(bench: Bench) -> None:
    assert bench.train(STEPS="exit 2")[0] == 2
    assert bench.requeued() == []


def test_an_array_task_requeues_itself_and_not_the_array(bench: Bench) -> None:
    # Slurm gives the last task of an array the array's own id.
    bench.train(STEPS="exit 85", SLURM_ARRAY_JOB_ID="41", SLURM_ARRAY_TASK_ID="3")
    assert bench.requeued() == ["41_3"]
    assert "--jobs=41_3" in bench.calls("squeue")[0]


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_cancelled_or_requeued_job_is_left_alone(bench: Bench, state: str) -> None:
    status, output = bench.train(STEPS="exit 85", FAKE_STATE=state)
    assert (status, bench.requeued()) == (85, [])
    assert "nothing to do" in output


TIMED_OUT = "slurm_load_jobs error: Socket timed out on send/recv operation"


# Status 0 with an error was read as "completed": https://github.com/OSC/ood_core/issues/149
@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("times", [2, 99])
def test_a_question_that_fails_is_no_answer(bench: Bench, times: int, status: int) -> None:
    """It is asked again; a job of which nothing is known is requeued."""
    _, output = bench.train(STEPS="exit 85", FAIL_squeue=f"{times} {status} {TIMED_OUT}")
    assert bench.requeued() == ["41"], output
    assert (f"no answer to squeue --noheader --jobs=41 --format=%T: {TIMED_OUT}" in output) == (times == 99)
    assert len(bench.calls("squeue")) == min(times + 1, 12)


def test_a_job_that_slurm_does_not_know_is_gone(bench: Bench) -> None:
    _, output = bench.train(STEPS="exit 85", FAIL_squeue="99 1 slurm_load_jobs error: Invalid job id specified")
    assert "job 41 is gone" in output and bench.requeued() == [] and len(bench.calls("squeue")) == 1


@pytest.mark.parametrize("times", [2, 99])
def test_a_requeue_is_asked_for_again(bench: Bench, times: int) -> None:
    _, output = bench.train(STEPS="exit 85", FAIL_scontrol=f"{times} 1 Unable to contact slurm controller")
    assert len(bench.requeued()) == min(times + 1, 12)
    assert ("submit the same command again" in output) == (times == 99)


def test_the_address_of_the_node_is_asked_for_again(bench: Bench) -> None:
    env = {"FAKE_NODE_ADDRESS": "10.1.1.1", "FAIL_scontrol": "2 1 slurm_load_node error: Socket timed out"}
    bench.train(SLURM_JOB_NUM_NODES="2", **env)
    assert bench.runs()[0]["env"]["MASTER_ADDR"] == "10.1.1.1"


@pytest.mark.parametrize(
    "refusal",
    [
        "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually exclusive.",
        # https://github.com/mehta-lab/recOrder/issues/482
        "srun: error: Unable to create step for job 41: Invalid generic resource (gres) specification",
    ],
)
def test_a_step_that_srun_refuses_is_refused(bench: Bench, refusal: str) -> None:
    status, output = bench.train(FAIL_srun=f"99 1 {refusal}")
    assert (status, bench.requeued()) == (2, [])
    assert f"srun refuses the step, so the training was not started: {refusal}" in output
    assert not (bench.home / "checkpoints/ws5_fs10_wstr1").exists()


@pytest.mark.parametrize("said", ["Unable to create step for job 41: Required node not available (down, drained or reserved)", "Unable to create step for job 41: Socket timed out", "Unable to confirm allocation for job 41: Invalid job id specified"])  # fmt: skip  # noqa: E501
def test_a_step_that_slurm_cannot_start_now_is_requeued(bench: Bench, said: str) -> None:
    assert bench.train(FAIL_srun=f"99 1 srun: error: {said}")[0] == 1
    assert bench.requeued() == ["41"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("die 4", "die 4", "(SIGILL on node1; SIGILL on node1)"),
        ("die 7", "die 11", "(SIGBUS on node1; SIGSEGV on node1)"),
        # Python of an x86_64 login node on aarch64 nodes: https://github.com/NVIDIA/srt-slurm/pull/17
        ("exit 8", "exit 8", "(Exec format error on node1; Exec format error on node1)"),
        ("die 4", "step, die 4", ""),
        ("die 4", "exit 1", ""),
    ],
)
def test_a_python_of_another_cpu_is_not_requeued_in_vain(bench: Bench, first: str, second: str, words: str) -> None:
    bench.train(STEPS=first)
    assert bench.requeued() == ["41"]
    _, output = bench.train(STEPS=second, SLURM_RESTART_COUNT="1")
    assert bench.requeued() == ["41"] * (1 if words else 2)
    assert words in output and ("the environment of" in output) == bool(words)
    bench.train(STEPS=first)  # submitted again
    assert bench.requeued() == ["41"] * (2 if words else 3)


def test_a_run_that_ended_without_saying_complete_is_not_called_that(bench: Bench) -> None:
    """srun can end with 0 when a node is lost."""
    status, output = bench.train(STEPS="save epoch-0001.pt, vanish", FAKE_FAILED_NODES="node2")
    assert status == 1 and bench.requeued() == ["41"]
    assert "complete" not in output and "node failure: node2" in output


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("exit 85", "stopped before the first checkpoint"),
        ("save epoch-0001.pt, exit 85", "stopped, with epoch-0001"),
    ],
)
def test_a_checkpoint_is_named_only_where_there_is_one(bench: Bench, steps: str, words: str) -> None:
    assert words in bench.train(STEPS=steps)[1]


def test_a_refused_start_leaves_no_folder(bench: Bench) -> None:
    bench.train(STEPS="exit 2")
    assert not (bench.home / "checkpoints/ws5_fs10_wstr1").exists()
    bench.train(STEPS="save epoch-0001.pt, exit 0")
    bench.train(STEPS="exit 2")
    assert (bench.home / "checkpoints/ws5_fs10_wstr1/latest").is_file()


def test_a_folder_that_cannot_be_written_now_does_not_end_the_run(bench: Bench) -> None:
    (bench.home / "checkpoints/ws5_fs10_wstr1/requeues.tmp").mkdir(parents=True)  # no file can be written there
    status, output = bench.train(SLURM_RESTART_COUNT="1")
    assert status == 0 and "this start is not counted" in output and "complete" in output


# --- the limit on requeues --------------------------------------------------------------------


def starts_until_left_alone(bench: Bench, steps: list[str], **env: str) -> int:
    """Play Slurm: start the job again whenever it asked for it; ``steps`` cycle if there are fewer."""
    for start in range(30):
        before = len(bench.requeued())
        bench.train(STEPS=steps[start % len(steps)], SLURM_RESTART_COUNT=str(start), **env)
        if len(bench.requeued()) == before:
            return start + 1
    return 30


@pytest.mark.parametrize("status", [85, 1])
@pytest.mark.parametrize("limit", [0, 2])
def test_requeues_without_progress_end(bench: Bench, status: int, limit: int) -> None:
    assert starts_until_left_alone(bench, [f"exit {status}"], MAX_REQUEUES=str(limit)) == limit + 1


def test_progress_starts_the_count_anew(bench: Bench) -> None:
    steps = ["exit 1", "save epoch-0001.pt, exit 1", "exit 1", "save epoch-0002.pt, exit 1", *["exit 1"] * 26]
    # Four starts to the last checkpoint, one that finds it, two that find nothing newer.
    assert starts_until_left_alone(bench, steps, MAX_REQUEUES="2") == 4 + 1 + 2


def test_saving_the_same_checkpoint_again_is_no_progress(bench: Bench) -> None:
    assert starts_until_left_alone(bench, ["save epoch-0001.pt, exit 1"], MAX_REQUEUES="2") == 4


def test_restarts_by_slurm_itself_are_counted_too(bench: Bench) -> None:
    # A node that dies takes the script with it: nothing but the count at the start can stop this.
    outcomes = []
    for start in range(4):
        env = {"SLURM_RESTART_COUNT": str(start), "FAKE_STATE": "PENDING", "MAX_REQUEUES": "2"}
        outcomes.append(bench.train(STEPS="exit 1", **env)[1])
    assert [("giving up" in output) for output in outcomes] == [False, False, False, True]
    assert len(bench.runs()) == 3


def test_submitting_again_by_hand_starts_the_count_anew(bench: Bench) -> None:
    starts_until_left_alone(bench, ["exit 1"], MAX_REQUEUES="1")
    assert starts_until_left_alone(bench, ["exit 1"], MAX_REQUEUES="1") == 2


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_signal_reaches_the_training_and_its_checkpoint_is_waited_for(bench: Bench, name: str) -> None:
    process = bench.start("train.sbatch", STEPS="wait, save epoch-0001.pt, exit 85", **bench.job)
    bench.wait_until_ready()
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85, output
    assert (bench.home / "checkpoints/ws5_fs10_wstr1/latest").read_text() == "epoch-0001.pt\n"
    assert bench.requeued() == ["41"]


def test_a_second_signal_does_not_hide_the_exit_status(bench: Bench) -> None:
    process = bench.start("train.sbatch", STEPS="wait, save epoch-0001.pt, exit 85", **bench.job)
    bench.wait_until_ready()
    for name in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(name)
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert process.returncode == 85
    assert bench.requeued() == ["41"]


def test_a_run_that_completes_in_spite_of_a_signal_is_complete(bench: Bench) -> None:
    process = bench.start("train.sbatch", STEPS="wait, exit 0", **bench.job)
    bench.wait_until_ready()
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert (process.returncode, bench.requeued()) == (0, [])


def test_a_signal_before_the_training_starts_requeues_at_once(bench: Bench) -> None:
    env = {"MODULES": "slow", "BASH_FUNC_module%%": "() { kill -USR1 $$; }"}
    assert bench.train(**env)[0] == 85
    assert (bench.requeued(), bench.runs()) == (["41"], [])


# --- variables, paths, modules ----------------------------------------------------------------

VARIABLES = {
    "SHARDS": "--shards",
    "WINDOW_SIZE": "--window-size",
    "FRAME_STEP": "--frame-step",
    "WINDOW_STRIDE": "--window-stride",
    "BATCH_SIZE": "--batch-size",
    "EPOCHS": "--epochs",
    "IMAGE_SIZE": "--image-size",
    "BACKBONE": "--backbone",
    "NUM_WORKERS": "--num-workers",
    "SEED": "--seed",
    "CHECKPOINT_DIR": "--checkpoint-dir",
    "STAGE_TO": "--stage-to",
}


def test_every_variable_comes_from_the_environment(bench: Bench) -> None:
    bench.train(**{name: f"some {name}" for name in VARIABLES})
    (run,) = bench.runs()
    assert {name: value(run, flag) for name, flag in VARIABLES.items()} == {name: f"some {name}" for name in VARIABLES}


def test_a_folder_of_clips_replaces_the_shards(bench: Bench) -> None:
    bench.train(ROOT_DIR="/Volumes/Some Disk/cropped_images")
    (run,) = bench.runs()
    assert value(run, "--root-dir") == "/Volumes/Some Disk/cropped_images"
    assert "--shards" not in run["argv"]


def test_flags_after_the_script_come_last_and_whole(bench: Bench) -> None:
    bench.train("--eval-data", "some where/a*b", "--compile", "")
    assert bench.runs()[0]["argv"][-4:] == ["--eval-data", "some where/a*b", "--compile", ""]


def test_the_run_folder_is_named_by_its_windows(bench: Bench) -> None:
    bench.train(WINDOW_STRIDE="10", FRAME_STEP="2")
    assert value(bench.runs()[0], "--checkpoint-dir") == "checkpoints/ws5_fs2_wstr10"


def test_staging_expands_tmpdir_on_the_node(bench: Bench) -> None:
    bench.train(STAGE_TO="$TMPDIR/cltt", TMPDIR="/local scratch/41")
    assert value(bench.runs()[0], "--stage-to") == "/local scratch/41/cltt"


@pytest.mark.parametrize("path", ["$SLURM_TMPDIR/x y", "${SLURM_TMPDIR}/x y", "/node/$SLURM_JOB_ID/x y"])
def test_staging_expands_variables_of_the_node(bench: Bench, path: str) -> None:
    bench.train(STAGE_TO=path, SLURM_TMPDIR="/node/41")
    assert value(bench.runs()[0], "--stage-to") == "/node/41/x y"


@pytest.mark.parametrize("path", ["$NO_SUCH_SCRATCH", "/tmp/$(date)", "/tmp/$", "$A"])
def test_staging_to_what_cannot_be_expanded_is_refused(bench: Bench, path: str) -> None:
    status, output = bench.train(STAGE_TO=path, A="/tmp/$B")
    assert (status, bench.runs(), bench.requeued()) == (2, [], [])
    assert f"STAGE_TO is '{path}'" in output


def test_modules_may_read_unset_variables_and_fail(bench: Bench) -> None:
    body = '() { export FROM_MODULE="$3 $LMOD_NEVER_SET"; false; }'
    status, output = bench.train(MODULES="python/3.11  cuda/12.4", **{"BASH_FUNC_module%%": body})
    assert status == 0, output
    assert bench.runs()[0]["env"]["FROM_MODULE"] == "cuda/12.4 "


def test_the_scripts_own_flags_pass_train_py(bench: Bench) -> None:
    bench.train("--compile", STAGE_TO="/tmp")
    table = bench.home / "one.txt"
    table.write_text("keep-last\n2\n")
    command = [bench.env["PYTHON"], str(bench.home / "slurm/sweep_table.py"), "check", str(table)]
    for argv in (bench.runs()[0]["argv"], ["--no-such-flag", *bench.runs()[0]["argv"]]):
        done = subprocess.run([*command, *argv], env={**os.environ, **bench.env}, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == ((2, "") if "--no-such-flag" in argv else (0, "1\n")), done.stderr


# --- where the processes meet -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "node_address", "resolves_to", "expected"),
    [
        ("1", "node1", "10.0.0.3", "127.0.0.1"),
        ("2", "10.0.0.2", "10.0.0.3", "10.0.0.2"),
        ("2", "fd00::2", "10.0.0.3", "fd00::2"),
        ("2", "node1", "10.0.0.3", "10.0.0.3"),
        ("2", "node1", "127.0.1.1", "10.0.0.7"),
    ],
)
def test_the_address_is_a_number_other_nodes_can_reach(
    bench: Bench, nodes: str, node_address: str, resolves_to: str, expected: str
) -> None:
    bench.train(SLURM_JOB_NUM_NODES=nodes, FAKE_NODE_ADDRESS=node_address, FAKE_RESOLVES_TO=resolves_to)
    assert bench.runs()[0]["env"]["MASTER_ADDR"] == expected


def test_address_and_port_can_be_given(bench: Bench) -> None:
    bench.train(MASTER_ADDR="10.9.9.9", MASTER_PORT="4000")
    bench.train(SLURM_JOB_ID="123456")
    first, second = (run["env"] for run in bench.runs())
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("10.9.9.9", "4000")
    assert second["MASTER_PORT"] == str(10000 + 123456 % 20000)


def test_srun_is_told_what_it_does_not_take_over(bench: Bench) -> None:
    bench.train(SLURM_CPUS_PER_TASK="6")
    options = bench.calls("srun")[0]
    assert "--cpus-per-task=6" in options and "--kill-on-bad-exit=0" in options
    assert bench.runs()[0]["env"]["OMP_NUM_THREADS"] == "6"
    assert value(bench.runs()[0], "--num-workers") == "6"


# RANK and WORLD_SIZE: https://github.com/pytorch/examples/issues/458
def test_variables_of_another_job_are_forgotten(bench: Bench) -> None:
    env = {"SLURM_TASKS_PER_NODE": "4(x2)", "SLURM_GPUS_ON_NODE": "1", "RANK": "0", "WORLD_SIZE": "1"}
    bench.train(**LEAKED, **env, **{**bench.job, "SLURM_JOB_NUM_NODES": "2", "MASTER_ADDR": "10.0.0.2"})
    seen = bench.runs()[0]["env"]
    assert {name: seen[name] for name in (*LEAKED, "RANK")} == dict.fromkeys((*LEAKED, "RANK"))
    assert {"--export=ALL", "--nodes=2", "--ntasks-per-node=4"} <= set(bench.calls("srun")[0])


def test_tasks_that_differ_by_node_are_asked_for_as_they_are(bench: Bench) -> None:
    bench.train(SLURM_TASKS_PER_NODE="2,1", SLURM_NTASKS="3")
    assert "--ntasks=3" in bench.calls("srun")[0]


def test_gpus_and_processes_must_match(bench: Bench) -> None:
    status, output = bench.train(SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="1")
    assert (status, bench.runs(), bench.requeued()) == (2, [], [])
    assert "4 GPUs but 1 processes per node" in output
    assert bench.train(SLURM_GPUS_ON_NODE="4", SLURM_NTASKS_PER_NODE="4")[0] == 0


@pytest.mark.parametrize("asked", ["1", "a100:1"])
def test_a_node_that_came_whole_is_told_from_a_wrong_pair(bench: Bench, asked: str) -> None:
    """`--exclusive` gives all GPUs of the node, however many were asked for."""
    env = {"SLURM_GPUS_ON_NODE": "8", "SLURM_GPUS_PER_NODE": asked, "SLURM_NTASKS_PER_NODE": "1"}
    status, output = bench.train(**env)
    assert (status, bench.runs()) == (2, [])
    assert f"--gpus-per-node={asked} was asked for" in output and "leave out --exclusive" in output
    assert "the same number" not in output


# --- used in the wrong place ------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch", "build_shards.sbatch"])
def test_a_wrong_folder_is_named(bench: Bench, script: str) -> None:
    status, output = bench.run(script, "table", CLTT_HOME="/some where", **bench.job)
    assert status == 2
    assert "/some where is not the repository" in output


def test_the_batch_script_does_not_train_on_a_login_node(bench: Bench) -> None:
    status, output = bench.run("train.sbatch")
    assert (status, bench.runs()) == (2, [])
    assert "slurm/local.sh" in output


# --- without Slurm ----------------------------------------------------------------------------


def test_local_training_is_the_same_training(bench: Bench) -> None:
    bench.train("--compile", WINDOW_STRIDE="10")
    assert bench.run("local.sh", "--compile", WINDOW_STRIDE="10")[0] == 0
    slurm, local = bench.runs()
    assert local["argv"] == slurm["argv"]


def test_local_exit_status_arrives(bench: Bench) -> None:
    assert bench.run("local.sh", STEPS="exit 85")[0] == 85
    assert bench.requeued() == []


@pytest.mark.parametrize(
    ("env", "processes"),
    [({"PROCESSES": "3"}, "3"), ({"CUDA_VISIBLE_DEVICES": "2,5"}, "2"), ({"CUDA_VISIBLE_DEVICES": "2"}, "")],
)
def test_local_training_runs_one_process_a_gpu(bench: Bench, env: dict[str, str], processes: str) -> None:
    python = bench.fakes / "python"
    python.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >'{bench.fakes}/argv'\n")
    python.chmod(0o755)
    assert bench.run("local.sh", "--compile", PYTHON=str(python), **env)[0] == 0
    argv = (bench.fakes / "argv").read_text().splitlines()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes] if processes else []
    assert argv[: len(torchrun) + 1] == [*torchrun, str(bench.home / "train.py")]
    assert argv[-1] == "--compile"


# --- submitting -------------------------------------------------------------------------------


def test_build_submits_an_array_and_a_merge_after_it(bench: Bench) -> None:
    root = bench.home / "my clips"
    root.mkdir()
    status, output = bench.run(
        "submit_build.sh", "--partition=cpu", str(root), "shards/my set", "5", "--resize-short", "256"
    )
    assert status == 0, output
    script = str(bench.home / "slurm/build_shards.sbatch")
    tail = ["--partition=cpu", script, str(root), "shards/my set", "5", "--resize-short", "256"]
    array, merge = bench.calls("sbatch")
    assert array == ["--parsable", "--array=0-4", *tail]
    assert merge[:3] == ["--parsable", "--dependency=afterok:77", "--kill-on-invalid-dep=yes"]
    assert "--output=logs/%x-%j.out" in merge  # a job that is no array has no task's number to be named by
    assert merge[-len(tail) :] == tail
    assert (bench.home / "logs").is_dir()


@pytest.mark.parametrize(("task", "part"), [("3", ["--task", "3/5"]), ("", ["--finalize"])])
def test_a_build_task_builds_its_part_and_the_job_after_it_merges(bench: Bench, task: str, part: list[str]) -> None:
    args = ("/my clips", "shards/my set", "5", "--label-from", "regex:a b")
    status, output = bench.run("build_shards.sbatch", *args, SLURM_ARRAY_TASK_ID=task, SLURM_CPUS_PER_TASK="6")
    assert status == 0, output
    (call,) = bench.calls("build_shards.py")
    rest = ["--label-from", "regex:a b"]
    assert call == ["--root-dir", "/my clips", "--out", "shards/my set", "--workers", "6", *part, *rest]


def test_one_failed_part_can_be_built_again(bench: Bench) -> None:
    assert bench.run("submit_build.sh", str(bench.home), "out", "5", TASKS="3")[0] == 0
    assert bench.calls("sbatch")[0][1] == "--array=3"


@pytest.mark.parametrize("args", [[], ["root"], ["no such folder", "out"], [".", "out", "0"]])
def test_a_bad_build_is_refused(bench: Bench, args: list[str]) -> None:
    assert bench.run("submit_build.sh", *args)[0] == 2
    assert bench.calls("sbatch") == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resize-shrt", "256"], "--resize-shrt"),
        (["--quality", "101"], "quality is 101"),
        (["--splits", "train=0.5"], "train=0.5"),
        (["--label-from", "regex:("], "regular expression"),
    ],
)
def test_flags_that_every_task_would_refuse_are_refused_first(bench: Bench, flags: list[str], words: str) -> None:
    status, output = bench.run("submit_build.sh", str(bench.home), "out", "5", *flags)
    assert (status, bench.calls("sbatch")) == (2, []) and words in output and "Traceback" not in output


@pytest.mark.parametrize("script", ["submit_build.sh", "submit_sweep.sh"])
@pytest.mark.parametrize("option", [["--partition", "main"], ["-p", "main"]])
def test_an_option_whose_value_stands_apart_is_named(bench: Bench, script: str, option: list[str]) -> None:
    (bench.home / "t.txt").write_text("window-size\n5\n")
    status, output = bench.run(script, *option, "t.txt", "out")
    assert (status, bench.calls("sbatch")) == (2, [])
    assert f"{option[0]} has no value, and" in output and "--name=value" in output
    status, output = bench.run(script, "--mem=8G", "t.txt", "out")
    assert status == 2 and "give --mem-per-cpu" in output
    assert bench.run("submit_sweep.sh", "--hold", "--partition=main", "t.txt")[0] == 0


def test_sweep_submits_as_many_tasks_as_lines(bench: Bench) -> None:
    table = bench.home / "my table.txt"
    table.write_text("window-size frame-step\n5 2\n3 2\n\n# the last\n3 4\n")
    status, output = bench.run("submit_sweep.sh", "--time=1:00:00", str(table), "--augment", "crop")
    assert status == 0, output
    (call,) = bench.calls("sbatch")
    assert call[:3] == ["--array=0-2", "--time=1:00:00", str(bench.home / "slurm/sweep.sbatch")]
    copy = Path(call[3])
    assert copy != table and copy.read_text() == table.read_text()
    assert call[4:] == ["--augment", "crop"]


@pytest.mark.parametrize(
    "table", ["", "window-size\n", "window-size frame-step\n5\n", "window-sise\n5\n", "epochs\nten\n"]
)
def test_a_sweep_with_a_bad_line_is_refused(bench: Bench, table: str) -> None:
    (bench.home / "t.txt").write_text(table)
    status, output = bench.run("submit_sweep.sh", "t.txt")
    assert (status, bench.calls("sbatch")) == (2, [])
    assert "t.txt" in output and "Traceback" not in output


# A spreadsheet's byte order mark hides the first column: https://github.com/docling-project/docling/issues/4097
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["d\u00e9j\u00e0 vu".encode(), b"d\xe9j\xe0"])
def test_a_sweep_keeps_the_bytes_of_its_table_in_any_locale(bench: Bench, mark: bytes, name: bytes) -> None:
    (bench.home / "t.txt").write_bytes(mark + b'window-size eval-data\r\n5 "' + name + b'"\r\n')
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    status, output = bench.run("submit_sweep.sh", "t.txt", **locale)
    assert status == 0, output
    bench.run("sweep.sbatch", "t.txt", **locale, **bench.job, SWEEP_DIR="s", SLURM_ARRAY_TASK_ID="0")
    last = bench.runs()[0]["argv"][-1]
    assert last.encode("ascii", "surrogateescape") == b"--eval-data=" + name


def test_a_sweep_table_in_utf_16_is_read_with_its_mark_and_refused_without(bench: Bench) -> None:
    table = bench.home / "t.txt"
    table.write_bytes("window-size\n5\n".encode("utf-16-le"))
    status, output = bench.run("submit_sweep.sh", "t.txt")
    assert (status, bench.calls("sbatch")) == (2, []) and "save it as plain text in UTF-8" in output
    table.write_text("window-size\n5\n", encoding="utf-16")
    env = {"SWEEP_DIR": "checkpoints/s", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "0"}
    assert bench.run("sweep.sbatch", "t.txt", **bench.job, **env)[0] == 0
    assert bench.runs()[0]["argv"][-1:] == ["--window-size=5"]


def test_a_sweep_task_runs_its_line_in_a_folder_of_its_own(bench: Bench) -> None:
    (bench.home / "t.txt").write_text('window-size eval-data tensorboard\n5 - no\n3 "some where" yes\n')
    env = {"SWEEP_DIR": "checkpoints/my sweep", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "1"}
    assert bench.run("sweep.sbatch", "t.txt", "--compile", STEPS="exit 85", **bench.job, **env)[0] == 85
    (run,) = bench.runs()
    assert run["argv"][-4:] == ["--compile", "--window-size=3", "--eval-data=some where", "--tensorboard"]
    assert value(run, "--checkpoint-dir") == "checkpoints/my sweep/window-size=3,eval-data=some_where,tensorboard=yes"
    assert bench.requeued() == ["41_1"]


def test_scripts_ask_slurm_for_what_they_rely_on() -> None:
    for name in ("train.sbatch", "sweep.sbatch"):
        options = [
            line for line in (REPOSITORY / "slurm" / name).read_text().splitlines() if line.startswith("#SBATCH")
        ]
        for option in ("--requeue", "--signal=B:USR1@120", "--open-mode=append"):
            assert f"#SBATCH {option}" in options, f"{name} lacks {option}"


def test_the_page_names_files_and_variables_that_exist() -> None:
    page = (REPOSITORY / "docs/cluster.md").read_text()
    scripts = "".join(path.read_text() for path in (REPOSITORY / "slurm").glob("*.s*"))
    missing = [name for name in set(re.findall(r"\bslurm/[\w.]+\w", page)) if not (REPOSITORY / name).is_file()]
    missing += [name for name in set(re.findall(r"\b([A-Z][A-Z_]{3,})=", page)) if name not in scripts]
    assert missing == []


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "slurm").iterdir() if path.is_file()))
def test_files_that_a_script_names_exist(script: str) -> None:
    text = (REPOSITORY / "slurm" / script).read_text(errors="replace")
    named = set(re.findall(r"\bslurm/[\w.]+\w", text))
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


def test_the_example_of_a_sweep_is_accepted(bench: Bench) -> None:
    text = (REPOSITORY / "slurm" / "submit_sweep.sh").read_text()
    (example,) = re.findall(r"^#   slurm/submit_sweep\.sh (--[^\n]+)$", text, re.MULTILINE)
    options, table, *flags = re.match(r"((?:--\S+ )+)(\S+) (.*)", example).groups()
    status, output = bench.run("submit_sweep.sh", *options.split(), str(REPOSITORY / table), *flags[0].split())
    assert status == 0, output
