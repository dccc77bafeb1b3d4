"""Helpers of the training tests: shards to train on, and the tiny run in processes of its own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from cltt import build_shards, checkpoint, cli
from cltt.commands import train
from cltt.errors import SettingsError
from cltt.training import factory, run
from tests.helpers import data, tiny_run
from tests.helpers.fork_server import Child, fork_server

ROOT = Path(__file__).parents[2]
CLIPS = {"a/one": 40, "a/two": 33, "b/one": 51, "b/two": 28}


def make_shards(folder: Path) -> Path:
    """Four drawn clips as shards in ``folder``/shards, labelled by their parent folder."""
    data.make_clips(folder / "frames", CLIPS)
    build_shards(folder / "frames", folder / "shards", label_from="parent")
    return folder / "shards"


def flags(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """Flags of a run of four epochs of twelve steps."""
    return [
        *("--shards", str(shards), "--checkpoint-dir", str(run_dir), "--window-size", "3", "--frame-step", "2"),
        *("--batch-size", "8", "--image-size", "32", "--num-workers", "1", "--proj-dim", "8", "--epochs", "4"),
        *("--max-batches-per-epoch", "12", "--csv-log", "--device", "cpu", *more),
    ]


def start_tiny(arguments: list[str], losses: Path, **environment: str) -> Child:
    """Start ``tests.helpers.tiny_run``; its output comes with ``communicate``."""
    return fork_server().start(
        "tests.helpers.tiny_run", arguments, {**os.environ, "LOSSES": str(losses), **environment}
    )


def run_tiny(arguments: list[str], losses: Path, **environment: str) -> tuple[int, str]:
    """Run ``tests.helpers.tiny_run`` to its end -> (exit status, output)."""
    process = start_tiny(arguments, losses, **environment)
    return process.wait(timeout=300), process.log.read_text()


def run_here(arguments: list[str], *, stop_after: int = 0) -> tuple[int, list[float]]:
    """Run ``train.py`` with the tiny model in this process -> (exit status, loss of every step).

    ``stop_after``: ask it to stop, as a batch system does, once it has made so many steps.
    """
    losses: list[float] = []

    def on_step(loss: float) -> None:
        losses.append(loss)
        if len(losses) == stop_after:
            signal.raise_signal(signal.SIGUSR1)

    with patch.object(factory, "build_model", tiny_run.tiny_model):
        return run.train(train.parse(arguments), on_step=on_step), losses


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which ``train.py``, called in this process, refuses ``arguments``; status 2."""
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: train.main(arguments), "train.py")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error, error
    return error


def assert_resumes(arguments: Callable[[str], list[str]], *, stop_after: int, refused: Mapping[str, list[str]]) -> None:
    """A run that stops and resumes has the losses and final weights of an unbroken one, bit by bit.

    ``arguments``: those of a run in a folder of that name. ``refused``: what a refusal to resume says, and the
    arguments that it refuses.
    """
    whole, parts = arguments("whole"), arguments("parts")
    status, losses = run_here(whole)
    stopped, first = run_here(parts, stop_after=stop_after)
    for words, changed in refused.items():
        with pytest.raises(SettingsError, match=words):
            run_here([*changed, "--resume"])
    ended, rest = run_here([*parts, "--resume"])
    assert (status, stopped, ended) == (0, 85, 0) and first + rest == losses and len(first) == stop_after
    folders = [Path(flags[flags.index("--checkpoint-dir") + 1]) for flags in (whole, parts)]
    assert same(*(checkpoint.load(checkpoint.list_checkpoints(folder)[-1])["model"] for folder in folders))


def same(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether both have the same names and, bit by bit, the same tensors."""
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
