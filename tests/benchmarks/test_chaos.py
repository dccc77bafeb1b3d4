"""A short piece of the chaos: a few faults drawn from a seed, over training and over building."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import chaos


@pytest.mark.slow
def test_training_under_faults_ends_bit_identical(tmp_path: Path) -> None:
    struck, runs = chaos.chaos_of_training(tmp_path / "chaos", seed=5, faults=5, ranks=1, gap=0.2)
    assert struck.total() >= 5 and runs >= 1


@pytest.mark.slow
def test_two_ranks_under_faults_end_bit_identical(tmp_path: Path) -> None:
    struck, runs = chaos.chaos_of_training(tmp_path / "chaos", seed=6, faults=2, ranks=2, gap=0.2)
    assert struck.total() >= 2 and runs >= 1


@pytest.mark.slow
def test_building_under_faults_ends_byte_identical(tmp_path: Path) -> None:
    struck, builds = chaos.chaos_of_building(tmp_path, seed=5, faults=8, gap=0.5)
    assert struck.total() >= 8 and builds >= 1


def test_a_difference_is_a_finding(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
    with pytest.raises(chaos.ChaosError, match="not as undisturbed"):
        chaos.check_same_folder(tmp_path / "a", tmp_path / "b")
