"""The lifeline between ranks, over real processes without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import training

Ends = list[tuple[int, str, str]]


def play(folder: Path, scenario: str, size: int = 3, patience: float = 60) -> Ends:
    """Exit status, stdout and stderr of every rank; fails if one is not gone within 20 s."""
    command = [sys.executable, "-m", "tests.helpers.lifeline_rank"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder), scenario, str(patience)],
            cwd=training.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [rank.communicate(timeout=20) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs, strict=True)]


def test_no_rank_leaves_before_the_last_has_come(tmp_path: Path) -> None:
    ends = play(tmp_path, "all_done")
    assert [(status, error) for status, _, error in ends] == [(0, "")] * 3
    times = [dict(line.split() for line in output.splitlines()) for _, output, _ in ends]
    assert min(float(rank["left"]) for rank in times) >= max(float(rank["arrived"]) for rank in times)


@pytest.mark.parametrize("scenario", ["rank_1_fails", "rank_0_fails", "all_fail"])
def test_a_failure_ends_all_with_its_status_and_is_said_once(scenario: str, tmp_path: Path) -> None:
    ends = play(tmp_path, scenario)
    assert [status for status, _, _ in ends] == [7, 7, 7], ends
    assert [error for _, _, error in ends] == ["the sentence\n", "", ""]


@pytest.mark.parametrize(("scenario", "victim", "speaker"), [("rank_0_is_killed", 0, 1), ("rank_1_is_killed", 1, 0)])
def test_a_killed_rank_ends_all(scenario: str, victim: int, speaker: int, tmp_path: Path) -> None:
    ends = play(tmp_path, scenario)
    assert [status for status, _, _ in ends] == [-9 if rank == victim else 1 for rank in range(3)], ends
    for rank, (_, _, error) in enumerate(ends):
        assert (f"rank {victim} ended without a word" in error) == (rank == speaker), ends
        assert (error == "") == (rank != speaker), ends


def test_hanging_is_noticed_and_waiting_is_not_hanging(tmp_path: Path) -> None:
    start = time.monotonic()
    ends = play(tmp_path, "all_hang", patience=1)
    assert [status for status, _, _ in ends] == [1, 1, 1] and time.monotonic() - start < 15
    assert "no step was made for" in ends[0][2]
    for scenario in ("rank_1_says_it_waits", "steps_are_made"):
        folder = tmp_path / scenario
        folder.mkdir()
        assert play(folder, scenario, patience=1) == [(0, "", "")] * 3


def test_strangers_change_nothing(tmp_path: Path) -> None:
    assert play(tmp_path, "strangers_call") == [(0, "", "")] * 3


def test_a_rank_that_never_comes_is_named(tmp_path: Path) -> None:
    ends = play(tmp_path, "rank_1_never_comes", patience=3)
    assert "TimeoutError: ranks [1] did not connect to rank 0 within 3 s" in ends[0][2]
    assert ends[2][0] == 1 and "ended without a word" not in ends[2][2]


def test_the_watch_does_not_speak_before_who_knows_which_rank_is_missing() -> None:
    """However late that is asked, with the watch's time long over."""
    late = 'import time; from cltt.distributed.lifeline import Hub; hub = Hub(2, "token", 0.1); time.sleep(1.5)'
    command = [sys.executable, "-c", f"{late}; hub.wait_for_ranks()"]
    done = subprocess.run(command, cwd=training.ROOT, capture_output=True, text=True, timeout=30)
    assert "TimeoutError: ranks [1] did not connect" in done.stderr and "no step was made" not in done.stderr
