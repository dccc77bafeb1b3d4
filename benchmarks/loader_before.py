"""The loader and an earlier version of it, in turns: raw bytes, small pictures, and what augmenting costs.

``python -m benchmarks.loader_before --before CHECKOUT [--quick]``: CHECKOUT is a folder with an earlier version (a
``git worktree``). Both read the same shards of real frames at 256 lines: T = 5, frame_step 2, 16 windows per batch, two
threads, an epoch per turn after a warm-up, in several pairs of processes. Writes loader_before.csv: windows per second
and CPU time a window of either, the ratio round by round, and for crop and simclr the share of ``none``'s rate left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import harness
from benchmarks.loader_data import write_clips
from cltt import build_shards, cli
from cltt.errors import SettingsError

CHILD = Path(__file__).with_name("loader_before_child.py")
CASES: list[dict[str, Any]] = [
    {"image_size": size, "dtype": dtype, "augment": augment, "stride": stride}
    for size, dtype, augment in (
        (224, "uint8", "none"),
        (96, "uint8", "none"),
        (96, "float32", "none"),
        (224, "float32", "none"),
        (224, "float32", "crop"),
        (224, "float32", "simclr"),
    )
    for stride in (1, 10)
]
COPIES = {1: 1, 10: 4}  # of the frames, by stride: an epoch of 1,500 and of 650 windows
PAIRS = 4  # of processes: where a process's memory comes to lie moves its rate by 4 %
# (image size, dtype) -> the least that the ratio of rates is to be, without augmentation.
ASKED = {(224, "uint8"): 1.0, (96, "uint8"): 2.0, (96, "float32"): 2.0}


class Contender:
    """A process of one version that runs an epoch when it is told to."""

    def __init__(self, checkout: Path, shards: Path, case: dict[str, Any]) -> None:
        # As text: run as a file, the folder of benchmarks would hide the standard library's inspect.
        command = [sys.executable, "-c", CHILD.read_text(), str(shards), json.dumps(case)]
        environ = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def epoch(self) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a contender ended with status {self.process.wait()}; its error is above")
        return dict(json.loads(answer))

    def __enter__(self) -> Contender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()


def race(before: Path, shards: Path, case: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One row: the medians of both, and of their ratio round by round."""
    asked = ASKED.get((case["image_size"], case["dtype"]), "")
    found: dict[str, list[dict[str, float]]] = {"now": [], "before": []}
    checkouts = {"now": harness.ROOT, "before": before}
    for pair in range(PAIRS):  # who is started first, and who runs first, changes: it is worth 1 % either way
        with ExitStack() as stack:
            names = list(checkouts)[:: 1 if pair % 2 == 0 else -1]
            contenders = {name: stack.enter_context(Contender(checkouts[name], shards, case)) for name in names}
            for turn in range(rounds):
                for name in names[:: 1 if turn % 2 == 0 else -1]:
                    found[name].append(contenders[name].epoch())
    row: dict[str, Any] = dict(case)
    for unit in ("windows_per_s", "cpu_ms_a_window"):
        now_values, then_values = ([done[unit] for done in found[name]] for name in ("now", "before"))
        row |= {unit: harness.percentile(now_values, 50), f"{unit}_before": harness.percentile(then_values, 50)}
        ratios = [a / b for a, b in zip(now_values, then_values, strict=True)]
        if unit == "cpu_ms_a_window":
            ratios = [1 / ratio for ratio in ratios]
        name = "times_faster" if unit == "windows_per_s" else "times_less_cpu"
        row |= {f"{name}{at}": harness.percentile(ratios, q) for at, q in (("", 50), ("_p20", 20), ("_p80", 80))}
    return row | {"asked": asked, "rounds": len(found["now"])}


def add_shares(rows: list[dict[str, Any]]) -> None:
    """What augmenting leaves of ``none``'s rate, by CPU time and by the clock, now and before."""
    plain = {
        row["stride"]: row
        for row in rows
        if (row["image_size"], row["dtype"], row["augment"]) == (224, "float32", "none")
    }
    for row in rows:
        for when in ("", "_before"):
            cost, rate = f"cpu_ms_a_window{when}", f"windows_per_s{when}"
            shown = row["augment"] != "none" and row["stride"] in plain
            row[f"share_of_none{when}"] = plain[row["stride"]][cost] / row[cost] if shown else ""
            row[f"share_by_clock{when}"] = row[rate] / plain[row["stride"]][rate] if shown else ""


def main() -> int:
    parser = harness.parser("loader_before", "The loader against an earlier version of it, in turns.")
    parser.add_argument("--before", type=Path, required=True, help="folder that holds the earlier version's cltt/")
    args = parser.parse_args()
    if not (args.before / "cltt").is_dir():
        raise SettingsError(f"there is no cltt/ in {args.before}; give a checkout of the earlier version with --before")
    name = "loader_before_quick" if args.quick else "loader_before"
    rounds, longest = (2, 120) if args.quick else (3, 10_000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        shards = {stride: Path(folder) / f"shards_{stride}" for stride in COPIES}
        for stride, copies in COPIES.items():
            root = write_clips(Path(folder) / f"clips_{stride}", (None, 256), 1 if args.quick else copies, longest)
            build_shards(root, shards[stride], verify="header")
        for case in CASES:
            rows.append(race(args.before.absolute(), shards[case["stride"]], case, rounds))
            add_shares(rows)
            harness.write_csv(name, rows)
    harness.print_table(rows, "The loader against an earlier version")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.loader_before"))
