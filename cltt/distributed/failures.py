"""The failure monitor: if one rank fails, all end within seconds and one prints the reason.

A rank that waits in a collective does not notice that another rank has failed. So a rank that fails writes its exit
status to the process group's store. In each rank a thread with its own store client reads the store every second, and
ends the process with that status:

    a rank fails              it prints its sentence; the others end with its exit status
    a rank is killed          gloo raises in the other ranks, and one of them prints which rank is silent; NCCL does
                              not, so the launcher ends them: torchrun at once, srun after ``--wait`` seconds
    rank 0 or its node dies   the store is gone; the other ranks end when they cannot reach it
    the ranks hang            the collective times out

Processes end by ``os._exit``, since closing a process group while other ranks wait in it can hang.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from cltt.distributed.identity import RankInfo

FAILED = 1  # exit status of a run whose failing rank gave none
_INTERVAL = 1.0  # seconds between two reads of the store
_UNREACHABLE = 30.0  # seconds without an answer from the store's node after which a rank ends
_CONSEQUENCE = 2.0  # seconds to wait, after a broken collective, for the status of the rank that failed
_SILENT = 3.0  # seconds within which every living rank reads the store
_LAST_READERS = 5.0  # seconds that the process with the store waits for the others to read it
_STATUS, _READS, _DONE, _LEFT = "status", "reads", "done", "left"  # keys


class FailureMonitor:
    """The failure monitor of this rank: a thread that reads the store.

    Args:
        store: a client of the process group's store that nothing else uses.
        address: host and port of that store.
        info: rank and number of ranks.
        serves: the store is in this process, which therefore ends last.
    """

    def __init__(self, store: Any, address: tuple[str, int], info: RankInfo, *, serves: bool) -> None:
        self._store, self._address, self._info, self._serves = store, address, info, serves
        self._closed = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="failure monitor", daemon=True)
        self._thread.start()

    def fail(self, status: int, sentence: str) -> NoReturn:
        """End all ranks with ``status``; if several fail, only the first prints its ``sentence``."""
        mine = first = f"{status} {self._info.rank}"
        with contextlib.suppress(RuntimeError):  # the store is gone: the other ranks notice that
            first = self._store.compare_set(_STATUS, "", mine).decode()
        if first == mine:
            _print(sentence)
        self._leave(int(first.split()[0]))

    def silent_ranks(self) -> list[int]:
        """The ranks that no longer read the store, found in about five seconds.

        If a rank's exit status is in the store by then, the thread ends this process instead.
        """
        time.sleep(_CONSEQUENCE)
        before = self._reads()
        time.sleep(_SILENT)
        return [rank for rank, reads in enumerate(self._reads()) if reads == before[rank]]

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        self._count_to_all(_DONE)

    def close(self) -> None:
        """Stop the thread; the process with the store returns when all ranks have called this."""
        self._closed.set()
        self._thread.join()
        self._count_to_all(_LEFT, wait=self._serves)

    def _watch(self) -> None:
        last_answer = time.monotonic()
        while not self._closed.wait(_INTERVAL):
            try:
                # torch's client would wait forever for a lost node, and print a stack trace if the store is gone.
                socket.create_connection(self._address, timeout=_UNREACHABLE).close()
                self._read()
                last_answer = time.monotonic()
            except Exception as error:
                is_transient = isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError)
                if not is_transient or time.monotonic() - last_answer > _UNREACHABLE:
                    if self._info.rank == 1:  # only one rank prints it
                        _print(lost_ranks([0]))
                    leave_now(FAILED)

    def _read(self) -> None:
        self._store.add(f"{_READS}/{self._info.rank}", 1)
        if self._store.check([_STATUS]):
            self._leave(int(self._store.get(_STATUS).split()[0]))

    def _reads(self) -> list[int]:
        return [self._store.add(f"{_READS}/{rank}", 0) for rank in range(self._info.world_size)]

    def _leave(self, status: int) -> NoReturn:
        """End this process with ``status``; a second thread that calls this waits for the end."""
        self._leaving.acquire()
        with contextlib.suppress(RuntimeError):
            self._count_to_all(_LEFT, wait=self._serves, seconds=_LAST_READERS)
        leave_now(status)

    def _count_to_all(self, key: str, *, wait: bool = True, seconds: float = float("inf")) -> None:
        """Count this rank under ``key``; with ``wait``, wait for all ranks, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        counted = self._store.add(key, 1)
        while wait and counted < self._info.world_size and time.monotonic() < deadline:
            time.sleep(0.05)
            counted = self._store.add(key, 0)


def lost_ranks(ranks: list[int]) -> str:
    """The sentence for ranks that have ended without a message."""
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks}"
    return (
        f"error: {who} ended without a message, or the node was lost (killed, often for its memory: see the system's "
        "or Slurm's log); the same command with --resume goes on from the last checkpoint"
    )


def leave_now(status: int) -> NoReturn:
    """End the process now; output is flushed if that takes less than a second."""
    thread = threading.Thread(target=_flush, daemon=True)  # flushing can block: another thread may hold the lock
    thread.start()
    thread.join(1)
    os._exit(status)


def _print(sentence: str) -> None:
    if sentence:
        bar = "\n" if sys.stderr.isatty() else ""  # a progress bar may be on this line
        with contextlib.suppress(OSError, ValueError):
            print(f"{bar}{sentence}", file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
