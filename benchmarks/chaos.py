"""Training and building under faults, against the same undisturbed: every loss, the weights and all files, bit by bit.

    python -m benchmarks.chaos [--seed 0] [--faults 300] [--kills 30] [--build-faults 100]

A small model trains on drawn clips, by one process and by two, while one fault after another is drawn from the seed:
reads that fail for a while (EIO, ESTALE), hang, come short or with a bit turned; a disk that is full for a while;
SIGKILL (of one of the ranks, where there are two); SIGUSR1. What has ended is started again. Two ranks that keep
decoded frames in a file (``--keep-dir``) are killed alone, from the first frame on. Beside them shards are built of
frames and videos under the same faults, with killed builders and killed packing processes.

``results/chaos.csv`` is written after every run, so that what was found stays, however this ends.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import chaos_building, chaos_training, harness
from benchmarks.chaos_orders import Orders, until
from tests.helpers.fork_server import ForkServer

KILL_GAP = 6.0  # seconds between two kills of ranks that keep frames, about: a start needs some until its first step


@dataclass
class Part:
    """Some chaos of one kind, and what came of it so far."""

    what: str
    folder: Path
    quota: int
    make: Callable[[Orders], Callable[[int], None]]
    runs: int = 0
    identical: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.orders = Orders(self.folder)

    def play(self, tell: Callable[[], None] = lambda: None) -> None:
        """Faults until there are ``quota``; ChaosError is a finding. ``tell`` is called after every run."""

        def note(runs: int, identical: int) -> None:
            self.runs, self.identical = runs, identical
            tell()

        until(self.quota, self.orders, self.make(self.orders), note)

    @property
    def struck(self) -> Counter[str]:
        return self.orders.struck

    def rows(self) -> list[dict[str, Any]]:
        found = {"runs": self.runs, "bit_identical": self.identical}
        return [
            {"what": self.what, "fault": kind, "struck": count, **found} for kind, count in sorted(self.struck.items())
        ]


def training_part(fork_server: ForkServer, folder: Path, *, faults: int, ranks: int, **how: Any) -> Part:
    """``how``: as :func:`chaos_training.episodes` takes it."""
    what = "training" if ranks == 1 else f"training, {ranks} ranks"
    what += ", frames kept on disk" if how.get("keep") else ""
    return Part(
        what, folder, faults, lambda orders: chaos_training.episodes(fork_server, folder, orders, ranks=ranks, **how)
    )


def building_part(fork_server: ForkServer, folder: Path, *, faults: int, **how: Any) -> Part:
    """``how``: as :func:`chaos_building.episodes` takes it."""
    return Part("building", folder, faults, lambda orders: chaos_building.episodes(fork_server, folder, orders, **how))


def play_all(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Play ``parts`` beside each other (they wait most of the time), writing the CSV as they go -> its rows."""
    lock = threading.Lock()

    def rows() -> list[dict[str, Any]]:
        return [row for part in parts for row in part.rows()]

    def tell() -> None:
        with lock:
            harness.write_csv("chaos", rows())

    with ThreadPoolExecutor(len(parts)) as pool:
        for played in [pool.submit(part.play, tell) for part in parts]:
            played.result()
    return rows()


def main() -> int:
    """Print and write down how many faults of which kind struck; an AssertionError is a finding."""
    parser = harness.parser("chaos", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=300, help="of training, a third of them with two ranks")
    parser.add_argument("--kills", type=int, default=30, help="of ranks that keep frames")
    parser.add_argument("--build-faults", type=int, default=100)
    parser.add_argument("--gap", type=float, default=0.3, help="seconds between two faults, about")
    args = parser.parse_args()
    if args.quick:
        args.faults, args.build_faults, args.kills = 12, 12, 3
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    drawn = {"seed": args.seed, "gap": args.gap}
    killed = {**drawn, "gap": KILL_GAP}
    with ForkServer(**chaos_building.video_faults(folder)) as fork_server:
        rows = play_all([
            training_part(fork_server, folder / "one", faults=args.faults - args.faults // 3, ranks=1, **drawn),
            training_part(fork_server, folder / "two", faults=args.faults // 3, ranks=2, **drawn),
            training_part(fork_server, folder / "kept", faults=args.kills, ranks=2, keep=True, **killed),
            building_part(fork_server, folder / "build", faults=args.build_faults, **drawn),
        ])  # fmt: skip
    harness.print_table(rows, "Faults that struck; every run ended bit-identical to the undisturbed one")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
