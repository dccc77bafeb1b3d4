"""Everything that only a GPU can show, under nine minutes: ``python -m benchmarks.gpu_first --out DIR``.

Each part is a process of its own with a time limit of its own. One that fails, hangs or is killed is a row of the
table, and the others go on; one whose package is missing is skipped and says so. Needs no network. ``gpu_first.csv`` in
DIR is written anew after every part, and ``gpu_first.log`` has all that the parts printed. At the end at most ten lines
say what is right, what is wrong and what is slow. ``--device cpu --quick`` walks the same road at toy size on a CPU.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.gpu_record import MARK, figures
from cltt import cli

FIELDS = ("section", "case", "metric", "value", "p20", "p80", "unit")
MINUTES = 8.7
ON_CPU = 5  # times as long, for a part on a CPU
LINES = 10  # of the summary
OK = "ok"
NAMES = {"nvidia.dali": "DALI"}
DECODING, DALI = ("simplejpeg",), ("simplejpeg", "nvidia.dali")


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        name: of the part, and of its section in the table.
        seconds: its time limit.
        needs: modules without which it is skipped.
        tests: arguments of pytest; none: the part of that name in gpu_parts.py.
    """

    name: str
    seconds: float
    needs: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    def command(self, device: str, quick: bool, work: Path) -> list[str]:
        if self.tests:
            return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=1", *self.tests]
        flags = ["--device", device, "--work", str(work), *(["--quick"] if quick else [])]
        return [sys.executable, "-m", "benchmarks.gpu_parts", self.name, *flags]

    @property
    def missing(self) -> list[str]:
        return [NAMES.get(name, name) for name in self.needs if not _found(name)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _tests(name: str, only: str = "") -> tuple[str, ...]:
    return (f"tests/gpu/test_{name}_gpu.py", *(("-k", only) if only else ()))


# What is right comes before what is fast, and what needs no DALI before what does.
PARTS = (
    Part("machine", 40),
    Part("tests of the loss", 100, (), _tests("loss")),
    Part("tests of BatchNorm", 40, (), _tests("sync_batchnorm")),
    Part("check", 60, DECODING),
    Part("graphs", 30, DALI),
    Part("tests of decoding", 60, DALI, _tests("pipeline")),
    Part("tests of the loader", 60, DECODING, _tests("loader", "kernel or cut or not_written or never_waits")),
    Part("writes", 30, DECODING),
    Part("ranks", 40),
    Part("resumed", 60, DECODING),
    Part("compiled", 60, DECODING),
    Part("tests of training", 60, DECODING, _tests("train", "bf16 or never_waits or finite")),
    Part("training", 90, DECODING),
    Part("loss", 45),
    Part("decode", 40, DALI),
    Part("loader", 40, DECODING),
    Part("memory", 30, DECODING),
    Part("host", 20, DALI),
)
# Section, case, metric, what must hold of the value, and what to say where it does not.
Goal = tuple[str, str, str, Callable[[float], bool], str]
GOALS: tuple[Goal, ...] = (
    (
        "training",
        "resnet18(5,10,1)",
        "data_share_of_a_step",
        lambda x: x < 0.03,
        "data take {:.3f} of a step, not 0.03",
    ),
    ("loader", "(5,10,1)", "of_bare_decode", lambda x: x >= 0.9, "the loader has {:.2f} of bare decoding, not 0.9"),
    (
        "loss",
        "triton trained, N=10240",
        "faster_than_flash",
        lambda x: x >= 1,
        "{:.2f} of flash attention's speed, not 1",
    ),
    ("", "slowest test", "took", lambda x: x <= 30, "a test takes {:.0f} s, not 30"),
)


def run(command: Sequence[str], seconds: float, log: Path) -> str:
    """Run ``command`` and write what it prints to ``log`` -> OK, or what went wrong. Its processes end with it."""
    environ = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        child = subprocess.Popen(
            command, cwd=harness.ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {seconds:.0f} s; the last line: {last_line(log)}"
            child.send_signal(signal.SIGABRT)  # Python writes where each thread is
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=5)
            return outcome
        finally:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(child.pid, signal.SIGKILL)
                child.wait(timeout=10)  # a driver that hangs may keep it
    return OK if status == 0 else f"exit status {status}: {last_line(log)}"


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and not line.startswith(MARK)]
    return lines[-1][:300] if lines else "nothing was printed"


