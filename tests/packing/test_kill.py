"""Killed at any moment and started again, a build ends byte-identical to one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.shards import layout, tar
from tests.helpers import data
from tests.helpers.folders import assert_same

REPOSITORY = Path(__file__).parents[2]
SHARD_SIZE = 60_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 300 frames in 20 clips, some of them broken or re-encoded, in about 15 shards."""
    root = data.make_clips(
        tmp_path_factory.mktemp("kill") / "root", {f"p{k % 4}/c{k}": 15 for k in range(20)}, height=96
    )
    frames = sorted(root.rglob("*.jpg"))
    for frame in frames[7::41]:
        frame.write_bytes(frame.read_bytes()[:300])
    return root


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    build_shards(root, out, workers=1, shard_size=SHARD_SIZE, splits="train=0.5,val=0.5", label_from="parent")
    return out


def _start(root: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(out)]
    command += ["--shard-size", str(SHARD_SIZE), "--splits", "train=0.5,val=0.5", "--label-from", "parent", *flags]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _kill_at_random(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """SIGKILL ``process`` at some moment between its first file and its end; whether it was still running."""
    while not (out / layout.BUILD).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.25)
    killed = process.poll() is None
    process.kill()
    process.communicate()
    _assert_whole_under_final_names(out)
    return killed


def _assert_whole_under_final_names(out: Path) -> None:
    """Every tar under its final name ends as a tar must."""
    for shard in out.glob("shard-*.tar"):
        content = shard.read_bytes()
        assert len(content) % tar.BLOCK == 0 and content.endswith(tar.END_OF_ARCHIVE)


def _run(root: Path, out: Path, *flags: str) -> None:
    process = _start(root, out, *flags)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(1, 7), (2, 7), (4, 6)])
def test_killed_builds_end_byte_identical(root: Path, unbroken: Path, tmp_path: Path, workers: int, kills: int) -> None:
    rng = random.Random(workers)
    out, done, attempts = tmp_path / "out", 0, 0
    while done < kills:
        attempts += 1
        done += _kill_at_random(_start(root, out, "--workers", str(workers)), out, rng)
        if (out / layout.INDEX).exists() and done < kills:  # it came through: kill a new one
            _run(root, out, "--workers", str(workers))
            assert_same(out, unbroken)
            out = tmp_path / f"out{attempts}"
    _run(root, out, "--workers", str(workers))
    assert_same(out, unbroken)


@pytest.mark.slow
def test_killed_tasks_in_any_order_end_byte_identical(root: Path, unbroken: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    out, done = tmp_path / "out", 0
    while done < 5:
        done += _kill_at_random(_start(root, out, "--task", f"{rng.randrange(3)}/3", "--workers", "1"), out, rng)
    together = [_start(root, out, "--task", f"{task}/3") for task in (2, 0, 1)]
    for process in together:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    assert not (out / layout.INDEX).exists()
    _run(root, out, "--finalize")
    assert_same(out, unbroken)


def test_any_number_of_workers_gives_the_same_bytes(root: Path, unbroken: Path, tmp_path: Path) -> None:
    _run(root, tmp_path / "out", "--workers", "3")
    assert_same(tmp_path / "out", unbroken)


@pytest.mark.slow
def test_a_killed_worker_is_named_and_a_killed_parent_leaves_none(root: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = _start(root, out, "--workers", "3")
    children = _wait_for_children(process.pid, 2)
    os.kill(children[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "killed by signal 9 while it wrote shard-" in output and "Traceback" not in output
    _assert_whole_under_final_names(out)
    process = _start(root, out, "--workers", "3")
    children = _wait_for_children(process.pid, 2)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while any(_is_alive(child) for child in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.02)
    _run(root, out)
    assert_same(out, unbroken)


def _wait_for_children(pid: int, count: int) -> list[int]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            tasks = Path(f"/proc/{pid}/task").iterdir()
            children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except FileNotFoundError:
            children = []
        if len(children) == count:
            return children
        time.sleep(0.005)
    raise AssertionError("the workers did not start")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
