"""``tests.helpers.tiny_run`` with one fault on this rank.

    FAULT=name [TIMEOUT=seconds] [GAVE_UP=file] LOSSES=file python -m tests.helpers.faulty_run FLAGS OF train.py

The fault strikes this process alone; the moment it does is written to the file GAVE_UP. TIMEOUT: that of collectives,
beside --io-patience.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cltt import cli
from cltt.distributed import group
from cltt.errors import DataError, FrameError, StorageError
from cltt.evaluation.evaluator import Evaluator
from cltt.sets import locate
from cltt.shards import stage
from cltt.shards.dataset import ShardDataset
from cltt.training.trainer import Trainer
from tests.helpers import tiny_run

STRIKES_AT = 4  # the call at which a fault strikes, so that something has happened before
LONG = 12.0  # seconds of a wait that is longer than TIMEOUT


def gave_up() -> None:
    if "GAVE_UP" in os.environ:
        Path(os.environ["GAVE_UP"]).write_text(str(time.time()))


def before(owner: Any, name: str, act: Callable[[int], None]) -> None:
    """Call ``act`` with the number of the call before every call of ``owner.name``."""
    plain, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        act(calls)
        return plain(*args, **kwargs)

    setattr(owner, name, wrapped)


def bad_frames() -> None:
    """The storage of this rank gives nothing but rubbish after a while."""
    plain, calls = ShardDataset.read_each, 0

    def read_each(self: ShardDataset, frame_ids: np.ndarray) -> list[bytes | FrameError]:
        nonlocal calls
        calls += 1
        if calls < STRIKES_AT:
            return plain(self, frame_ids)
        gave_up()
        return [FrameError(frame, self.frame_name(frame), "CRC mismatch") for frame in frame_ids.tolist()]

    ShardDataset.read_each = read_each  # type: ignore[method-assign]


def dead_storage() -> None:
    """The storage of this rank answers no more, and its patience is at an end."""

    def act(call: int) -> None:
        if call >= STRIKES_AT:
            raise StorageError("shard-000000.tar could not be read for 600 s")

    before(ShardDataset, "read_each", act)


def out_of_memory() -> None:
    def act(call: int) -> None:
        if call == STRIKES_AT:
            gave_up()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more text")

    before(Trainer, "_embed", act)


def defect() -> None:
    def act(call: int) -> None:
        if call == STRIKES_AT:
            gave_up()
            raise KeyError("a mistake of ours")

    before(Trainer, "_embed", act)


def hang() -> None:
    before(Trainer, "_embed", lambda call: time.sleep(1000 if call == STRIKES_AT else 0))


def deaf() -> None:
    """The main thread waits in C, as in a collective of NCCL."""
    before(Trainer, "_embed", lambda call: ctypes.CDLL(None).sleep(1000) if call == STRIKES_AT else None)


def endless_tear_down() -> None:
    group.TEAR_DOWN = 2.0
    before(torch.distributed, "destroy_process_group", lambda call: ctypes.CDLL(None).sleep(1000))


def changed_source() -> None:
    """The folder of frames looks changed to this rank."""
    locate._of_source = lambda sets, now: None  # type: ignore[assignment]


def broken_evaluation() -> None:
    def act(call: int) -> None:
        gave_up()
        raise DataError("the evaluation images are gone")

    before(Evaluator, "__call__", act)


def long_evaluation() -> None:
    before(Evaluator, "__call__", lambda call: time.sleep(LONG))


def endless_evaluation() -> None:
    def act(call: int) -> None:
        gave_up()
        time.sleep(1000)

    before(Evaluator, "__call__", act)


def long_staging() -> None:
    before(stage, "_copy_missing", lambda call: time.sleep(LONG))


def endless_staging() -> None:
    def act(call: int) -> None:
        gave_up()
        time.sleep(1000)

    before(stage, "_copy_missing", act)


def slow_disk() -> None:
    before(ShardDataset, "read_each", lambda call: time.sleep(LONG if call == STRIKES_AT else 0))


def main() -> int:
    group.TIMEOUT = float(os.environ.get("TIMEOUT", group.TIMEOUT))
    if fault := os.environ.get("FAULT"):
        globals()[fault]()
    return tiny_run.main()


if __name__ == "__main__":
    cli.run(main, "train.py")
