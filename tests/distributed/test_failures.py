"""The failure monitor over real processes, without a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import training
from tests.helpers.fork_server import fork_server

Ends = list[tuple[int, str, str]]


def play(folder: Path, scenario: str, size: int = 3) -> Ends:
    """Exit status, stdout and stderr of every rank; fails if one is not gone within 20 s."""
    port = training.free_port()
    outputs = [(folder / f"out-{rank}", folder / f"err-{rank}") for rank in range(size)]
    ranks = [
        fork_server().start(
            "tests.helpers.watched_rank", [str(rank), str(size), str(port), scenario], {}, log=log, errors=errors
        )
        for rank, (log, errors) in enumerate(outputs)
    ]
    try:
        statuses = [rank.wait(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(status, *(path.read_text() for path in paths)) for status, paths in zip(statuses, outputs, strict=True)]


def test_no_rank_leaves_before_the_last_has_come(tmp_path: Path) -> None:
    ends = play(tmp_path, "all_done")
    assert [(status, error) for status, _, error in ends] == [(0, "")] * 3
    times = [dict(line.split() for line in output.splitlines()) for _, output, _ in ends]
    assert min(float(rank["left"]) for rank in times) >= max(float(rank["arrived"]) for rank in times)


@pytest.mark.parametrize("scenario", ["rank_1_fails", "rank_0_fails", "all_fail"])
def test_a_failure_ends_all_with_its_status_and_is_said_once(scenario: str, tmp_path: Path) -> None:
    ends = play(tmp_path, scenario)
    assert [status for status, _, _ in ends] == [7, 7, 7], ends
    said = [error for _, _, error in ends]
    assert sorted(said) == ["", "", "the sentence\n"], ends
    assert scenario == "all_fail" or said[int(scenario[5])] != "", ends


def test_without_the_store_all_end(tmp_path: Path) -> None:
    ends = play(tmp_path, "rank_0_is_killed")
    assert [status for status, _, _ in ends] == [-9, 1, 1], ends
    assert ["rank 0 ended without a message" in error for _, _, error in ends] == [False, True, False], ends


def test_a_silent_rank_is_found(tmp_path: Path) -> None:
    ends = play(tmp_path, "rank_2_is_killed")
    assert [status for status, _, _ in ends] == [1, 1, -9], ends
    assert sorted(error for _, _, error in ends) == ["", "", "silent: [2]\n"], ends


@pytest.mark.parametrize("scenario", ["no_way_to_the_store", "the_monitor_breaks"])
def test_a_rank_whose_monitor_cannot_read_the_store_ends(scenario: str, tmp_path: Path) -> None:
    assert [status for status, _, _ in play(tmp_path, scenario)] == [1, 1, 1]


def test_a_moment_without_the_store_is_nothing(tmp_path: Path) -> None:
    assert play(tmp_path, "no_way_for_a_while") == [(0, "", "")] * 3
