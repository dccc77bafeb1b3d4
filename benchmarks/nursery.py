"""Processes that start at once, each forked from one that has imported torch and the package already.

    with Nursery() as nursery:
        child = nursery.start("train", flags, environment, log)
        child.send_signal(signal.SIGKILL); child.poll()

``python -m benchmarks.nursery`` is the parent of the children: it reads an order a line on its standard input, forks,
and tells each child's number and exit status on its standard output. When the input closes it kills those left.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import faults, harness
from cltt import cli

POLL_SECONDS = 0.01


class Child:
    """One started process, as a ``subprocess.Popen`` shows it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid

    @property
    def returncode(self) -> int | None:
        return self._nursery.statuses.get(self.pid)

    def poll(self) -> int | None:
        self._nursery.listen()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        while self.poll() is None:
            time.sleep(POLL_SECONDS)


class Nursery:
    """Starts processes from any number of threads; leaves none behind.

    ``environment`` is theirs, and that of what they start.
    """

    def __init__(self, **environment: str) -> None:
        self.environment = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(harness.ROOT), **environment}
        self.statuses: dict[int, int] = {}
        self._pids: list[int] = []  # in the order of the requests
        self._asked = 0
        self._rest = b""
        self._lock = threading.Lock()
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.nursery"],
            cwd=harness.ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()

    def start(self, what: str, flags: list[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start what :mod:`benchmarks.faults` calls ``what``; its output is appended to ``log``."""
        assert self._parent.stdin
        order = {"what": what, "flags": flags, "environment": {**self.environment, **environment}, "log": str(log)}
        with self._lock:
            number, self._asked = self._asked, self._asked + 1
            self._parent.stdin.write(json.dumps(order).encode() + b"\n")
            self._parent.stdin.flush()
        while len(self._pids) <= number:
            self.listen(POLL_SECONDS)
        return Child(self, self._pids[number])

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what the parent has told; RuntimeError if it is gone."""
        assert self._parent.stdout
        with self._lock:
            while select.select([self._parent.stdout], [], [], seconds)[0]:
                if not (piece := os.read(self._parent.stdout.fileno(), 1 << 16)):
                    raise RuntimeError("the nursery is gone")
                *lines, self._rest = (self._rest + piece).split(b"\n")
                for line in lines:
                    self._hear(**json.loads(line))

    def _hear(self, pid: int, status: int | None) -> None:
        if status is None:
            self.statuses.pop(pid, None)  # the system gives numbers again
            self._pids.append(pid)
        else:
            self.statuses[pid] = status


# ---- in the parent


def _serve() -> dict[str, Any] | None:
    """In the parent: None, when the input has closed. In each child: its order."""
    children: set[int] = set()
    for line in _lines(children):
        order: dict[str, Any] = json.loads(line)
        if (pid := os.fork()) == 0:
            return order
        children.add(pid)
        _tell(pid, None)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return None


def _lines(children: set[int]) -> Iterator[bytes]:
    """The lines of the standard input as they come; between them ``children`` that ended are told."""
    rest = b""
    while True:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            if not (piece := os.read(0, 1 << 16)):
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        while children and (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            children.discard(ended[0])
            _tell(ended[0], os.waitstatus_to_exitcode(ended[1]))


def _tell(pid: int, status: int | None) -> None:
    os.write(1, json.dumps({"pid": pid, "status": status}).encode() + b"\n")


def _become(order: Mapping[str, Any]) -> None:
    """Take the environment and the streams that were ordered."""
    os.environ.clear()
    os.environ.update(order["environment"])
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)


def main() -> int:
    faults.preload()
    order = _serve()
    if order is not None:
        _become(order)
        cli.run(lambda: faults.run(order["what"], order["flags"]), f"faults {order['what']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
