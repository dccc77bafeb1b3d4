"""Training under faults, by one process and by several ranks, held to the undisturbed run bit by bit."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos_orders import READ_FAULTS, ChaosError, Orders, Started, told
from cltt import build_shards
from tests.helpers import data, training
from tests.helpers.fork_server import ForkServer

FAULTS = {**dict.fromkeys(READ_FAULTS, 3), "hanging read": 1, "flipped bit": 3, "full disk": 3}  # and their weights
SIGNALS = {"SIGKILL": 1, "SIGUSR1": 1}
KILLS = {"SIGKILL": 1}  # alone, where frames are kept: what is kept is not read again, so little else could strike
EXPECTED = {"SIGKILL": -signal.SIGKILL, "SIGUSR1": 85}  # exit status
CLIPS = {"a/one": 60, "a/two": 45, "b/one": 70, "b/two": 40}
EPOCHS, STEPS = 5, 24  # and steps an epoch
PACE = 0.05  # seconds that a step is slowed down by
STRAGGLERS, GOODBYE = 5.0, 10.0  # seconds until ranks that have not met are told to end, and in which they then must


@dataclass
class Run:
    """One run, started as often as it takes; without ``orders`` undisturbed.

    ``keep``: decoded frames lie in a file from which the next start goes on.
    """

    fork_server: ForkServer
    folder: Path
    shards: Path
    ranks: int
    epochs: int = EPOCHS
    orders: Orders | None = None
    keep: bool = False
    starts: list[Started] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = self.folder / "run"
        self.folder.mkdir(parents=True)

    def start(self) -> Started:
        number, port = len(self.starts), training.free_port()
        losses, log = self._losses(number), self.folder / f"log-{number}"
        environment = told(self.orders, self.folder, self.shards, self.run)
        environment |= {"CHAOS_PACE": str(PACE if self.orders else 0), "LOSSES": str(losses), "TINY_NORM": "1"}
        started = Started([], log, lambda: losses.stat().st_size if losses.is_file() else 0)
        self.starts.append(started)
        for rank in range(self.ranks):
            own = training.rank_environment(rank, self.ranks, port) if self.ranks > 1 else {}
            started.processes.append(
                self.fork_server.start("benchmarks.faults", ["train", *self._flags()], {**environment, **own}, log=log)
            )
        return started

    def _flags(self) -> list[str]:
        flags = training.flags(self.shards, self.run, "--resume", "--checkpoint-minutes", "0.008", "--depth", "4")
        flags += ["--epochs", str(self.epochs), "--max-batches-per-epoch", str(STEPS), "--cache-gb", "0.0004"]
        flags += ["--keep-dir", str(self.folder / "kept")] if self.keep else []
        return [*flags, "--eval-data", str(self.shards), "--eval-every", "2"]

    def _losses(self, start: int) -> Path:
        return self.folder / f"losses-{start}"

    def losses(self) -> list[list[float]]:
        """Of each start, those of its steps."""
        logs = [self._losses(number) for number in range(len(self.starts))]
        return [[float.fromhex(line) for line in log.read_text().split()] for log in logs if log.is_file()]


def undisturbed(fork_server: ForkServer, folder: Path, shards: Path, ranks: int, epochs: int) -> Run:
    """The run that all others are held to."""
    run = Run(fork_server, folder, shards, ranks, epochs)
    if any(status != 0 for status in run.start().wait()):
        raise ChaosError(f"the undisturbed run failed:\n{run.starts[0].output()}")
    return run


def disturbed(folder: Path, calm: Run, orders: Orders, rng: random.Random, gap: float, *, keep: bool = False) -> None:
    """A run under faults, to its end; ChaosError unless it ends as the undisturbed one."""
    run = Run(calm.fork_server, folder, calm.shards, calm.ranks, calm.epochs, orders, keep)
    with ExitStack() as stack:
        while True:
            started = run.start()
            stack.callback(started.kill)
            _strike(started, orders, rng, gap, KILLS if keep else {**FAULTS, **SIGNALS})
            statuses = started.wait()
            if all(status == 0 for status in statuses):
                break
            if 2 in statuses or "Traceback" in started.output():
                raise ChaosError(f"refused, or a defect:\n{started.output()}")
    check_same_run(run, calm)


def _strike(started: Started, orders: Orders, rng: random.Random, gap: float, weights: dict[str, int]) -> None:
    """One fault after another, from the first moment on, until the start has ended, or is killed or told to stop."""
    while started.running:
        time.sleep(gap * rng.uniform(0.3, 1.5))
        (kind,) = rng.choices(list(weights), weights=list(weights.values()))
        if kind in SIGNALS:
            _signal(started, kind, orders, rng)
            return
        orders.give_and_wait(kind, rng.uniform(0.1, 0.7), started)


def _signal(started: Started, kind: str, orders: Orders, rng: random.Random) -> None:
    """SIGKILL to one of the processes, SIGUSR1 to all; all must then end."""
    if not started.running:
        return
    at_work = started.progress() != 0
    for process in started.processes if kind == "SIGUSR1" else [rng.choice(started.processes)]:
        process.send_signal(getattr(signal, kind))
    statuses = started.wait() if at_work else started.wait(STRAGGLERS)
    if None in statuses:
        statuses = _end_as_a_launcher_does(started)
    if EXPECTED[kind] in statuses:
        orders.note(kind)


def _end_as_a_launcher_does(started: Started) -> list[int | None]:
    """Before the ranks have met, nobody but what started them can know that one is gone: it tells the others to end."""
    for process in started.processes:
        process.send_signal(signal.SIGTERM)
    statuses = started.wait(GOODBYE)
    if None in statuses:
        raise ChaosError(
            f"a rank that waits for others does not end when it is told to: {statuses}\n{started.stacks()}"
        )
    return statuses


def check_same_run(run: Run, calm: Run) -> None:
    """ChaosError unless all losses, the final weights and the CSV files are those of the undisturbed run."""
    import torch

    from cltt import checkpoint

    (expected,) = calm.losses()
    seen: set[int] = set()
    for found in run.losses():
        places = [i for i in range(len(expected)) if expected[i : i + len(found)] == found]
        if not places:
            raise ChaosError("the losses of a start are not those of the undisturbed run")
        seen.update(range(places[0], places[0] + len(found)))
    if missing := set(range(calm.epochs * STEPS)) - seen:
        raise ChaosError(f"steps that no start made: {sorted(missing)}")
    name = checkpoint.checkpoint_name(calm.epochs)
    here, there = (checkpoint.load(folder / name)["model"] for folder in (run.run, calm.run))
    if any(not torch.equal(here[key], there[key]) for key in there):
        raise ChaosError("the final weights differ from those of the undisturbed run")
    for file in ("metrics.csv", "metrics_eval.csv"):
        if (run.run / file).read_bytes() != (calm.run / file).read_bytes():
            raise ChaosError(f"{file} differs from that of the undisturbed run")
    if "bad frames 0;" not in run.starts[-1].output():
        raise ChaosError(f"frames were given up:\n{run.starts[-1].output()}")
    if left := list(run.run.glob(".*.tmp")):
        raise ChaosError(f"left behind: {left}")


def episodes(
    fork_server: ForkServer,
    folder: Path,
    orders: Orders,
    *,
    seed: int,
    ranks: int,
    gap: float,
    epochs: int = EPOCHS,
    keep: bool = False,
) -> Callable[[int], None]:
    """Runs under faults, by their number: each ends as the undisturbed one, or ChaosError.

    ``keep``: as :class:`Run` takes it; the undisturbed run keeps nothing.
    """
    rng = random.Random(f"{seed} training {ranks}")
    build_shards(data.make_clips(folder / "frames", CLIPS), folder / "shards", label_from="parent", workers=1)
    calm = undisturbed(fork_server, folder / "calm", folder / "shards", ranks, epochs)
    return lambda number: disturbed(folder / f"run-{number}", calm, orders, rng, gap, keep=keep)
