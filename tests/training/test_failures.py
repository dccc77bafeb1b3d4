"""One rank fails: all processes end within seconds, the reason is said once, the next start goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from cltt import ShardDataset, build_shards, checkpoint
from tests.helpers import training
from tests.helpers.ranks import Ranks, start_ranks

pytestmark = pytest.mark.slow
LIMIT = 15.0  # seconds from the moment that a rank gives up to the end of the last process
STEPS = 18  # of the whole run, six an epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("failures"))


def flags(shards: Path, folder: Path, *more: str) -> list[str]:
    """Three epochs of six steps, a checkpoint every few steps."""
    short = ["--epochs", "3", "--max-batches-per-epoch", "6", "--checkpoint-minutes", "0.0005", "--resume"]
    return [*training.flags(shards, folder / "run"), *short, *more]


def assert_all_ended(ranks: Ranks, moment: float, statuses: list[int], *sentences: str) -> None:
    assert ranks.wait() == statuses, ranks.outputs
    assert ranks.seconds_after(moment) < LIMIT, ranks.outputs
    for sentence in sentences:
        assert ranks.outputs.count(sentence) == 1, ranks.outputs
    assert "Traceback" not in ranks.outputs, ranks.outputs


def assert_goes_on(arguments: list[str], folder: Path) -> None:
    """The checkpoints are whole, and one process finishes the run."""
    path, _, warnings = checkpoint.find_latest(folder / "run")
    assert path is not None and warnings == []
    status, output = training.run_tiny(arguments, folder / "rest")
    assert status == 0 and "resuming from" in output, output


@pytest.mark.parametrize(
    ("fault", "world_size", "status", "sentence"),
    [
        ("bad_frames", 4, 2, "are allowed (--max-bad-frames)"),
        (
            "out_of_memory",
            2,
            1,
            "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.; give --sub-batch-size",
        ),
    ],
)
def test_a_rank_fails_in_training(
    fault: str, world_size: int, status: int, sentence: str, shards: Path, tmp_path: Path
) -> None:
    arguments = flags(shards, tmp_path)
    with start_ranks(
        tmp_path, [*arguments, "--max-bad-frames", "2"], world_size, own_environment={1: {"FAULT": fault}}
    ) as ranks:
        ranks.wait()
        assert_all_ended(ranks, ranks.gave_up, [status] * world_size, sentence, "(rank 1 of")
        assert sentence in ranks.output(1), "the rank that fails says it"
    if fault == "out_of_memory":
        assert_goes_on(arguments, tmp_path)


def test_a_rank_that_is_deaf_ends_with_the_status_of_the_one_that_fails(shards: Path, tmp_path: Path) -> None:
    """Its main thread waits in C, as NCCL does: Python's signal handlers do not run."""
    faults = {0: {"FAULT": "deaf"}, 1: {"FAULT": "bad_frames"}}
    arguments = [*flags(shards, tmp_path), "--max-bad-frames", "2"]
    with start_ranks(tmp_path, arguments, own_environment=faults) as ranks:
        ranks.wait()
        assert_all_ended(ranks, ranks.gave_up, [2, 2], "are allowed (--max-bad-frames)")


def test_a_defect_of_one_rank_shows_its_traceback_once(shards: Path, tmp_path: Path) -> None:
    with start_ranks(tmp_path, flags(shards, tmp_path), own_environment={0: {"FAULT": "defect"}}) as ranks:
        assert ranks.wait() == [1, 1]
        assert ranks.seconds_after(ranks.gave_up) < LIMIT
        assert ranks.outputs.count("Traceback") == 1 and ranks.outputs.count("error: KeyError: 'a mistake") == 1


@pytest.mark.parametrize(("victim", "world_size"), [(0, 2), (0, 4), (1, 2), (3, 4)])
def test_a_rank_is_killed(victim: int, world_size: int, shards: Path, tmp_path: Path) -> None:
    arguments = flags(shards, tmp_path)
    with start_ranks(tmp_path, arguments, world_size) as ranks:
        ranks.follow(ranks.losses, 5)
        ranks.processes[victim].send_signal(signal.SIGKILL)
        statuses = [1] * world_size
        statuses[victim] = -signal.SIGKILL
        assert_all_ended(ranks, time.time(), statuses, f"rank {victim} ended without a message")
    assert_goes_on(arguments, tmp_path)


