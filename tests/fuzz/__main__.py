"""Hostile input, as much as there is time for: ``python -m tests.fuzz --seconds 60 --seed 0``.

Each input is made from the seed, its kind and its number, tried in a process with a limit of memory and of time, and
held to its contract (see the module of its kind). An input that breaks it is printed with what repeats it; the exit
status is then 1. ``--csv FILE`` writes how many inputs of each kind ended how.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Inputs of each kind in a round: about the same time for pictures as for all else.
ROUND = {"pictures": 220, "tables": 10, "flags": 6, "archives": 5, "shard sets": 4, "checkpoints": 4, "trees": 4}
LIMIT = 60.0  # seconds for one input
START_LIMIT = 300.0  # seconds until the libraries are loaded


class Process:
    """A worker that is started again when it has died or hung."""

    def __init__(self, folder: Path, seed: int, log: Path) -> None:
        self._folder, self._seed, self._starts = folder, seed, 0
        self._log = log.open("ab")
        self._start()

    def _start(self) -> None:
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        self._starts += 1
        command = [sys.executable, "-m", "tests.fuzz.worker", f"{self._folder}-{self._starts}", str(self._seed)]
        self._process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        if "ready" not in (self._answer(START_LIMIT) or {}):
            raise SystemExit(f"the worker does not start; see {self._log.name}")

    def attempt(self, kind: str, number: int) -> dict[str, Any]:
        """The worker's answer, or {"broken": why there is none}."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([kind, number]) + "\n")
        self._process.stdin.flush()
        answer = self._answer(LIMIT)
        if answer is not None:
            return answer
        ended = self._process.poll()
        why = f"took more than {LIMIT:g} s" if ended is None else f"ended the process (status {ended})"
        self.close()
        self._start()
        return {"broken": why, "traceback": self._last_words(), "seconds": LIMIT}

    def _last_words(self) -> str:
        """What the worker's libraries, and the interpreter, said last."""
        return "\n".join(Path(self._log.name).read_text(errors="replace").splitlines()[-60:])

    def _answer(self, limit: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], limit)
        line = self._process.stdout.readline() if ready else ""
        return json.loads(line) if line else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def inputs(only: str | None) -> Iterator[tuple[str, int]]:
    """(kind, number) without end, or the one that ``only`` names as KIND:NUMBER."""
    if only is not None:
        kind, _, number = only.partition(":")
        yield kind, int(number)
        return
    for turn in itertools.count():
        for kind, count in ROUND.items():
            for place in range(count):
                yield kind, turn * count + place


def run(
    seconds: float, rounds: int | None, seed: int, only: str | None, folder: Path
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(how many inputs of a kind ended how, what broke its contract)."""
    counts: Counter[tuple[str, str]] = Counter()
    broken: list[str] = []
    process = Process(folder / "work", seed, folder / "worker.log")
    start = time.monotonic()
    for kind, number in itertools.islice(inputs(only), rounds and rounds * sum(ROUND.values())):
        if time.monotonic() - start > seconds:
            break
        answer = process.attempt(kind, number)
        counts[kind, answer.get("outcome", "BROKEN")] += 1
        if "broken" in answer:
            broken.append(f"{kind}:{number}")
            print(f"--seed {seed} --only '{kind}:{number}': {answer['broken']}\n{answer['traceback']}", flush=True)
    process.close()
    return counts, broken


def write_csv(path: Path, counts: Counter[tuple[str, str]], seed: int, seconds: float) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "seconds", "kind", "outcome", "inputs"])
        writer.writerows([seed, round(seconds), *key, count] for key, count in sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long to go on")
    parser.add_argument("--rounds", type=int, help=f"stop after so many times {sum(ROUND.values())} inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="try this input alone, as in 'shard sets:17'")
    parser.add_argument("--csv", type=Path, help="file for the counts")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts, broken = run(args.seconds, args.rounds, args.seed, args.only, Path(folder))
    for kind in ROUND:
        print(f"{kind}: {sum(count for key, count in counts.items() if key[0] == kind):,}")
    print(f"{sum(counts.values()):,} inputs, {len(broken)} broke their contract")
    if args.csv is not None:
        write_csv(args.csv, counts, args.seed, time.monotonic() - start)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
