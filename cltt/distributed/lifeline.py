"""When one rank fails, all end within seconds, and the reason is printed once.

A rank that waits in a collective cannot hear that another has failed: gloo tells it when the other's process is gone,
NCCL may never. So beside the collectives every rank holds a plain connection to rank 0, watched by a thread that ends
the process, whatever the main thread is waiting in:

    a rank fails      it tells rank 0, which prints the sentence and tells all; they leave with the same exit status
    a rank is killed  the system closes its connection; rank 0 says so (of rank 0 itself: rank 1), and all leave
    a node is lost    the kernel's keepalive notices within half a minute
    all hang          rank 0 has seen no step for ``patience`` seconds, and no rank waits for something it knows of

The end is ``os._exit``: tearing down a process group while others wait in it can hang.

Messages are lines of JSON: a rank sends its number and the run's token, then ``waiting`` (+1 or -1), ``failed`` (a
status and a sentence) or ``done``. Rank 0 tells all ``go`` when every rank is there, then ``end`` (a status) or, when
all are done, ``done``.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

FAILED = 1  # exit status of a run that ended without a word of its own
_GOODBYE = 3.0  # seconds for the last words to arrive
_ANSWER = 10.0  # seconds that a failed rank waits for rank 0's
_TICK = 0.5  # seconds between looks at the clock
# Seconds without an answer before the first question, between questions, and questions, until a node counts as lost.
_KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Lifeline:
    """What both ends share: how many things this rank waits for knowingly, and how a process leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waits = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While this rank waits for something it knows of (a copy, a slow disk), no rank is thought to hang."""
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._lock:
            self._waits += change
            if self._waits == max(change, 0):  # from none to one, or from one to none
                self._say_waiting(change)

    def _say_waiting(self, change: int) -> None:
        raise NotImplementedError

    def made_progress(self) -> None:
        """A step was made."""

    def fail(self, status: int, sentence: str) -> NoReturn:
        """End all ranks with ``status``; ``sentence`` is printed once ("": nothing)."""
        raise NotImplementedError

    def close(self) -> None:
        """Return when every rank has come here; from then on each may end as it likes."""
        raise NotImplementedError


class Hub(Lifeline):
    """Rank 0's end. ``address`` is where the others :func:`join`."""

    def __init__(self, world_size: int, token: str, patience: float) -> None:
        super().__init__()
        self._size, self._token, self._patience = world_size, token, patience
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, backlog=world_size, dualstack_ipv6=dual)
        self.port = int(self._server.getsockname()[1])
        self._ranks: dict[socket.socket, int] = {}
        self._waiting: set[int] = set()
        self._done: set[int] = set()
        self._all_done = threading.Event()
        self._ending = threading.Lock()
        self._last_sign = time.monotonic()
        self._all_came = False  # until then wait_for_ranks keeps the time, for it knows who is missing
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._lines = _Lines()
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def wait_for_ranks(self) -> None:
        """Return when every rank is connected, and let them go; after ``patience`` s TimeoutError, with who is not."""
        while len(self._ranks) < self._size - 1:
            if time.monotonic() - self._last_sign > self._patience:
                missing = sorted(set(range(1, self._size)) - set(self._ranks.values()))
                raise TimeoutError(f"ranks {missing} did not connect to rank 0 within {self._patience:.0f} s")
            time.sleep(0.02)
        self.made_progress()
        self._all_came = True
        for connection in list(self._ranks):
            with contextlib.suppress(OSError):  # it failed at once: the thread ends all
                _send(connection, {"go": self._size})

    def made_progress(self) -> None:
        self._last_sign = time.monotonic()

    def fail(self, status: int, sentence: str) -> NoReturn:
        self._end(status, sentence)

    def close(self) -> None:
        self._mark_done(0)
        _wait(self._all_done)
        self._tell_all({"done": 0})

    def _say_waiting(self, change: int) -> None:
        self._note_waiting(0, change)

    def _note_waiting(self, rank: int, change: int) -> None:
        (self._waiting.add if change > 0 else self._waiting.discard)(rank)
        self.made_progress()

    def _mark_done(self, rank: int) -> None:
        self._done.add(rank)
        if len(self._done) == self._size:
            self._all_done.set()

    def _watch(self) -> None:
        while not self._all_done.is_set():
            for key, _ in self._selector.select(_TICK):
                if key.fileobj is self._server:
                    connection, _ = self._server.accept()
                    _keep_alive(connection)
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]  # only sockets are registered
            silent = time.monotonic() - self._last_sign
            if self._all_came and silent > self._patience and not self._waiting and not self._done:
                self._end(
                    FAILED,
                    f"no step was made for {silent:.0f} s, and no rank says what it waits for: all ranks end here; "
                    "the same command with --resume goes on from the last checkpoint",
                )

    def _read(self, connection: socket.socket) -> None:
        messages = self._lines.read(connection)
        if messages is None:
            self._selector.unregister(connection)
            rank = self._ranks.get(connection)
            if rank is not None and rank not in self._done:
                self._end(FAILED, _without_a_word(rank))
            return
        for message in messages:
            if message.get("token") == self._token:
                self._ranks[connection] = message["rank"]
            if connection not in self._ranks:  # a stranger
                self._selector.unregister(connection)
                connection.close()
                return
            self._hear(self._ranks[connection], message)

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._end(message["failed"], message["sentence"])
        elif "waiting" in message:
            self._note_waiting(rank, message["waiting"])
        elif "done" in message:
            self._mark_done(rank)

    def _end(self, status: int, sentence: str) -> NoReturn:
        """The first to come here ends all; a second, in another thread, waits for the end."""
        self._ending.acquire()
        _print(sentence)
        self._tell_all({"end": status})
        _leave(status)

    def _tell_all(self, message: dict[str, Any]) -> None:
        """Send ``message`` to all and wait until they have hung up (a socket closed too early would lose it)."""
        for connection in list(self._ranks):
            with contextlib.suppress(OSError):
                _send(connection, message)
                connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _GOODBYE
        for connection in list(self._ranks):
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                while connection.recv(1 << 16):
                    pass
            connection.close()
        self._server.close()