def test_a_rank_that_cannot_open_a_shard(shards: Path, tmp_path: Path) -> None:
    """One node sees another disk: the same relative path leads nowhere."""
    (tmp_path / "elsewhere").mkdir()
    with start_ranks(
        tmp_path, flags(Path(shards.name), tmp_path), own_folders={0: shards.parent, 1: tmp_path / "elsewhere"}
    ) as ranks:
        ranks.wait()
        assert_all_ended(ranks, min(ranks.ended.values()), [2, 2], "error: ", "(rank 1 of 2, on ")
        assert shards.name in ranks.output(1)
    assert not (tmp_path / "run").exists()


def test_ranks_that_see_other_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other" / shards.name
    build_shards(shards.parent / "frames", copy, workers=1)  # without labels
    assert ShardDataset(copy).fingerprint != ShardDataset(shards).fingerprint
    with start_ranks(
        tmp_path, flags(Path(shards.name), tmp_path), own_folders={0: shards.parent, 1: copy.parent}
    ) as ranks:
        assert ranks.wait() == [2, 2]
        assert_all_ended(ranks, min(ranks.ended.values()), [2, 2], "the ranks do not agree on the shards")


def test_a_node_whose_disk_cannot_be_written(shards: Path, tmp_path: Path) -> None:
    """Two nodes with a rank each; one of them cannot stage. The other waits for it and is not left waiting."""
    nodes = {rank: {"LOCAL_RANK": "0"} for rank in (0, 1)}
    targets = {0: ["--stage-to", str(tmp_path / "disk")], 1: ["--stage-to", "/proc/nowhere"]}
    with start_ranks(tmp_path, flags(shards, tmp_path), own_environment=nodes, own_arguments=targets) as ranks:
        ranks.wait()
        assert_all_ended(ranks, min(ranks.ended.values()), [2, 2], "give another --stage-to (rank 1 of 2")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_looks_changed_to_one_rank(rank: int, tmp_path: Path) -> None:
    """Rank 0 decides for all: what another sees does not matter."""
    training.make_shards(tmp_path)
    frames = ["--root-dir", str(tmp_path / "frames"), *flags(Path("x"), tmp_path)[2:]]
    environment = {rank: {"FAULT": "changed_source"}}
    folders = {0: tmp_path, 1: tmp_path}
    status, output = build_first(frames, tmp_path)
    assert status == 0, output
    with start_ranks(tmp_path / "ranks", frames, own_environment=environment, own_folders=folders) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs
        assert ranks.outputs.count("using the shards in") == rank  # rank 0's eyes count
        assert ranks.outputs.count("which stays for the runs that use it") == 1 - rank


def build_first(arguments: list[str], folder: Path) -> tuple[int, str]:
    """One process builds the shards, and makes a run of its own."""
    own_run = [*arguments, "--checkpoint-dir", str(folder / "first"), "--epochs", "1"]
    with start_ranks(folder / "one", own_run, 1, own_folders={0: folder}) as ranks:
        return ranks.wait()[0], ranks.outputs


def test_evaluation_data_that_are_not_there(shards: Path, tmp_path: Path) -> None:
    with start_ranks(tmp_path, flags(shards, tmp_path, "--eval-data", str(tmp_path / "nowhere"))) as ranks:
        ranks.wait()
        assert_all_ended(ranks, min(ranks.ended.values()), [2, 2], "error: ")
    assert not (tmp_path / "run").exists()


