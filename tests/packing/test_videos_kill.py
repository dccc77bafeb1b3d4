"""Killed at any moment and started again, a build from videos ends byte-identical to one that was left alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.shards import layout
from tests.helpers import video
from tests.helpers.folders import assert_same

pytest.importorskip("av")
REPOSITORY = Path(__file__).parents[2]
FLAGS = ["--fps", "15", "--resize-short", "60", "--shard-size", "60000"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of 600 lines, slow enough to be killed at, one of them with a hole."""
    root = tmp_path_factory.mktemp("kill") / "root"

    def draw(number: int) -> object:
        return video.picture(number, 960, 600)

    for name in ("a.mp4", "b.mkv", "deep/c.mts"):
        video.write_video(root / name, 120, gop=30, draw=draw, container="mpegts" if name.endswith("mts") else None)  # type: ignore[arg-type]
    content = bytearray((root / "b.mkv").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = random.Random(0).randbytes(3000)
    (root / "b.mkv").write_bytes(content)
    return root


@pytest.fixture(scope="module")
def unbroken(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    build_shards(root, out, workers=1, fps=15, resize_short=60, shard_size=60_000)
    return out


def start(root: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(out), *FLAGS, *flags]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_at_random(process: subprocess.Popen[str], out: Path, rng: random.Random) -> bool:
    """SIGKILL ``process`` at some moment between its first file and its end; whether it was still running."""
    while not (out / layout.BUILD).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.random() * 2.0)
    killed = process.poll() is None
    process.kill()
    process.communicate()
    return killed


def run(root: Path, out: Path, workers: int) -> None:
    process = start(root, out, "--workers", str(workers))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_builds_end_byte_identical(root: Path, unbroken: Path, tmp_path: Path, workers: int) -> None:
    rng = random.Random(workers)
    out, kills, attempts = tmp_path / "out", 0, 0
    while kills < 5:
        attempts += 1
        kills += kill_at_random(start(root, out, "--workers", str(workers)), out, rng)
        if (out / layout.INDEX).exists() and kills < 5:  # it came through, maybe but for what it clears away last
            run(root, out, workers)
            assert_same(out, unbroken)
            out = tmp_path / f"out{attempts}"
    run(root, out, workers)
    assert_same(out, unbroken)
