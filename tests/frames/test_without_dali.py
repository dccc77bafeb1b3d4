"""Folder to trained encoder to pictures on a machine without DALI (a Mac, say): DALI is hidden from import."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data import add_mac_clutter, make_clips

ROOT = Path(__file__).parents[2]
HIDE = """
import importlib.abc, runpy, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "nvidia":
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by a test)", name=name)
sys.meta_path.insert(0, Hide())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.path.pop(0) or ".")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_hidden(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the repository's scripts in ``cwd`` with DALI hidden."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HIDE, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=240)


def test_dali_is_hidden(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import nvidia.dali\n")
    done = run_hidden(str(script), cwd=tmp_path)
    assert done.returncode == 1 and "hidden by a test" in done.stderr


@pytest.mark.slow
def test_folder_to_checkpoint_to_pictures(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "my clips", {"a": 40, "b": 37, "c": 30})
    add_mac_clutter(clips)
    windows = ("--window-size", "3", "--frame-step", "2", "--window-stride", "3", "--image-size", "32")
    trained = run_hidden(
        "train.py", "--root-dir", "my clips", *windows, "--batch-size", "8", "--epochs", "2", "--device", "cpu",
        "--augment", "simclr", "--checkpoint-dir", "run", "--csv-log", cwd=tmp_path,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    (shards,) = (path.parent for path in (tmp_path / "shards").glob("*/index.json"))
    for source in (("--root-dir", "my clips"), ("--shards", str(shards))):
        picture = tmp_path / f"{source[0]}.png"
        shown = run_hidden("inspect_windows.py", *source, *windows, "--save-path", str(picture), cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert picture.stat().st_size > 1000
