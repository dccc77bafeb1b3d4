"""One rank with a failure monitor, without a training.

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
from cltt.distributed.failures import FailureMonitor
from cltt.distributed.identity import RankInfo

LONG = 1000.0  # seconds: only the monitor ends such a sleep


def all_done(monitor: FailureMonitor, rank: int) -> None:
    """They arrive at different times; none may leave before the last."""
    time.sleep(0.3 * rank)
    print(f"arrived {time.time()}")
    monitor.wait_for_all()
    print(f"left {time.time()}")
    monitor.close()


def rank_1_fails(monitor: FailureMonitor, rank: int) -> None:
    _fail(monitor, rank == 1)


def rank_0_fails(monitor: FailureMonitor, rank: int) -> None:
    _fail(monitor, rank == 0)


def all_fail(monitor: FailureMonitor, rank: int) -> None:
    _fail(monitor, True)


def _fail(monitor: FailureMonitor, fails: bool) -> None:
    if fails:
        monitor.fail(7, "the sentence")
    time.sleep(LONG)


def rank_0_is_killed(monitor: FailureMonitor, rank: int) -> None:
    _killed(rank, 0)
    time.sleep(LONG)


def rank_2_is_killed(monitor: FailureMonitor, rank: int) -> None:
    """The others find out who is silent."""
    _killed(rank, 2)
    monitor.fail(1, f"silent: {monitor.silent_ranks()}")


def _killed(rank: int, victim: int) -> None:
    if rank == victim:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)


def no_way_to_the_store(monitor: FailureMonitor, rank: int) -> None:
    """As after the loss of a node: packets go nowhere."""
    failures._UNREACHABLE = 2.0
    _break_connections(OSError(errno.EHOSTUNREACH, "No route to host"))
    time.sleep(LONG)


def no_way_for_a_while(monitor: FailureMonitor, rank: int) -> None:
    plain = _break_connections(OSError(errno.EMFILE, "Too many open files"))
    time.sleep(3)
    socket.create_connection = plain
    monitor.wait_for_all()
    monitor.close()


def the_monitor_breaks(monitor: FailureMonitor, rank: int) -> None:
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
    monitor = FailureMonitor(stores[-1], ("127.0.0.1", port), RankInfo(rank, size, rank), serves=rank == 0)
    globals()[sys.argv[4]](monitor, rank)
    failures.leave_now(0)  # the interpreter's own end takes seconds with all that is imported


if __name__ == "__main__":
    main()
