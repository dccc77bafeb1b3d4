"""Training and building under faults, against the same undisturbed: every loss, the weights and all files, bit by bit.

    python -m benchmarks.chaos [--seed 0] [--faults 300] [--build-faults 100]

A small model trains on drawn clips, by one process and by two, while one fault after another is drawn from the seed:
reads that fail for a while (EIO, ESTALE), hang, come short or with a bit turned; a disk that is full for a while;
SIGKILL (of one of the ranks, where there are two); SIGUSR1. What has ended is started again. Then shards are built
under the same faults, with killed builders and killed packing processes.

A fault counts only if it struck: the struck process says so (:mod:`benchmarks.faults`), or ended of it.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import harness
from cltt import build_shards
from tests.helpers import data, training

READ_FAULTS = ("EIO", "ESTALE", "hanging read", "short read")
TRAIN_FAULTS = (*READ_FAULTS, "flipped bit", "full disk", "SIGKILL", "SIGUSR1")
BUILD_FAULTS = (*READ_FAULTS, "full disk", "killed builder", "killed packing process")
LASTING = ("EIO", "ESTALE", "full disk")  # for a while; the others strike once
CLIPS = {"a/one": 60, "a/two": 45, "b/one": 70, "b/two": 40}
EPOCHS, STEPS = 5, 24  # and steps an epoch
PACE = 0.08  # seconds that a step is slowed down by
SECONDS = 600.0  # until a process that makes no progress is a failure (a busy machine is none)


class ChaosError(AssertionError):
    """Something that must not happen."""


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
    def struck(self) -> Counter[str]:
        path = self.folder / "struck"
        numbers = {int(line) for line in path.read_text().split()} if path.is_file() else set()
        return Counter(self.kinds[number] for number in numbers)


@dataclass
class Started:
    """Processes of one start, and the files that they write to."""

    processes: list[subprocess.Popen[bytes]]
    losses: Path
    log: Path

    @property
    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self) -> list[int]:
        deadline = time.monotonic() + SECONDS
        while self.running:
            if time.monotonic() > deadline:
                raise ChaosError(f"a process does not end:\n{self.output()}")
            time.sleep(0.02)
        return [process.returncode for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""


# ---- training


class Training:
    """One run, started as often as it takes."""

    def __init__(self, folder: Path, shards: Path, ranks: int, orders: Orders | None) -> None:
        self.folder, self.shards, self.ranks, self.orders = folder, shards, ranks, orders
        self.run = folder / "run"
        self.starts: list[Started] = []
        folder.mkdir(parents=True)

    def start(self) -> Started:
        number, port = len(self.starts), training.free_port()
        losses, log = self.folder / f"losses-{number}", self.folder / f"log-{number}"
        flags = training.flags(self.shards, self.run, "--resume", "--checkpoint-minutes", "0.008", "--depth", "4")
        flags += ["--epochs", str(EPOCHS), "--max-batches-per-epoch", str(STEPS), "--cache-gb", "0.0004"]
        flags += ["--eval-data", str(self.shards), "--eval-every", "2"]
        environment = {**os.environ, **_environment(self.folder, self.shards, self.run, self.orders)}
        environment |= {"LOSSES": str(losses), "TINY_NORM": "1"}
        processes = []
        for rank in range(self.ranks):
            own = training.rank_environment(rank, self.ranks, port) if self.ranks > 1 else {}
            processes.append(_start("train", flags, {**environment, **own}, log))
        self.starts.append(Started(processes, losses, log))
        return self.starts[-1]

    def losses(self) -> list[list[float]]:
        """Of each start, those of its steps."""
        logs = [start.losses.read_text().split() for start in self.starts if start.losses.is_file()]
        return [[float.fromhex(line) for line in lines] for lines in logs]


def _environment(folder: Path, source: Path, out: Path, orders: Orders | None) -> dict[str, str]:
    calm = orders is None
    orders_folder = folder if orders is None else orders.folder
    found = {"CHAOS": str(orders_folder), "CHAOS_DATA": str(source), "CHAOS_OUT": str(out)}
    found |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(harness.ROOT)}
    return found | {"CHAOS_PACE": "0" if calm else str(PACE)}


def _start(what: str, flags: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.faults", what, *flags],
            cwd=harness.ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def undisturbed(folder: Path, shards: Path, ranks: int) -> Training:
    """The run that all others are held to."""
    run = Training(folder, shards, ranks, None)
    if any(status != 0 for status in run.start().wait()):
        raise ChaosError(f"the undisturbed run failed:\n{run.starts[0].output()}")
    return run


def disturbed(folder: Path, calm: Training, orders: Orders, rng: random.Random, gap: float) -> None:
    """A run under faults, to its end; ChaosError unless it ends as the undisturbed one."""
    run = Training(folder, calm.shards, calm.ranks, orders)
    with _cleared(run):
        while True:
            started = run.start()
            _strike_while_running(started, orders, rng, gap)
            statuses = started.wait()
            if all(status == 0 for status in statuses):
                break
            if 2 in statuses or "Traceback" in started.output():
                raise ChaosError(f"refused, or a defect:\n{started.output()}")
    check_same_run(run, calm)


@contextlib.contextmanager
def _cleared(run: Training) -> Iterator[None]:
    try:
        yield
    finally:
        for started in run.starts:
            started.kill()


def _strike_while_running(started: Started, orders: Orders, rng: random.Random, gap: float) -> None:
    deadline = time.monotonic() + SECONDS
    while started.running and not started.losses.is_file():  # it imports, and reads its first frames
        if time.monotonic() > deadline:
            raise ChaosError(f"no step was made:\n{started.output()}")
        time.sleep(0.02)
    while started.running:
        time.sleep(gap * rng.uniform(0.3, 1.5))
        kind = rng.choices(TRAIN_FAULTS, weights=[3, 3, 1, 3, 3, 3, 1, 1])[0]
        if kind in ("SIGKILL", "SIGUSR1"):
            _signal(started, kind, orders, rng)
            return
        seconds = rng.uniform(0.1, 0.7) if kind in LASTING else 2.0
        number = orders.give(kind, seconds)
        _until_struck(orders, number, seconds, started)


def _signal(started: Started, kind: str, orders: Orders, rng: random.Random) -> None:
    victims = started.processes if kind == "SIGUSR1" else [rng.choice(started.processes)]
    for process in victims:
        process.send_signal(getattr(signal, kind))
    expected = {"SIGKILL": -signal.SIGKILL, "SIGUSR1": 85}[kind]
    if expected in started.wait():
        orders.note(kind)


def _until_struck(orders: Orders, number: int, seconds: float, started: Started) -> None:
    """Wait until the fault is over; one that strikes once is over when it has."""
    end = time.monotonic() + seconds
    once = orders.kinds[number] not in LASTING
    struck = orders.folder / "struck"
    while time.monotonic() < end and started.running:
        if once and struck.is_file() and str(number) in struck.read_text().split():
            return
        time.sleep(0.02)


def check_same_run(run: Training, calm: Training) -> None:
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
    if seen != set(range(EPOCHS * STEPS)):
        raise ChaosError(f"steps that no start made: {sorted(set(range(EPOCHS * STEPS)) - seen)}")
    name = checkpoint.checkpoint_name(EPOCHS)
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


# ---- building


def build_flags(root: Path, out: Path) -> list[str]:
    return ["--root-dir", str(root), "--out", str(out), "--shard-size", "60000", "--workers", "2"]


def disturbed_build(folder: Path, root: Path, calm: Path, orders: Orders, rng: random.Random, gap: float) -> None:
    """A build under faults, to its end; ChaosError unless all of its files are those of the undisturbed one."""
    folder.mkdir(parents=True)
    out, log = folder / "shards", folder / "log"
    environment = {**os.environ, **_environment(folder, root, out, orders)}
    status = 1
    while status != 0:
        started = Started([_start("build", build_flags(root, out), environment, log)], folder / "none", log)
        try:
            _strike_build(started, out, orders, rng, gap)
            (status,) = started.wait()
        finally:
            started.kill()
        if status == 1 or "Traceback" in started.output():
            raise ChaosError(f"a defect:\n{started.output()[-3000:]}")
    check_same_folder(out, calm)


def _strike_build(started: Started, out: Path, orders: Orders, rng: random.Random, gap: float) -> None:
    (process,) = started.processes
    while started.running and not (out / ".build" / "plan").exists():
        time.sleep(0.005)
    while started.running:
        kind = rng.choice(BUILD_FAULTS)
        if kind.startswith("killed"):
            time.sleep(rng.random() * 0.2)
            victims = [process.pid] if kind == "killed builder" else _children(process.pid)
            if victims and started.running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    if started.wait() != [0]:
                        orders.note(kind)
            return
        seconds = rng.uniform(0.1, 0.4) if kind in LASTING else 2.0
        _until_struck(orders, orders.give(kind, seconds), seconds, started)
        time.sleep(gap * rng.random() * 0.1)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def check_same_folder(out: Path, calm: Path) -> None:
    names = sorted(path.name for path in calm.iterdir())
    if sorted(path.name for path in out.iterdir()) != names:
        raise ChaosError(f"{out} does not hold the files of an undisturbed build")
    _, differ, missing = filecmp.cmpfiles(out, calm, names, shallow=False)
    if differ or missing:
        raise ChaosError(f"not as undisturbed: {differ + missing}")


# ---- all of it


def until(quota: int, orders: Orders, episode: Callable[[int], None]) -> int:
    """Episodes 0, 1, ... until ``quota`` faults have struck; how many episodes."""
    number = 0
    while orders.struck.total() < quota:
        episode(number)
        number += 1
        print(f"{orders.folder.name}: after {number} runs {orders.struck.total()} of {quota} faults", flush=True)
    return number


def chaos_of_training(folder: Path, *, seed: int, faults: int, ranks: int, gap: float) -> tuple[Counter[str], int]:
    """(Faults that struck, runs that ended as the undisturbed one)."""
    rng = random.Random(f"{seed} training {ranks}")
    folder.mkdir(parents=True)
    build_shards(data.make_clips(folder / "frames", CLIPS), folder / "shards", label_from="parent", workers=1)
    calm = undisturbed(folder / "calm", folder / "shards", ranks)
    orders = Orders(folder)
    runs = until(faults, orders, lambda n: disturbed(folder / f"run-{n}", calm, orders, rng, gap))
    return orders.struck, runs


def chaos_of_building(folder: Path, *, seed: int, faults: int, gap: float) -> tuple[Counter[str], int]:
    """(Faults that struck, builds that ended as the undisturbed one)."""
    rng = random.Random(f"{seed} building")
    root = data.make_clips(folder / "frames", {f"p{k % 4}/c{k}": 25 for k in range(16)}, height=96)
    for frame in sorted(root.rglob("*.jpg"))[7::41]:
        frame.write_bytes(frame.read_bytes()[:300])
    build_shards(root, folder / "calm", workers=1, shard_size=60_000)
    orders = Orders(folder)
    builds = until(
        faults, orders, lambda n: disturbed_build(folder / f"build-{n}", root, folder / "calm", orders, rng, gap)
    )
    return orders.struck, builds


def main() -> int:
    """Print and write down how many faults of which kind struck; an AssertionError is a finding."""
    parser = harness.parser("chaos", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=300, help="of training, a third of them with two ranks")
    parser.add_argument("--build-faults", type=int, default=100)
    parser.add_argument("--gap", type=float, default=0.4, help="seconds between two faults, about")
    args = parser.parse_args()
    rows = []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    parts: list[tuple[str, Callable[[], tuple[Counter[str], int]]]] = [
        ("training", lambda: chaos_of_training(
            folder / "one", seed=args.seed, faults=args.faults - args.faults // 3, ranks=1, gap=args.gap)),
        ("training, 2 ranks", lambda: chaos_of_training(
            folder / "two", seed=args.seed, faults=args.faults // 3, ranks=2, gap=args.gap)),
        ("building", lambda: chaos_of_building(
            folder / "build", seed=args.seed, faults=args.build_faults, gap=args.gap)),
    ]  # fmt: skip
    if args.quick:
        args.faults, args.build_faults = 12, 12
    with ThreadPoolExecutor(len(parts)) as pool:  # they wait most of the time
        found = list(pool.map(lambda part: part(), (part for _, part in parts)))
    for (what, _), (struck, runs) in zip(parts, found, strict=True):
        rows += [
            {"what": what, "fault": kind, "struck": count, "runs": runs, "bit_identical": runs}
            for kind, count in sorted(struck.items())
        ]
    harness.print_table(rows, "Faults that struck; every run ended bit-identical to the undisturbed one")
    harness.write_csv("chaos", rows)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
