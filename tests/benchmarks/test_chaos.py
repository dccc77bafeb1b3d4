"""A short piece of the chaos: a few faults drawn from a seed, over training and over building."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import chaos, chaos_building, chaos_orders
from tests.helpers.fork_server import ForkServer


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(**chaos_building.video_faults(tmp_path_factory.mktemp("library"))) as fork_server:
        yield fork_server


# By these seeds the fourth fault is a SIGKILL, and of one process the eighth a SIGUSR1.


@pytest.mark.slow
def test_training_under_faults_ends_bit_identical(fork_server: ForkServer, tmp_path: Path) -> None:
    part = chaos.training_part(fork_server, tmp_path / "chaos", seed=333, faults=5, ranks=1, gap=0.2, epochs=2)
    part.play()
    assert part.struck.total() >= 5 and part.identical == part.runs >= 1


@pytest.mark.slow
def test_two_ranks_under_faults_end_bit_identical(fork_server: ForkServer, tmp_path: Path) -> None:
    part = chaos.training_part(fork_server, tmp_path / "chaos", seed=1519, faults=3, ranks=2, gap=0.2, epochs=2)
    part.play()
    assert part.struck.total() >= 3 and part.identical == part.runs >= 1


@pytest.mark.slow
def test_ranks_killed_while_they_keep_frames_end_bit_identical(fork_server: ForkServer, tmp_path: Path) -> None:
    part = chaos.training_part(fork_server, tmp_path / "chaos", seed=3, faults=3, ranks=2, gap=2.0, epochs=2, keep=True)
    part.play()
    assert part.struck == {"SIGKILL": part.struck.total()} and part.identical == part.runs >= 1


@pytest.mark.slow
def test_building_under_faults_ends_byte_identical(fork_server: ForkServer, tmp_path: Path) -> None:
    part = chaos.building_part(fork_server, tmp_path / "chaos", seed=5, faults=8, gap=0.5)
    part.play()
    assert part.struck.total() >= 8 and part.identical == part.runs >= 1


def test_a_difference_is_a_finding(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
    with pytest.raises(chaos_orders.ChaosError, match="not as undisturbed"):
        chaos_building.check_same_folder(tmp_path / "a", tmp_path / "b")


def test_standing_still_is_a_finding_with_the_place_of_every_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos_orders, "PATIENCE", 1.0)
    log = tmp_path / "log"
    code = "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR2); time.sleep(100)"
    with open(log, "wb") as output, subprocess.Popen([sys.executable, "-c", code], stderr=output) as process:
        started = chaos_orders.Started([process], log, lambda: 0)
        try:
            with pytest.raises(chaos_orders.ChaosError, match=r"nothing has moved(.|\n)*most recent call first"):
                started.wait()
        finally:
            started.kill()


def test_only_seconds_awake_are_counted() -> None:
    watch = chaos_orders.Watch(_last=time.monotonic() - 1000)
    assert watch.look() == 1.0 and watch.look() < 2.0
