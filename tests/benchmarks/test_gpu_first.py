"""The GPU benchmark walks its whole road on a CPU, and goes on past parts that fail, hang or cannot run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_first, gpu_record
from benchmarks.gpu_first import PARTS, Part, run_all, summary

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_whole_road_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_first", "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--minutes", "30"], cwd=ROOT, capture_output=True, text=True, timeout=1900)
    assert done.returncode == 0, done.stdout[-4000:] + (tmp_path / "gpu_first.log").read_text()[-4000:]
    rows = list(csv.DictReader((tmp_path / "gpu_first.csv").open()))
    assert list(dict.fromkeys(row["section"] for row in rows)) == [part.name for part in PARTS]
    assert {row["section"] for row in rows if row["metric"] == "data_share_of_a_step"} == {"training"}
    assert "not run: tests of the loss" in done.stdout and "wrong" not in done.stdout


class Scripted(Part):
    """A part whose ``tests`` are a Python program."""

    def command(self, device: str, quick: bool, work: Path) -> list[str]:
        return [sys.executable, "-c", *self.tests]


ROW = {"section": "good", "case": "c", "metric": "speed", "value": 2.5, "unit": "1/s"}
FIGURE = f"print({gpu_record.MARK + json.dumps(ROW)!r}, flush=True)"


def test_a_failing_part_is_a_row_and_the_rest_is_kept(tmp_path: Path) -> None:
    parts = [
        Scripted("good", 60, (), (f"{FIGURE}; print('1 passed')",)),
        Scripted("bad", 60, (), ("raise RuntimeError('out of memory')",)),
        Scripted("killed", 60, (), ("import os; os.kill(os.getpid(), 9)",)),
        Scripted("lacking", 60, ("no_such_module.inside", "csv"), ("pass",)),
        Scripted("idle", 60, (), ("print('3 skipped in 1 s')",)),
        Scripted("last", 60, (), ("print('31.50s call     tests/a.py::test'); print('1 passed')",)),
    ]
    rows = run_all(parts, tmp_path, device="cuda", quick=True, seconds=60)
    written = list(csv.DictReader((tmp_path / "gpu_first.csv").open()))
    assert [row["value"] for row in written if row["metric"] == "speed"] == ["2.5"]
    assert all(row["python"] for row in written)
    lines = summary(rows)
    assert lines == [
        "right: good, last",
        "not run: lacking (no no_such_module.inside), idle (3 skipped in 1 s)",
        "wrong: bad: exit status 1: RuntimeError: out of memory",
        "wrong: killed: exit status -9: nothing was printed",
        "slow: last: a test takes 32 s, not 30",
    ]
    assert "===== bad" in (tmp_path / "gpu_first.log").read_text()


def test_a_part_that_hangs_is_stopped_with_its_children_and_keeps_its_figures(tmp_path: Path) -> None:
    script = f"import os, subprocess, sys, time; {FIGURE}; "
    script += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    script += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); print('waiting'); time.sleep(60)"
    end = time.monotonic() + 30  # its child would sleep for 60 s
    rows = run_all([Scripted("hangs", 2, (), (script,))], tmp_path, device="cuda", quick=True, seconds=60)
    assert gpu_first.outcome_of("hangs", rows) == "stopped after 2 s; the last line: waiting"
    assert [row["value"] for row in rows if row["metric"] == "speed"] == [2.5]
    assert "most recent call first" in (tmp_path / "gpu_first.log").read_text()
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.05)
    assert time.monotonic() < end


def test_past_its_time_it_starts_nothing(tmp_path: Path) -> None:
    part = Scripted("late", 60, (), (f"open({str(tmp_path / 'started')!r}, 'w')",))
    rows = run_all([part], tmp_path, device="cuda", quick=True, seconds=0)
    assert gpu_first.outcome_of("late", rows) == "skipped: no time left"
    assert not os.path.exists(tmp_path / "started")


def test_goals_that_are_missed_are_said_in_ten_lines() -> None:
    rows = [
        {"section": f"part {k}", "case": "part", "metric": "outcome", "value": "exit status 1: x"} for k in range(12)
    ]
    rows += [{"section": "loader", "case": "(5,10,1)", "metric": "of_bare_decode", "value": "0.5"}]
    assert list(gpu_first.missed(rows)) == ["loader: the loader has 0.50 of bare decoding, not 0.9"]
    lines = summary(rows)
    assert len(lines) == 10 and lines[-1] == "and 5 more in gpu_first.csv"


def test_a_line_cut_off_is_no_figure() -> None:
    assert gpu_record.figures(['figure: {"section": "a"}\n', 'figure: {"sect', "other\n"]) == [{"section": "a"}]
