"""Python processes that start at once, each forked from one that has imported torch and the package already.

    child = fork_server().start("tests.helpers.tiny_run", arguments, environment)
    output, _ = child.communicate()

A child is what ``python -m MODULE ARGUMENTS`` is, with the libraries already imported, which takes most of the time of
many tests. ``python -m tests.helpers.fork_server`` is the parent of the children: it reads one order per line on its
standard input, forks, and prints each child's number and exit status. When the input closes it kills the children.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ALONE = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}  # a fork must find no second thread
# What the children use, with what torch and matplotlib import when they are first used.
LIBRARIES = ("cltt.commands.train", "cltt.commands.build", "torch._dynamo", "matplotlib.pyplot", "PIL.Image")
POLL_SECONDS = 0.01


class Child:
    """One started process, as a ``subprocess.Popen`` whose output goes to the file ``log``."""

    def __init__(self, fork_server: ForkServer, pid: int, log: Path) -> None:
        self._fork_server, self.pid, self.log = fork_server, pid, log
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._fork_server.status_of(self.pid)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        """The exit status; subprocess.TimeoutExpired after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout, self.log.read_bytes())
            time.sleep(POLL_SECONDS)
        return status

    def communicate(self, timeout: float = float("inf")) -> tuple[str, None]:
        """All that it printed, when it has ended."""
        self.wait(timeout)
        return self.log.read_text(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts processes from any number of threads; leaves none behind.

    ``environment`` is theirs, and that of what they start.
    """

    def __init__(self, **environment: str) -> None:
        self.environment = {**ALONE, **environment}
        self._folder = Path(tempfile.mkdtemp(prefix="fork-server-"))
        self._pids: list[int] = []  # in the order of the requests
        self._statuses: dict[int, int] = {}
        self._asked = 0
        self._rest = b""
        self._lock = threading.Lock()
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_server"],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._parent.stdin and self._parent.stdout
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()
        shutil.rmtree(self._folder)

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        errors: Path | None = None,
        folder: Path = ROOT,
    ) -> Child:
        """Start ``python -m module arguments`` in ``folder``; its output is appended to ``log``.

        ``errors``: what its standard error is appended to, where that is to be another file.
        """
        assert self._parent.stdin
        with self._lock:
            number, self._asked = self._asked, self._asked + 1
            log = log or self._folder / f"output-{number}"
            log.touch()
            order = {"argv": [module, *arguments], "environment": {**self.environment, **environment}}
            line = json.dumps({**order, "log": str(log), "errors": str(errors or log), "folder": str(folder)})
            self._parent.stdin.write(line.encode() + b"\n")
            self._parent.stdin.flush()
        while len(self._pids) <= number:
            self._listen(POLL_SECONDS)
        return Child(self, self._pids[number], log)

    def run(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` of ``python -m module arguments`` in ``folder``, its output captured; for 300 s."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            log, errors = Path(name) / "log", Path(name) / "errors"
            child = self.start(module, arguments, environment, log=log, errors=errors, folder=folder)
            try:
                status = child.wait(timeout=300)
            finally:
                child.kill()
            return subprocess.CompletedProcess([module, *arguments], status, log.read_text(), errors.read_text())

    def status_of(self, pid: int) -> int | None:
        """The exit status of a child, once it has ended."""
        self._listen(0.0)
        return self._statuses.get(pid)

    def _listen(self, seconds: float) -> None:
        assert self._parent.stdout
        with self._lock:
            while select.select([self._parent.stdout], [], [], seconds)[0]:
                if not (piece := os.read(self._parent.stdout.fileno(), 1 << 16)):
                    raise RuntimeError("the fork server is gone")
                *lines, self._rest = (self._rest + piece).split(b"\n")
                for line in lines:
                    self._hear(**json.loads(line))

    def _hear(self, pid: int, status: int | None) -> None:
        if status is None:
            self._statuses.pop(pid, None)  # the system gives numbers again
            self._pids.append(pid)
        else:
            self._statuses[pid] = status


@functools.cache
def fork_server() -> ForkServer:
    """The fork server of this process, started at the first call."""
    made = ForkServer()
    atexit.register(made.close)
    return made


# ---- in the parent of the children


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
        if select.select([0], [], [], POLL_SECONDS if children else None)[0]:
            if not (piece := os.read(0, 1 << 16)):
                return
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        while children and (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            children.discard(ended[0])
            _tell(ended[0], os.waitstatus_to_exitcode(ended[1]))


def _tell(pid: int, status: int | None) -> None:
    os.write(1, json.dumps({"pid": pid, "status": status}).encode() + b"\n")


def _become(argv: list[str], environment: Mapping[str, str], log: str, errors: str, folder: str) -> None:
    """Be ``python -m argv``, until it exits."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    appending = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for path, flags, target in ((os.devnull, os.O_RDONLY, 0), (log, appending, 1), (errors, appending, 2)):
        handle = os.open(path, flags, 0o644)
        os.dup2(handle, target)
        os.close(handle)
    sys.argv[1:] = argv[1:]
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who gives the orders
    order = _serve()
    if order is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(**order)


if __name__ == "__main__":
    main()
