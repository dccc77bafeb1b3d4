"""One rank with a failure watch, without a training.

python -m tests.helpers.watched_rank RANK SIZE PORT SCENARIO
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from cltt.distributed import failures
from cltt.distributed.failures import FailureWatch
from cltt.distributed.identity import RankInfo

LONG = 1000.0  # seconds: only the watch ends such a sleep


def all_done(watch: FailureWatch, rank: int) -> None:
    """They arrive at different times; none may leave before the last."""
    time.sleep(0.3 * rank)
    print(f"arrived {time.time()}")
    watch.wait_for_all()
    print(f"left {time.time()}")
    watch.close()


def rank_1_fails(watch: FailureWatch, rank: int) -> None:
    _fail(watch, rank == 1)


def rank_0_fails(watch: FailureWatch, rank: int) -> None:
    _fail(watch, rank == 0)


def all_fail(watch: FailureWatch, rank: int) -> None:
    _fail(watch, True)


def _fail(watch: FailureWatch, fails: bool) -> None:
    if fails:
        watch.fail(7, "the sentence")
    time.sleep(LONG)


def rank_0_is_killed(watch: FailureWatch, rank: int) -> None:
    _killed(rank, 0)
    time.sleep(LONG)


def rank_2_is_killed(watch: FailureWatch, rank: int) -> None:
    """The others find out who is silent."""
    _killed(rank, 2)
    watch.fail(1, f"silent: {watch.silent_ranks()}")


def _killed(rank: int, victim: int) -> None:
    if rank == victim:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)


def no_way_to_the_store(watch: FailureWatch, rank: int) -> None:
    """As after the loss of a node: packets go nowhere."""
    failures._UNREACHABLE = 2.0
    _break_connections(OSError(errno.EHOSTUNREACH, "No route to host"))
    time.sleep(LONG)


def no_way_for_a_while(watch: FailureWatch, rank: int) -> None:
    plain = _break_connections(OSError(errno.EMFILE, "Too many open files"))
    time.sleep(3)
    socket.create_connection = plain
    watch.wait_for_all()
    watch.close()


def the_watch_breaks(watch: FailureWatch, rank: int) -> None:
    """In whatever way: a rank without one could hang for good."""
    _break_connections(KeyError("a defect"))
    time.sleep(LONG)


def _break_connections(error: Exception) -> Any:
    plain = socket.create_connection

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    socket.create_connection = broken
    return plain


def main() -> None:
    rank, size, port = map(int, sys.argv[1:4])
    stores = [
        dist.TCPStore("127.0.0.1", port, size, serves, timeout=timedelta(seconds=60), wait_for_workers=False)
        for serves in ((True, False) if rank == 0 else (False,))
    ]
    watch = FailureWatch(stores[-1], ("127.0.0.1", port), RankInfo(rank, size, rank), serves=rank == 0)
    globals()[sys.argv[4]](watch, rank)
    failures.leave_now(0)  # the interpreter's own end takes seconds with all that is imported


if __name__ == "__main__":
    main()
