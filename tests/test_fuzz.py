"""Hostile input of every kind: see ``tests/fuzz``."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
KINDS = {"pictures", "trees", "shard sets", "checkpoints", "tables", "archives", "flags"}


@pytest.mark.slow
def test_hostile_input(tmp_path: Path) -> None:
    limits = ["--rounds", "120", "--seconds", "300"]  # the same inputs however fast the machine is
    command = [sys.executable, "-m", "tests.fuzz", *limits, "--seed", "1", "--csv", str(tmp_path / "counts.csv")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:]
    with (tmp_path / "counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    tried: Counter[str] = Counter()
    for row in rows:
        tried[row["kind"]] += int(row["inputs"])
    assert set(tried) == KINDS and min(tried.values()) >= 20, tried
    assert not any(row["outcome"] == "BROKEN" for row in rows)
    for kind in KINDS - {"flags"}:  # neither all refused nor all taken: the inputs reach what lies behind the door
        outcomes = {row["outcome"] for row in rows if row["kind"] == kind}
        assert any("refused" in o or "invalid" in o or "not opened" in o or "damaged" in o for o in outcomes), kind
        assert any(not ("refused" in o or "invalid" in o or "not opened" in o) for o in outcomes), kind
