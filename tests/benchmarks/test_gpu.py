"""The GPU benchmark walks its whole road on a CPU, and keeps what it measured when a part fails."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_record

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_whole_road_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert list(dict.fromkeys(row["section"] for row in rows)) == [
        "check",
        "training",
        "loss",
        "loader",
        "decode",
        "host",
    ]
    assert not [row for row in rows if row["metric"] == "failed"]
    version = json.loads((tmp_path / "gpu.json").read_text())["machine"]["torch"]
    assert version.split("+")[0] == torch.__version__.split("+")[0]  # the build is not always in both


def test_a_failing_section_is_recorded_and_the_rest_is_kept(tmp_path: Path) -> None:
    bench = gpu_record.Bench(torch.device("cpu"), True, tmp_path, tmp_path, time.monotonic() + 60)

    def good(bench: gpu_record.Bench) -> None:
        bench.record("good", "case", "speed", [1.0, 2.0, 3.0], "1/s")

    def bad(bench: gpu_record.Bench) -> None:
        raise RuntimeError("out of memory")

    assert [gpu.run_section(bench, section) for section in (good, bad, good)] == [True, False, True]
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert [row["value"] for row in rows if row["metric"] == "speed"] == ["2.0", "2.0"]
    assert "out of memory" in next(row["value"] for row in rows if row["metric"] == "failed")


def test_past_its_time_it_starts_nothing(tmp_path: Path) -> None:
    bench = gpu_record.Bench(torch.device("cpu"), True, tmp_path, tmp_path, time.monotonic() - 1)
    assert not gpu.run_section(bench, lambda bench: pytest.fail("started"))
    assert [row["metric"] for row in bench.records] == ["skipped"]
