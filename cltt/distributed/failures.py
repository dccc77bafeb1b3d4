"""When one rank fails, all end within seconds, and the reason is printed once.

A rank that waits in a collective does not hear that another has failed. So a rank that fails writes its exit status to
the process group's store, and in each rank a thread with a store client of its own looks there every second. It ends
the process with that status, whatever the main thread waits in:

    a rank fails              it prints its sentence; the others end with its exit status
    a rank is killed          gloo breaks the others' collectives; one of them says which rank is silent. NCCL does not:
                              the launcher ends them, torchrun at once, srun ``--wait`` seconds later
    rank 0 or its node dies   the store dies with it, and the others cannot reach it
    the ranks hang            the collective times out

The end is ``os._exit``: tearing down a process group while others wait in it can hang.
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

FAILED = 1  # exit status of a run that ended without a word of its own
_INTERVAL = 1.0  # seconds between looks
_UNREACHABLE = 30.0  # seconds without an answer of the store's node
_CONSEQUENCE = 2.0  # seconds in which the failure behind a broken collective becomes known
_SILENT = 3.0  # seconds in which a rank that lives has looked
_LAST_READERS = 5.0  # seconds that the process with the store stays for the others to read it
_STATUS, _LOOKS, _DONE, _LEFT = "status", "looks", "done", "left"  # keys


class FailureWatch:
    """This rank's thread.

    Args:
        store: a client of the process group's store that nothing else uses.
        address: host and port of that store.
        info: who this rank is.
        serves: the store lives in this process, which therefore leaves last.
    """

    def __init__(self, store: Any, address: tuple[str, int], info: RankInfo, *, serves: bool) -> None:
        self._store, self._address, self._info, self._serves = store, address, info, serves
        self._closed = threading.Event()
        self._leaving = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="failure watch", daemon=True)
        self._thread.start()

    def fail(self, status: int, sentence: str) -> NoReturn:
        """End all ranks with ``status``; of several that fail, the first prints its ``sentence`` ("": nothing)."""
        mine = first = f"{status} {self._info.rank}"
        with contextlib.suppress(RuntimeError):  # no store any more: the others know
            first = self._store.compare_set(_STATUS, "", mine).decode()
        if first == mine:
            _print(sentence)
        self._leave(int(first.split()[0]))

    def silent_ranks(self) -> list[int]:
        """The ranks that do not look any more; takes seconds, and does not return if a failure becomes known."""
        time.sleep(_CONSEQUENCE)
        before = self._looks()
        time.sleep(_SILENT)
        return [rank for rank, looks in enumerate(self._looks()) if looks == before[rank]]

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        self._count_to_all(_DONE)

    def close(self) -> None:
        """Look no longer; where the store lives, return when no rank does."""
        self._closed.set()
        self._thread.join()
        self._count_to_all(_LEFT, wait=self._serves)

    def _watch(self) -> None:
        last_answer = time.monotonic()
        while not self._closed.wait(_INTERVAL):
            try:
                # The client waits without a limit for a node that is lost, and prints a stack if the store is gone.
                socket.create_connection(self._address, timeout=_UNREACHABLE).close()
                self._look()
                last_answer = time.monotonic()
            except Exception as error:
                passes = isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError)
                if not passes or time.monotonic() - last_answer > _UNREACHABLE:
                    if self._info.rank == 1:  # one of those who are left
                        _print(without_a_word([0]))
                    leave_now(FAILED)

    def _look(self) -> None:
        self._store.add(f"{_LOOKS}/{self._info.rank}", 1)
        if self._store.check([_STATUS]):
            self._leave(int(self._store.get(_STATUS).split()[0]))

    def _looks(self) -> list[int]:
        return [self._store.add(f"{_LOOKS}/{rank}", 0) for rank in range(self._info.world_size)]

    def _leave(self, status: int) -> NoReturn:
        """End this process; a second thread that comes here waits for the end."""
        self._leaving.acquire()
        with contextlib.suppress(RuntimeError):
            self._count_to_all(_LEFT, wait=self._serves, seconds=_LAST_READERS)
        leave_now(status)

    def _count_to_all(self, key: str, *, wait: bool = True, seconds: float = float("inf")) -> None:
        """Count this rank; ``wait``: return when all are counted, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        counted = self._store.add(key, 1)
        while wait and counted < self._info.world_size and time.monotonic() < deadline:
            time.sleep(0.05)
            counted = self._store.add(key, 0)


def without_a_word(ranks: list[int]) -> str:
    """The sentence for ranks that are gone and did not say why."""
    who = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks}"
    return (
        f"error: {who} ended without a word, or the node was lost (killed? often for its memory; the system's or "
        "Slurm's log may say); the same command with --resume goes on from the last checkpoint"
    )


def leave_now(status: int) -> NoReturn:
    """End the process at once; what is printed already is flushed if that is possible within a second."""
    thread = threading.Thread(target=_flush, daemon=True)  # the main thread may hold the lock of a full pipe
    thread.start()
    thread.join(1)
    os._exit(status)


def _print(sentence: str) -> None:
    if sentence:
        bar = "\n" if sys.stderr.isatty() else ""  # a progress bar may stand on the line
        with contextlib.suppress(OSError, ValueError):
            print(f"{bar}{sentence}", file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
