"""What every benchmark shares: interleaved timing, peak memory, the machine, CSV files and tables.

A benchmark is a module run as ``python -m benchmarks.NAME [--quick]``. It times the project and its peers in the same
run, turn by turn, so that a busy machine slows all of them alike; it prints a table and writes
``benchmarks/results/NAME.csv``, every row of which names the hardware and the library versions.

Nothing here imports torch: a benchmark of plain reading must not pay for it.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from cltt.cli import Parser

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LIBRARIES: tuple[str, ...] = (
    "numpy",
    "torch",
    "triton",
    "nvidia-dali-cuda120",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "webdataset",
    "spdl",
    "torchcodec",
    "pytorch-metric-learning",
    "av",
)
Row = Mapping[str, Any]


# ---------------------------------------------------------------------------------------------------------------- time
@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one value a round; values of the same round belong to the same moment of the machine."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p20(self) -> float:
        return percentile(self.seconds, 20)

    @property
    def p80(self) -> float:
        return percentile(self.seconds, 80)

    def columns(self, unit: float = 1.0) -> dict[str, float]:
        """``median``, ``p20`` and ``p80`` multiplied by ``unit`` (1000 for milliseconds), and the number of rounds."""
        values = {"median": self.median * unit, "p20": self.p20 * unit, "p80": self.p80 * unit}
        return {**values, "rounds": len(self.seconds)}


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the sorted ``values``, as numpy does by default."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def time_interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 7,
    warmup: int = 1,
    min_seconds: float = 0.02,
    synchronize: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Time several callables turn by turn: a round is one sample of each, in alternating order.

    Args:
        calls: name -> callable without arguments.
        rounds: samples of each callable.
        warmup: untimed calls of each callable before the first round.
        min_seconds: a sample repeats a fast callable until about this much time has passed, and divides.
        synchronize: called before each clock reading, e.g. ``torch.cuda.synchronize``.
    """
    sync = synchronize or (lambda: None)
    for call in calls.values():
        for _ in range(warmup):
            call()
    repeats = {name: max(1, round(min_seconds / _sample(call, 1, sync))) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(_sample(calls[name], repeats[name], sync))
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def _sample(call: Callable[[], Any], repeats: int, sync: Callable[[], Any]) -> float:
    gc.collect()
    sync()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    sync()
    return max((time.perf_counter() - start) / repeats, 1e-9)


def ratio(slow: Timing, fast: Timing) -> Timing:
    """``slow / fast`` round by round (a plain number in the place of seconds): how many times faster ``fast`` is."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return Timing(f"{slow.name}/{fast.name}", tuple(a / b for a, b in pairs))


# -------------------------------------------------------------------------------------------------------------- memory
def peak_memory(factory: str, *args: Any, timeout: float = 600) -> int:
    """Bytes by which a fresh process's resident memory grows while it does some work once.

    Args:
        factory: ``"module:function"``; ``function(*args)`` prepares the inputs, warms up what it wants at a small size,
            and returns the callable to measure.
        args: JSON values.

    Freed blocks go back to the system at once in that process (``MALLOC_MMAP_THRESHOLD_``), so the peak is that of
    memory in use. Linux only: the kernel's high-water mark is reset just before the work.
    """
    command = [sys.executable, "-m", "benchmarks.harness", factory, json.dumps(args)]
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return int(done.stdout.split()[-1])


def _memory_growth(factory: str, args: Sequence[Any]) -> int:
    module, _, function = factory.partition(":")
    work = getattr(import_module(module), function)(*args)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the current resident size
    before = _status_bytes("VmRSS")
    work()
    return _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


# -------------------------------------------------------------------------------------------------------------- machine
def machine_info() -> dict[str, str]:
    """The machine and the libraries, as strings: date, commit, cpu, cores, memory_gb, gpu, python, library versions."""
    values = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "cpu": _cpu_model(),
        "cores": str(cores()),
        "memory_gb": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f}",
        "gpu": output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or "none",
        "python": platform.python_version(),
    }
    return {**values, **{name: _version(name) for name in LIBRARIES}}


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def output(*command: str) -> str:
    """First line of the command's output; empty where the command is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# ------------------------------------------------------------------------------------------------------------- results
def write_csv(name: str, rows: Sequence[Row]) -> Path:
    """Write ``benchmarks/results/NAME.csv``: the columns of ``rows``, then :func:`machine_info` on every row.

    A row read back from such a file keeps the machine that it names.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    machine = machine_info()
    with path.open("w", newline="") as file:
        columns = [column for column in columns_of(rows) if column not in machine]
        writer = csv.DictWriter(file, [*columns, *machine], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _short(value) for key, value in {**machine, **row}.items()})
    return path


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print ``rows`` as aligned plain text; numbers to the right, missing values as ``-``."""
    columns = columns_of(rows)
    cells = [[_short(row.get(column, "-")) for column in columns] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    number = [all(isinstance(row.get(column, 0), int | float) for row in rows) for column in columns]
    if title:
        print(f"\n{title}")
    for line in [columns, ["-" * width for width in widths], *cells]:
        aligned = (f"{c:>{w}}" if n else f"{c:<{w}}" for c, w, n in zip(line, widths, number, strict=True))
        print("  ".join(aligned).rstrip())
    sys.stdout.flush()


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Column names in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _short(value: Any) -> str:
    """Four significant digits are more than any timing here is worth."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# -------------------------------------------------------------------------------------------------------- command line
def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Argument parser of ``python -m benchmarks.NAME`` with ``--quick``; add further options to it."""
    made = Parser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds: about one minute")
    return made


if __name__ == "__main__":  # the child of peak_memory
    print(_memory_growth(sys.argv[1], json.loads(sys.argv[2])))
