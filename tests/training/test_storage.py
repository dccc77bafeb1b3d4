"""Storage that does not come back: the run saves, says so, and leaves with the status that a batch script requeues."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cltt import checkpoint
from tests.helpers import training
from tests.helpers.fork_server import fork_server
from tests.helpers.ranks import start_ranks
from tests.helpers.tiny_run import read_losses

pytestmark = pytest.mark.slow
# Small caches and nothing kept: every epoch reads.
FINE = ["--depth", "4", "--cache-gb", "0.0004", "--keep-gb", "0", "--epochs", "2", "--resume"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("storage"))


def struck_run(folder: Path, arguments: list[str], order: dict[str, object] | None) -> tuple[int, str]:
    """A tiny run whose reads are struck by ``order`` from its fifth step on."""
    (folder / "order").unlink(missing_ok=True)
    environment = {"CHAOS": str(folder), "CHAOS_DATA": arguments[1], "CHAOS_OUT": str(folder / "run")}
    environment |= {"CHAOS_PACE": "0.05", "LOSSES": str(folder / "losses")}
    process = fork_server().start("benchmarks.faults", ["train", *arguments], {**os.environ, **environment})
    if order is not None:
        while len((folder / "losses").read_text().split() if (folder / "losses").is_file() else []) < 5:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        (folder / "order").write_text(json.dumps(order))
    return process.wait(timeout=300), process.log.read_text()


def test_when_patience_ends_the_run_saves_and_asks_to_be_started_again(shards: Path, tmp_path: Path) -> None:
    status, output = training.run_tiny(training.flags(shards, tmp_path / "calm", *FINE), tmp_path / "expected")
    assert status == 0, output
    arguments = training.flags(shards, tmp_path / "run", *FINE, "--io-patience", "1")
    order = {"number": 0, "kind": "EIO", "until": time.monotonic() + 1e6}
    status, output = struck_run(tmp_path, arguments, order)
    assert status == 85 and "Traceback" not in output, output
    assert output.count("reading is tried again for up to 1 s") in (1, 2)  # 2: an epoch ended while one thread waited
    assert "could not be read for 1 s" in output and "the run is saved: --resume continues it" in output
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run")
    made = len(read_losses(tmp_path / "losses"))
    assert checkpoint.position(saved) == divmod(made, 12)
    status, output = struck_run(tmp_path, arguments, None)
    assert status == 0 and "bad frames 0;" in output, output
    assert read_losses(tmp_path / "losses") == read_losses(tmp_path / "expected")


def test_one_rank_loses_its_storage_and_rank_0_saves(shards: Path, tmp_path: Path) -> None:
    arguments = [*training.flags(shards, tmp_path / "run"), *FINE]
    with start_ranks(tmp_path, arguments, own_environment={1: {"FAULT": "dead_storage"}}) as ranks:
        assert ranks.wait() == [85, 85], ranks.outputs
        assert ranks.outputs.count("the run is saved: --resume continues it (rank 1 of 2") == 1, ranks.outputs
        made = len(read_losses(ranks.losses))
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run")
    assert checkpoint.position(saved) == divmod(made, 12)
    with start_ranks(tmp_path / "calm", [*training.flags(shards, tmp_path / "calm" / "run"), *FINE]) as calm:
        assert calm.wait() == [0, 0], calm.outputs
    with start_ranks(tmp_path / "again", arguments) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs
    expected = read_losses(tmp_path / "calm" / "losses")
    assert read_losses(tmp_path / "losses") + read_losses(tmp_path / "again" / "losses") == expected


def test_a_second_run_in_the_folder_says_what_it_waits_for(shards: Path, tmp_path: Path) -> None:
    from cltt.files.locks import locked

    arguments = training.flags(shards, tmp_path / "run", *FINE)
    with locked(tmp_path / "run" / ".lock"):
        process = training.start_tiny(arguments, tmp_path / "losses")
        while f"waiting for up to 120 s: {tmp_path / 'run'} is written to by process" not in process.log.read_text():
            assert process.poll() is None, process.log.read_text()
            time.sleep(0.02)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