def rows_of(part: Part, outcome: str, took: float, log: Path) -> Iterator[dict[str, Any]]:
    """The rows of a part that was run: how it ended, and what it measured."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    if part.tests and outcome == OK and not re.search(r"\d+ passed", last_line(log)):
        outcome = f"skipped: {last_line(log)}"
    yield {"section": part.name, "case": "part", "metric": "outcome", "value": outcome}
    yield {"section": part.name, "case": "part", "metric": "took", "value": took, "unit": "s"}
    yield from figures(lines)
    for found in filter(None, (re.match(r"([\d.]+)s (call|setup) ", line) for line in lines)):
        slowest = {"case": "slowest test", "metric": "took", "value": float(found[1]), "unit": "s"}
        yield {"section": part.name, **slowest}


def run_all(parts: Sequence[Part], out: Path, *, device: str, quick: bool, seconds: float) -> list[dict[str, Any]]:
    """Run ``parts`` in turn, for ``seconds`` together -> the rows, which are in ``out`` as well."""
    machine, end, rows = harness.machine_info(), time.monotonic() + seconds, []
    slowdown = ON_CPU if device == "cpu" else 1
    with tempfile.TemporaryDirectory(prefix="cltt-gpu-") as folder, (out / "gpu_first.log").open("w") as logs:
        log = Path(folder) / "log"
        for part in parts:
            left, start = end - time.monotonic(), time.monotonic()
            reason = f"no {' and no '.join(part.missing)}" if part.missing else "" if left > 0 else "no time left"
            if reason:
                rows.append({"section": part.name, "case": "part", "metric": "outcome", "value": f"skipped: {reason}"})
            else:
                outcome = run(part.command(device, quick, Path(folder)), min(part.seconds * slowdown, left), log)
                rows += rows_of(part, outcome, time.monotonic() - start, log)
                logs.write(f"\n===== {part.name}\n{log.read_text(errors='replace')}")
                logs.flush()
            print(f"{part.name}: {outcome_of(part.name, rows)} ({time.monotonic() - start:.0f} s)", flush=True)
            with (out / "gpu_first.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, [*FIELDS, *machine], lineterminator="\n")
                writer.writeheader()
                writer.writerows({**row, **machine} for row in rows)
    return rows


def outcome_of(name: str, rows: Sequence[dict[str, Any]]) -> str:
    return next(row["value"] for row in rows if (row["section"], row["metric"]) == (name, "outcome"))


def summary(rows: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> list[str]:
    """At most ten lines: what is right, what was not run, what is wrong, what is slow."""
    ended = {row["section"]: row["value"] for row in rows if row["metric"] == "outcome"}
    skipped = [f"{name} ({end.removeprefix('skipped: ')})" for name, end in ended.items() if end.startswith("skipped")]
    lines = [f"right: {', '.join(name for name, end in ended.items() if end == OK) or 'nothing'}"]
    lines += [f"not run: {', '.join(skipped)}"] if skipped else []
    lines += [f"wrong: {name}: {end}" for name, end in ended.items() if end != OK and not end.startswith("skipped")]
    lines += [f"slow: {line}" for line in missed(rows, goals)]
    if len(lines) > LINES:
        lines[LINES - 1 :] = [f"and {len(lines) - LINES + 1} more in gpu_first.csv"]
    return lines


def missed(rows: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> Iterator[str]:
    """What misses its goal."""
    for section, case, metric, holds, sentence in goals:
        for row in rows:
            wanted = (section or row["section"], case, metric)
            if (row["section"], row["case"], row["metric"]) == wanted and not holds(float(row["value"])):
                yield f"{row['section']}: {sentence.format(float(row['value']))}"


def main() -> int:
    parser = harness.parser("gpu_first", "Check, then measure, what only a GPU can show.")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of gpu_first.csv and gpu_first.log")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: walk the same road without a GPU"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="stop after this long")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = run_all(PARTS, args.out, device=args.device, quick=args.quick, seconds=60 * args.minutes)
    lines = summary(rows, GOALS if args.device == "cuda" else ())
    print("\n".join(["", *lines]))
    return 1 if any(line.startswith("wrong") for line in lines) else 0


if __name__ == "__main__":
    cli.run(main, "benchmarks.gpu_first")
