"""``make bench``: run every CPU benchmark one after the other, then rewrite the tables they feed.

``python -m benchmarks.run [--quick] [NAME ...]``. All takes about ten minutes on two cores, ``--quick`` a third of
that, at smaller sizes. A benchmark that fails does not stop the others.
"""

from __future__ import annotations

import subprocess
import sys
import time

from tqdm import tqdm

from benchmarks import harness, plots, report
from cltt import cli

NAMES = ("build", "order", "loss", "loader", "train", "inspect", "evaluation")


def run_one(name: str, quick: bool) -> bool:
    """Run ``python -m benchmarks.NAME`` as a process of its own; its tables go to the console. True if it passed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    start = time.perf_counter()
    status = subprocess.run(command, cwd=harness.ROOT).returncode
    outcome = "done" if status == 0 else f"FAILED with exit status {status}"
    tqdm.write(f"{name}: {outcome} in {time.perf_counter() - start:.0f} s")
    return status == 0


def main() -> int:
    parser = cli.Parser(prog="python -m benchmarks.run", description="Run the CPU benchmarks and rewrite their tables.")
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME", help=f"any of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(NAMES)}")
    passed = [run_one(name, quick=args.quick) for name in tqdm(args.names, desc="benchmarks", unit="benchmark")]
    report.main()
    plots.main()
    return 0 if all(passed) else 1


if __name__ == "__main__":
    cli.run(main, "benchmarks.run")