class Spoke(Lifeline):
    """The end of every other rank, connected to rank 0's at ``address``, ``port``; made when all ranks are."""

    def __init__(self, rank: int, address: str, port: int, token: str) -> None:
        super().__init__()
        self._rank = rank
        self._connection = socket.create_connection((address, port), timeout=60)
        self._connection.settimeout(None)
        _keep_alive(self._connection)
        self._joined, self._finished = threading.Event(), threading.Event()
        _send(self._connection, {"rank": rank, "token": token})
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()
        _wait(self._joined)

    def fail(self, status: int, sentence: str) -> NoReturn:
        with contextlib.suppress(OSError):
            _send(self._connection, {"failed": status, "sentence": sentence})
        time.sleep(_ANSWER)  # rank 0 prints the sentence, and its answer ends this process
        _print(sentence)
        _leave(status)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            _send(self._connection, {"done": self._rank})
        _wait(self._finished)
        self._connection.close()

    def _say_waiting(self, change: int) -> None:
        with contextlib.suppress(OSError):  # rank 0 is gone: the thread ends this process
            _send(self._connection, {"waiting": change})

    def _watch(self) -> None:
        lines = _Lines()
        while (messages := lines.read(self._connection)) is not None:
            for message in messages:
                if "end" in message:
                    _leave(message["end"])
                if "done" in message:
                    self._finished.set()
                    return
                self._joined.set()
        if self._rank == 1:  # one of those who are left
            _print(_without_a_word(0))
        _leave(FAILED)


class _Lines:
    """Whole lines of JSON from sockets that deliver pieces."""

    def __init__(self) -> None:
        self._rests: dict[socket.socket, bytes] = {}

    def read(self, connection: socket.socket) -> list[dict[str, Any]] | None:
        """What has come by now, at least a piece of it; None when the other end has gone."""
        try:
            piece = connection.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            return None
        *lines, rest = (self._rests.get(connection, b"") + piece).split(b"\n")
        self._rests[connection] = rest
        return [_parsed(line) for line in lines]


def _wait(event: threading.Event) -> None:
    while not event.wait(_TICK):  # never for long at once: Ctrl-C must get through
        pass


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {}


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _without_a_word(rank: int) -> str:
    return (
        f"error: rank {rank} ended without a word, or its node was lost (killed? often for its memory; the system's or "
        "Slurm's log may say); the same command with --resume goes on from the last checkpoint"
    )


def _print(sentence: str) -> None:
    if sentence:
        bar = "\n" if sys.stderr.isatty() else ""  # a progress bar may stand on the line
        with contextlib.suppress(OSError, ValueError):
            print(f"{bar}{sentence}", file=sys.stderr, flush=True)


def _leave(status: int) -> NoReturn:
    """End the process at once; what is printed already is flushed if that is possible within a second."""
    thread = threading.Thread(target=_flush, daemon=True)  # the main thread may hold the lock of a full pipe
    thread.start()
    thread.join(1)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
