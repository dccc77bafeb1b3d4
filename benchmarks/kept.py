"""What keeping decoded frames saves: the first epoch and later ones, with all frames kept, half, a tenth, none.

``python -m benchmarks.kept [--quick]``. Real frames (drawn ones where there are none), T = 5, frame_step 2,
16 windows per batch, float32, as many threads as cores. Each loader runs an epoch per turn, in alternating order: of
later epochs one loader that has run an epoch before, of the first epoch a new loader each time. ``none`` is the same
loader with ``keep_bytes=0``. Writes kept.csv: medians of CPU time per window and, round by round, of what ``none``
takes over it.

The case ``300,000`` is the beginning of the first epoch of a set of so many frames, the same few over and over under
other numbers, with memory for a tenth of them and with that of the default (``default``), where they do not fit.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.loader import cpu_seconds
from benchmarks.loader_data import write_clips
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards, cli
from cltt.errors import FrameError
from cltt.frames.geometry import Framing
from cltt.loader.memory import frames_used

T, STEP, BATCH, SIZE = 5, 2, 16, 224
# (size of the frames, window stride, copies of the frames, the least that "all" is to be better by, and "half")
CASES = (
    ("256 lines", (None, 256), 10, 8, 5.0, 1.7),
    ("853x480", (853, 480), 10, 4, 8.0, 1.7),
    ("256 lines", (None, 256), 1, 1, 2.0, None),
)
MANY, SOME_STEPS = 300_000, 200
SHARES = {"none": 0.0, "all": 1.0, "half": 0.5, "a tenth": 0.1}
Cost = tuple[float, float]  # CPU seconds and seconds a window


class Repeated:
    """A dataset of at least ``frames`` frames: the clips of another one, over and over."""

    def __init__(self, dataset: ShardDataset, frames: int) -> None:
        self._dataset, self._frames = dataset, dataset.num_frames
        times = -(-frames // self._frames)
        self.clip_lengths = np.tile(dataset.clip_lengths, times)
        self.clip_offsets = np.append(0, np.cumsum(self.clip_lengths))
        self.fingerprint, self.has_boxes = f"{dataset.fingerprint}, {times} times", False

    def read_each(self, frame_ids: np.ndarray) -> list[bytes | FrameError]:
        return self._dataset.read_each(frame_ids % self._frames)


def epoch(loader: WindowLoader, steps: int | None = None) -> Cost:
    """What an epoch costs, or its first ``steps``: windows decoded ahead count there (at stride 10 they share none)."""
    gc.collect()
    cpu, start = cpu_seconds(), time.perf_counter()
    with loader:
        windows = sum(len(batch.frames) for batch in itertools.islice(loader, steps))
    windows = windows if steps is None else int(loader.stats()["frames_decoded"]) // T
    return (cpu_seconds() - cpu) / windows, (time.perf_counter() - start) / windows


def in_turns(calls: dict[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            costs[name].append(calls[name]())
    return costs


def loaders_of(dataset: Any, stride: int) -> Callable[[float | None], WindowLoader]:
    """Makes a loader that has memory for a share of the frames; None: by the default."""
    index = WindowIndex(dataset.clip_lengths, T, STEP, stride)
    row = Framing(image_size=SIZE).pixels * 3 // 4096 * 4096 + 4096  # whole pages

    def loader(share: float | None) -> WindowLoader:
        most = int(share * frames_used(index) * row) + 1 if share else share
        threads = harness.cores()
        return WindowLoader(dataset, index, BATCH, device="cpu", keep_bytes=most, num_threads=threads)  # type: ignore[arg-type]

    return loader


def race(shards: Path, stride: int, rounds: int) -> dict[str, dict[str, list[Cost]]]:
    """Costs of the ``first`` and of ``later`` epochs, by share."""
    loader = loaders_of(ShardDataset(shards), stride)
    first = in_turns(
        {name: lambda s=share: epoch(loader(s)) for name, share in SHARES.items() if name != "half"}, rounds
    )
    loaders = {name: loader(share) for name, share in SHARES.items()}
    for made in loaders.values():
        epoch(made)
    later = in_turns({name: lambda m=made: epoch(m) for name, made in loaders.items()}, rounds)
    return {"first": first, "later": later}


def race_of_many(shards: Path, rounds: int) -> dict[str, list[Cost]]:
    """Costs of the beginning of the first epoch of a set of MANY frames, by share."""
    loader = loaders_of(Repeated(ShardDataset(shards), MANY), 10)
    shares = {"none": 0.0, "a tenth": 0.1, "default": None}
    return in_turns({name: lambda s=share: epoch(loader(s), SOME_STEPS) for name, share in shares.items()}, rounds)


def rows_of(case: tuple[object, ...], which: str, costs: dict[str, list[Cost]]) -> list[dict[str, object]]:
    size, _, stride, _, all_asked, half_asked = case
    rows: list[dict[str, object]] = []
    for name, found in costs.items():
        cpu, clock = ([none[k] / cost[k] for none, cost in zip(costs["none"], found, strict=True)] for k in range(2))
        asked = {"all": all_asked, "half": half_asked}.get(name) if which == "later" else None
        rows.append(
            {
                "frames": size,
                "stride": stride,
                "epoch": which,
                "kept": name,
                "cpu_ms_a_window": harness.percentile([cost[0] * 1000 for cost in found], 50),
                "times_less_cpu": harness.percentile(cpu, 50),
                "times_less_cpu_p20": harness.percentile(cpu, 20),
                "times_less_cpu_p80": harness.percentile(cpu, 80),
                "times_faster": harness.percentile(clock, 50),
                "asked": asked or "",
                "rounds": len(found),
            }
        )
    return rows


def main() -> None:
    args = harness.parser("kept", "What keeping decoded frames saves.").parse_args()
    rows: list[dict[str, object]] = []
    for case in CASES:
        name, shape, stride, copies, *_ = case
        with tempfile.TemporaryDirectory(prefix="kept-") as folder:
            root = write_clips(
                Path(folder) / "clips", shape, 1 if args.quick else copies, 120 if args.quick else 10_000
            )
            build_shards(root, Path(folder) / "shards", verify="header")
            for which, costs in race(Path(folder) / "shards", stride, 2 if args.quick else 5).items():
                rows += rows_of(case, which, costs)
            if case is CASES[0]:
                many = (f"{name}, {MANY:,}", *case[1:])
                rows += rows_of(many, "first", race_of_many(Path(folder) / "shards", 2 if args.quick else 7))
        harness.write_csv("kept_quick" if args.quick else "kept", rows)
        harness.print_table(rows, f"Frames kept, {name}, stride {stride}")


if __name__ == "__main__":
    cli.run(main, "benchmarks.kept")
