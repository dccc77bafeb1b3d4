"""Helpers of the training tests: shards to train on, and the tiny run in processes of its own."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from unittest.mock import patch

from cltt import build_shards
from cltt.commands import train
from cltt.training import factory, run
from tests.helpers import data, tiny_run
from tests.helpers.nursery import Child, nursery

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
    return nursery().start("tests.helpers.tiny_run", arguments, {**os.environ, "LOSSES": str(losses), **environment})


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
