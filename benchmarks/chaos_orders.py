"""How chaos is made: faults ordered and counted, processes watched, what has ended started again.

A fault counts only if it struck: the struck process says so (:mod:`benchmarks.faults`), or ended of it.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

READ_FAULTS = ("EIO", "ESTALE", "hanging read", "short read")
LASTING = ("EIO", "ESTALE", "full disk")  # for a while; the others strike once
PATIENCE = 60.0  # seconds without any progress until processes are thought to hang (a busy machine is slow)
POLL_SECONDS = 0.02


class ChaosError(AssertionError):
    """Something that must not happen."""


class Process(Protocol):
    """What is watched: a child of :mod:`tests.helpers.fork_server`, or a ``Popen``."""

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


@dataclass
class Orders:
    """The file by which faults are ordered, and which of them have struck."""

    folder: Path
    kinds: list[str] = field(default_factory=list)

    def give(self, kind: str, seconds: float) -> int:
        """Let ``kind`` be on for ``seconds`` from now; its number."""
        number = len(self.kinds)
        self.kinds.append(kind)
        order = {"number": number, "kind": kind, "until": time.monotonic() + seconds}
        temporary = self.folder / "order.new"
        temporary.write_text(json.dumps(order))
        os.replace(temporary, self.folder / "order")
        return number

    def note(self, kind: str) -> None:
        """Count a fault that was no order: a signal."""
        self.kinds.append(kind)
        with open(self.folder / "struck", "a") as file:
            file.write(f"{len(self.kinds) - 1}\n")

    @property
    def struck_numbers(self) -> set[int]:
        path = self.folder / "struck"
        return {int(line) for line in path.read_text().split()} if path.is_file() else set()

    @property
    def struck(self) -> Counter[str]:
        return Counter(self.kinds[number] for number in self.struck_numbers)

    def give_and_wait(self, kind: str, seconds: float, started: Started) -> None:
        """Order ``kind`` and wait until it is over; one that strikes once is over when it has, at the latest in 2 s."""
        seconds = seconds if kind in LASTING else 2.0
        number, end = self.give(kind, seconds), time.monotonic() + seconds
        while time.monotonic() < end and started.running:
            if kind not in LASTING and number in self.struck_numbers:
                return
            time.sleep(POLL_SECONDS)


@dataclass
class Watch:
    """Counts the seconds in which this process is awake: a machine that is stopped for a while is no hang."""

    seconds: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def look(self) -> float:
        now = time.monotonic()
        self.seconds += min(now - self._last, 1.0)  # it is looked at every POLL_SECONDS
        self._last = now
        return self.seconds


@dataclass
class Started:
    """Processes of one start, where their output goes, and what grows or changes while they do something."""

    processes: list[Process]
    log: Path
    progress: Callable[[], object]
    _seen: object = None
    _since: Watch = field(default_factory=Watch)

    @property
    def running(self) -> bool:
        """Whether a process is left; ChaosError, with the place of every thread, if they have come to a stand."""
        if all(process.poll() is not None for process in self.processes):
            return False
        now = self.progress(), [process.returncode for process in self.processes], self.output()
        if now != self._seen:
            self._seen, self._since = now, Watch()
        if self._since.look() > PATIENCE:
            raise ChaosError(f"nothing has moved for {PATIENCE:.0f} s:\n{self.stacks()}")
        return True

    def wait(self, seconds: float = float("inf")) -> list[int | None]:
        """The exit statuses, when all have ended or ``seconds`` have passed: None of what has not."""
        watch = Watch()
        while self.running and watch.look() < seconds:
            time.sleep(POLL_SECONDS)
        return [process.returncode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def stacks(self) -> str:
        """What was printed, with the place of every thread of every process that is left."""
        for process in self.processes:
            process.send_signal(signal.SIGUSR2)
            time.sleep(1)
        return f"exit statuses {[process.returncode for process in self.processes]}\n{self.output()}"


def until(quota: int, orders: Orders, episode: Callable[[int], None], note: Callable[[int, int], None]) -> int:
    """Episodes 0, 1, ... until ``quota`` faults have struck -> how many; ``note(episodes, those that ended well)``."""
    number = 0
    while orders.struck.total() < quota:
        try:
            episode(number)
        except ChaosError:
            note(number + 1, number)
            raise
        number += 1
        note(number, number)
        print(f"{orders.folder.name}: after {number} runs {orders.struck.total()} of {quota} faults", flush=True)
    return number


def told(orders: Orders | None, folder: Path, source: Path, out: Path) -> dict[str, str]:
    """What :mod:`benchmarks.faults` is told by its environment; without ``orders`` nothing is struck."""
    where = {"CHAOS": folder if orders is None else orders.folder, "CHAOS_DATA": source, "CHAOS_OUT": out}
    return {**os.environ, **{name: str(path.resolve()) for name, path in where.items()}}
