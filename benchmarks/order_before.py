"""The loader and its reads with this order and with an earlier one, in turns.

``python -m benchmarks.order_before --before CHECKOUT [--quick]``: CHECKOUT is a folder that holds an earlier version (a
``git worktree``). Both read the same shards: real frames at 256 lines, repeated forwards and backwards to 60 clips of
1,000 frames, 16 windows per batch, two threads. ``read`` leaves decoding out and makes reads 1 ms longer, as a busy
network file system does. Writes order_before_loader.csv, order_before_read.csv and order_before_costs.csv: decodes,
memory and mixing of both orders with 200 clips of 4,500 to 13,500 frames.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness, order_figures
from benchmarks.loader_data import write_clips
from cltt import build_shards, cli
from cltt.errors import SettingsError

CLIPS, FRAMES = 60, 1000
COSTS = ("5/2", "5/10", "5/90", "5/300", "2/900", "16/30")  # T/step, stride 1
RACES = {"loader": (10,), "read": (10, 90)}  # what -> frame_steps
CHILD = Path(__file__).with_name("order_child.py")


def long_clips(root: Path) -> Path:
    """Clips of FRAMES frames, each a source clip there and back again as often as it takes."""
    short = write_clips(root / "short", (None, 256), copies=1, longest=10_000)
    sources = sorted(path for path in short.iterdir() if path.is_dir())
    for number in range(CLIPS):
        files = sorted(sources[number % len(sources)].iterdir())
        turned = itertools.cycle([*files, *files[::-1]])
        folder = root / "long" / f"clip_{number:02d}"
        folder.mkdir(parents=True)
        for frame in range(FRAMES):
            os.link(next(turned), folder / f"frame_{frame:06d}.jpg")
    return root / "long"


def measure(checkout: Path, shards: Path, what: str, step: int | str) -> dict[str, float]:
    # As text: run as a file, the folder of benchmarks would hide the standard library's inspect.
    command = [sys.executable, "-c", CHILD.read_text(), str(shards), what, str(step)]
    environ = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{CHILD.name} {' '.join(command[3:])} in {checkout} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def cost_rows(before: Path) -> list[dict[str, Any]]:
    """What both orders cost, and how they mix."""
    rows = []
    for window in COSTS:
        for name, checkout in (("now", harness.ROOT), ("before", before)):
            found = measure(checkout, Path(order_figures.__file__), "order", window)
            rows.append({"T/step": window, "order": name, **found})
    return rows


def race(before: Path, shards: Path, what: str, step: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one race: what was measured, now and before, and the ratio round by round."""
    contenders = {"now": harness.ROOT, "before": before}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(measure(contenders[name], shards, what, step))
    rows = []
    for unit in ("windows_per_s", "frames_per_s"):
        now, then = ([done[unit] for done in found[name]] for name in contenders)
        ratios = [a / b for a, b in zip(now, then, strict=True)]
        costs = {
            f"{cost}_a_window_{name}": found[name][0][cost] / found[name][0]["windows"]
            for cost in ("frames", "reads")
            for name in contenders
            if cost in found[name][0]
        }
        middle = {"now": harness.percentile(now, 50), "before": harness.percentile(then, 50)}
        spread = {f"ratio{name}": harness.percentile(ratios, at) for name, at in (("", 50), ("_p20", 20), ("_p80", 80))}
        rows.append({"what": what, "frame_step": step, "unit": unit, **middle, **spread, **costs, "rounds": rounds})
    return rows


def main() -> int:
    parser = harness.parser("order_before", "The loader with this order and with an earlier one, in turns.")
    parser.add_argument("--before", type=Path, required=True, help="folder that holds the earlier version's cltt/")
    parser.add_argument("--only", choices=["costs", *RACES], help="one of the tables")
    args = parser.parse_args()
    if not (args.before / "cltt").is_dir():
        raise SettingsError(f"there is no cltt/ in {args.before}; give a checkout of the earlier version with --before")
    before = args.before.absolute()
    if args.only in (None, "costs"):
        costs = cost_rows(before)
        harness.write_csv("order_before_costs", costs)
        harness.print_table(costs, "What this order and an earlier one cost, and how they mix: 200 clips")
    if args.only == "costs":
        return 0
    with tempfile.TemporaryDirectory(prefix="order-") as folder:
        build_shards(long_clips(Path(folder)), Path(folder) / "shards", verify="header")
        for what in (what for what in RACES if args.only in (None, what)):
            rounds = 1 if args.quick else 3
            rows = [row for step in RACES[what] for row in race(before, Path(folder) / "shards", what, step, rounds)]
            harness.write_csv(f"order_before_{what}_quick" if args.quick else f"order_before_{what}", rows)
            harness.print_table(rows, f"This order against an earlier one: {what}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.order_before"))