def test_evaluation_data_that_break_in_the_run(shards: Path, tmp_path: Path) -> None:
    arguments = flags(shards, tmp_path, "--eval-data", str(shards))
    with start_ranks(tmp_path, arguments, own_environment={0: {"FAULT": "broken_evaluation"}}) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs
        assert "no evaluation this time: the evaluation images are gone; training goes on" in ranks.outputs
    assert (tmp_path / "run" / "metrics_eval.csv").read_text().count("\n") == 1  # its head alone


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 85)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_at_one_rank_stops_all_with_a_checkpoint(
    number: signal.Signals, status: int, rank: int, shards: Path, tmp_path: Path
) -> None:
    arguments = flags(shards, tmp_path)
    with start_ranks(tmp_path, arguments) as ranks:
        ranks.follow(ranks.losses, 3)
        ranks.processes[rank].send_signal(number)
        assert_all_ended(ranks, time.time(), [status, status], "stopped on request at")
    assert_goes_on(arguments, tmp_path)


def test_a_stop_in_an_evaluation_is_heard_and_loses_no_epoch(shards: Path, tmp_path: Path) -> None:
    arguments = flags(shards, tmp_path, "--eval-data", str(shards))
    with start_ranks(tmp_path, arguments, own_environment={0: {"FAULT": "endless_evaluation"}}) as ranks:
        ranks.follow(tmp_path / "gave-up")
        for process in ranks.processes:
            process.send_signal(signal.SIGUSR1)
        assert_all_ended(ranks, time.time(), [85, 85], "no evaluation of epoch 1", "stopped on request at epoch 1/3")
    assert_goes_on(arguments, tmp_path)
    assert (tmp_path / "run" / "metrics_eval.csv").read_text().count("\n") == 1 + 3


@pytest.mark.parametrize(("number", "status", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 85, "")])
def test_a_signal_while_others_are_waited_for(
    number: signal.Signals, status: int, words: str, shards: Path, tmp_path: Path
) -> None:
    """Rank 1 waits for rank 0's copy, with nothing to save: it ends at once, and so does rank 0."""
    arguments = flags(shards, tmp_path, "--stage-to", str(tmp_path / "disk"))
    with start_ranks(tmp_path, arguments, own_environment={0: {"FAULT": "endless_staging"}}) as ranks:
        ranks.follow(tmp_path / "gave-up")
        time.sleep(1)
        ranks.processes[1].send_signal(number)
        assert_all_ended(ranks, time.time(), [status, status], *([words] if words else []))


# ---- waiting that is no failure


TIMEOUT = "8"  # seconds; the waits take longer


@pytest.mark.parametrize(
    ("fault", "rank", "more"),
    [
        ("long_staging", 0, ["--stage-to", "{disk}", "--io-patience", "0.1"]),
        ("long_evaluation", 0, ["--eval-data", "{shards}", "--io-patience", "0.1"]),
        ("slow_disk", 1, ["--io-patience", "10"]),
    ],
)
def test_waiting_is_not_hanging(fault: str, rank: int, more: list[str], shards: Path, tmp_path: Path) -> None:
    filled = [argument.format(disk=tmp_path / "disk", shards=shards) for argument in more]
    arguments = flags(shards, tmp_path, *filled, "--epochs", "1")
    with start_ranks(tmp_path, arguments, own_environment={rank: {"FAULT": fault}}, TIMEOUT=TIMEOUT) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs


def test_hanging_ends(shards: Path, tmp_path: Path) -> None:
    """A rank that makes no step and reads nothing ends the run, instead of holding its GPUs for days."""
    arguments = flags(shards, tmp_path, "--io-patience", "0.1")
    with start_ranks(tmp_path, arguments, own_environment={1: {"FAULT": "hang"}}, TIMEOUT=TIMEOUT) as ranks:
        ranks.follow(ranks.losses, 2)
        assert ranks.wait() == [1, 1], ranks.outputs
        assert ranks.outputs.count("a collective timed out") == 1 and "Traceback" not in ranks.outputs
    assert_goes_on(arguments, tmp_path)


def test_an_end_that_hangs_is_left(shards: Path, tmp_path: Path) -> None:
    """All is saved: the statuses are those of a run that succeeds."""
    faults = {rank: {"FAULT": "endless_tear_down"} for rank in (0, 1)}
    with start_ranks(tmp_path, flags(shards, tmp_path), own_environment=faults) as ranks:
        assert ranks.wait() == [0, 0], ranks.outputs
    assert (tmp_path / "run" / "complete").is_file()
