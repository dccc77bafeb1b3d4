"""What the order does to learning: COIL-20's accuracy after an epoch with other runs and depths.

``python -m benchmarks.order_learning [--quick] [--data FOLDER]`` trains as ``benchmarks.coil20`` does, three seeds an
order, and writes order_learning.csv. At the default depth an epoch of COIL-20 (42 steps) is one block, and runs do not
show; at depth 14 it is three. A run of one window is a uniform shuffle but for the distance that windows keep.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks import coil20, harness
from cltt import cli
from tests.helpers.data import SHARED

EPOCHS = 1
ORDERS: list[dict[str, int | None]] = [
    {"depth": None, "run": None},
    {"depth": 14, "run": 20},
    {"depth": 14, "run": 5},
    {"depth": 14, "run": 1},
]


def named(order: dict[str, int | None]) -> dict[str, Any]:
    return {name: "default" if value is None else value for name, value in order.items()}


def main() -> int:
    parser = harness.parser("order_learning", "COIL-20's accuracy with other orders.")
    parser.add_argument(
        "--data", type=Path, default=SHARED / "coil20", help="folder with one folder of views an object"
    )
    args = parser.parse_args()
    seeds, epochs = (coil20.SEEDS[:1], 1) if args.quick else (coil20.SEEDS, EPOCHS)
    name = "order_learning_quick" if args.quick else "order_learning"
    results: dict[int, list[coil20.Row]] = {}
    for seed in seeds:
        for number, order in enumerate(ORDERS):
            results.setdefault(number, []).append(coil20.run_seed(args.data, seed, epochs, **order))
            rows = [{**named(ORDERS[k]), "seeds": len(done), **coil20.mean_row(done)} for k, done in results.items()]
            harness.write_csv(name, rows)
    harness.print_table(rows, f"COIL-20 after {epochs} epochs, mean over seeds")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.order_learning"))
