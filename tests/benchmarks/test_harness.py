"""The benchmark harness: what it says about time, memory and machines must itself be right."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import harness


def test_percentiles_are_numpys() -> None:
    values = [5.0, 1.0, 4.0, 2.5]
    for percent in (0, 20, 50, 80, 100):
        assert harness.percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_calls_take_turns_and_fast_ones_are_repeated() -> None:
    order = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.02)

    def fast() -> None:
        order.append("fast")
        time.sleep(0.002)

    timings = harness.time_interleaved({"slow": slow, "fast": fast}, rounds=3, warmup=0, min_seconds=0.01)
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]
    turns = [name for i, name in enumerate(order[2:]) if i == 0 or order[1 + i] != name]
    assert turns[:4] == ["slow", "fast", "slow", "fast"]
    assert order.count("fast") > 2 * order.count("slow")
    assert timings["slow"].median >= 0.02 and timings["fast"].median >= 0.002
    assert harness.ratio(timings["slow"], timings["fast"]).median > 2


def allocate(megabytes: int, kept: int) -> Callable[[], object]:
    """Work that holds ``kept`` MB to its end and ``megabytes`` MB for a moment."""

    def work() -> object:
        block = np.ones(kept * 125_000)
        np.ones(megabytes * 125_000).sum()
        return block

    return work


@pytest.mark.parametrize(("megabytes", "kept"), [(80, 20), (10, 60)])
def test_peak_memory_is_the_peak(megabytes: int, kept: int) -> None:
    growth = harness.peak_memory("tests.benchmarks.test_harness:allocate", megabytes, kept)
    assert growth / 1e6 == pytest.approx(megabytes + kept, rel=0.05)


def test_a_failed_memory_run_shows_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="no_such_function"):
        harness.peak_memory("tests.benchmarks.test_harness:no_such_function")


def test_every_row_of_a_file_names_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    path = harness.write_csv("x", [{"a": 1, "b": 0.123456}, {"a": 2, "c": "y"}])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["a"] for row in rows] == ["1", "2"]
    assert rows[0]["b"] == "0.1235" and rows[1]["b"] == "" and rows[1]["c"] == "y"
    assert all(row["cpu"] and row["torch"] and row["gpu"] and row["cores"] for row in rows)


def test_torch_is_not_imported() -> None:
    code = "import sys, benchmarks.harness; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, check=True)
