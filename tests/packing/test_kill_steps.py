"""Killed before any of its changes on disk and started again, a build ends byte-identical to an undisturbed one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import data, video

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["new", "overwritten"])
def test_killed_before_any_change(tmp_path: Path, flags: list[str]) -> None:
    root = data.make_clips(tmp_path / "root", {"a": 4, "b": 4})
    broken = root / "b" / "frame_000002.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    if importlib.util.find_spec("av"):
        video.write_video(root / "c.mp4", 4)
    command = [sys.executable, "-m", "tests.helpers.kill_steps", str(root), str(tmp_path / "out"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # a fork must find no second thread
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
