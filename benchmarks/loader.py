"""Windows per second of the loader at its defaults and of its peers, decodes a frame, and the decode ceiling.

``python -m benchmarks.loader [--quick] [--frames 256,853x480,...]``. Same JPEG bytes, same batches of float32
[B, T, 3, S, S], normalised, as ``WindowLoader`` gives where nothing is changed (raw uint8 beside them, as a view of
channels-last memory); peers at their best setting (see loader_peers.py), with as many workers as there are cores.
Nobody works ahead while another one is timed. The peers that decode every window anew are timed over some batches with
their workers busy before and after: once what they make ahead has been handed out, and with more to make than is timed.
The project's loader is timed over a whole epoch with the start of its threads, and so is webdataset with that of its
workers: what they save is not spread evenly over an epoch, and a shuffle buffer is filled before its first batch. The
loader is one object for all rounds, as in a training run, and has run an epoch before: its frame memory is taken from
the system once a run, not once an epoch. FFCV is not among the peers: its source package does not build here.

Beside the time on the clock stands the CPU time of all threads and processes, a window: it says what a loader leaves to
others, and stays the same where others keep the machine busy.
"""

from __future__ import annotations

import gc
import itertools
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import simplejpeg
import torch

from benchmarks import harness
from benchmarks.loader_data import write_clips
from benchmarks.loader_peers import S, Wanted, dali_batches, file_batches, webdataset_batches
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards, cli
from cltt.errors import SettingsError
from cltt.source import libjpeg

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T, BATCH = 5, 16
AHEAD = 2 * harness.cores()  # batches that the peers make ahead, at most
WARM_UP = AHEAD + 1
OURS, CEILING = "cltt", "libjpeg-turbo decode alone"
RAW = ", uint8"
RANDOM_PEERS = ("OpenCV + DataLoader", "DALI file reader", "PIL + DataLoader")
STREAM = "webdataset, clip by clip"
Batches = Iterator[torch.Tensor]


@dataclass(frozen=True)
class Size:
    """Frames of one size: (width, lines), and how many there are."""

    name: str
    shape: tuple[int | None, int]
    copies: int
    longest: int = 10_000


@dataclass(frozen=True)
class Case:
    """Windows of ``size`` frames, and the least that the best peer that draws at random is to be beaten by."""

    size: str
    step: int
    stride: int
    rounds: int
    asked: float | None = None


SIZES = (
    Size("256 lines", (None, 256), copies=2),
    Size("853x480", (853, 480), copies=2),
    Size("768x576", (768, 576), copies=1, longest=150),
    Size("1920x1080", (1920, 1080), copies=1, longest=60),
)
# Where an epoch is over within a second, it takes more rounds to see past the noise.
CASES = (
    Case("256 lines", 2, 1, rounds=3, asked=3.5),
    Case("256 lines", 2, 10, rounds=7, asked=1.5),
    Case("256 lines", 10, 1, rounds=3),
    Case("853x480", 2, 1, rounds=3, asked=4.0),
    Case("853x480", 2, 10, rounds=7, asked=1.5),
    Case("768x576", 2, 1, rounds=2),
    Case("768x576", 2, 10, rounds=2),
    Case("1920x1080", 2, 1, rounds=2),
    Case("1920x1080", 2, 10, rounds=2),
)


class Race:
    """One case: the loader, its peers, and what each needs."""

    def __init__(self, dataset: ShardDataset, root: Path, case: Case, most: int) -> None:
        self.dataset, self.case, self.most = dataset, case, most
        self.index = WindowIndex(dataset.clip_lengths, T, case.step, case.stride)
        files = [str(root / dataset.frame_name(frame)) for frame in range(dataset.num_frames)]
        record = dataset.frame_records([0])[0]
        self.short = int(min(record["width"], record["height"]))
        shared = {"index": self.index, "batch": BATCH, "workers": harness.cores(), "halve": self.short >= 2 * S}
        shared["batches"] = WARM_UP + most + AHEAD
        self.floats, self.raw = (Wanted(files, floats=floats, **shared) for floats in (True, False))
        self.decodes: list[float] = []
        self.loader = WindowLoader(dataset, self.index, BATCH, device="cpu")
        self.raw_loader = WindowLoader(dataset, self.index, BATCH, device="cpu", dtype=torch.uint8, channels_last=True)
        for _ in itertools.chain(self.loader, self.raw_loader):  # the warm-up epoch
            pass

    def entries(self) -> dict[str, tuple[Callable[[], Batches], int | None]]:
        """name -> (fresh iterator, batches to time; None: a whole epoch)."""
        most = self.most
        return {
            "PIL + DataLoader": (lambda: file_batches(self.floats, "pil"), max(1, most // 3)),
            "OpenCV + DataLoader": (lambda: file_batches(self.floats, "opencv"), most),
            "DALI file reader": (lambda: dali_batches(self.floats), most),
            STREAM: (lambda: webdataset_batches(self.floats, self.dataset), None),
            OURS: (lambda: self.ours(self.loader), None),
            OURS + RAW: (lambda: self.ours(self.raw_loader), None),
            "OpenCV + DataLoader" + RAW: (lambda: file_batches(self.raw, "opencv"), most),
        }

    def ours(self, loader: WindowLoader) -> Batches:
        """The next epoch of the project's loader; notes the decodes per frame used."""
        used = np.zeros(self.dataset.num_frames, bool)
        before = loader.stats()["frames_decoded"]
        for step, batch in enumerate(loader, 1):
            used[batch.frame_ids.numpy()] = True
            if step == len(loader):
                self.decodes.append((loader.stats()["frames_decoded"] - before) / used.sum())
            yield batch.frames


def seconds_a_window(start: Callable[[], Batches], most: int | None, raw: bool) -> tuple[float, float]:
    """Time of a window, of a whole epoch with its start or of ``most`` batches of busy workers, and CPU time of one."""
    began, cpu = time.perf_counter(), cpu_seconds()
    batches = start()
    first = next(batches)
    assert first.shape == (BATCH, T, 3, S, S) and first.dtype == (torch.uint8 if raw else torch.float32)
    assert first.stride()[2] == 1 if raw else first.is_contiguous()
    untimed = taken = len(first)
    if most is None:
        untimed = 0
    else:
        untimed = taken = taken + sum(map(len, itertools.islice(batches, WARM_UP - 1)))
        began = time.perf_counter()
    del first
    for frames in itertools.islice(batches, most):
        taken += len(frames)
    seconds = time.perf_counter() - began
    del batches, frames  # ends worker processes
    gc.collect()
    # What is made beyond the batches taken counts for the CPU time.
    ahead = 0 if most is None else AHEAD * BATCH
    return seconds / (taken - untimed), (cpu_seconds() - cpu) / (taken + ahead)


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def decode_ceiling(jpegs: list[bytes], short: int, threads: int) -> float:
    """Seconds a frame when all cores do nothing but decode, at a fraction of the size where the loader does."""

    def decode(part: list[bytes]) -> None:
        for jpeg in part:
            libjpeg.decode(jpeg, *sizes[jpeg], libjpeg.largest_reduction(short / S))

    sizes = {jpeg: simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs}
    workers = [threading.Thread(target=decode, args=(jpegs[k::threads],)) for k in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - start) / len(jpegs)


def run_race(race: Race, rounds: int) -> tuple[dict[str, harness.Timing], dict[str, harness.Timing]]:
    """Seconds a window of each entry, and of T bare decodes, round by round; then CPU seconds of each entry."""
    jpegs = race.dataset.read(np.linspace(0, race.dataset.num_frames - 1, 500).astype(np.int64))
    seconds: dict[str, list[float]] = {CEILING: []}
    cpu: dict[str, list[float]] = {}
    for turn in range(rounds):
        entries = race.entries()
        for name in list(entries)[:: 1 if turn % 2 == 0 else -1]:
            start, most = entries[name]
            found = seconds_a_window(start, most, name.endswith(RAW))
            for values, value in zip((seconds, cpu), found, strict=True):
                values.setdefault(name, []).append(value)
        seconds[CEILING].append(T * decode_ceiling(jpegs, race.short, harness.cores()))
    order = sorted(seconds, key=lambda name: (name.endswith(RAW), name != OURS))
    made = [
        {name: harness.Timing(name, tuple(values[name])) for name in order if name in values}
        for values in (seconds, cpu)
    ]
    return made[0], made[1]


def rows_of(race: Race, timings: dict[str, harness.Timing], cpu: dict[str, harness.Timing]) -> list[dict[str, object]]:
    """One row a loader: windows per second, how many times that ours is, frames per second over the ceiling, CPU."""
    rows: list[dict[str, object]] = []
    for name, timing in timings.items():
        rate = harness.Timing(name, tuple(1 / s for s in timing.seconds))
        ours = OURS + RAW if name.endswith(RAW) else OURS
        rows.append(
            {
                "frames": race.case.size,
                "step": race.case.step,
                "stride": race.case.stride,
                "loader": name,
                "windows_per_s": rate.median,
                "p20": rate.p20,
                "p80": rate.p80,
                "cltt_times_faster": harness.ratio(timing, timings[ours]).median,
                "cpu_ms_a_window": cpu[name].median * 1000 if name in cpu else "",
                "cltt_times_less_cpu": harness.ratio(cpu[name], cpu[ours]).median if name in cpu else "",
                "share_of_decode_ceiling": harness.ratio(timings[CEILING], timing).median,
                "decodes_per_frame_used": max(race.decodes) if name == OURS else "",
                "windows": len(race.index),
                "rounds": len(timing.seconds),
            }
        )
    return rows


def verdict(race: Race, timings: dict[str, harness.Timing]) -> list[dict[str, object]]:
    """The figures asked for, beside those reached."""
    case = race.case
    best = min(RANDOM_PEERS, key=lambda name: timings[name].median)
    where = {"frames": case.size, "step": case.step, "stride": case.stride}
    rows: list[dict[str, object]] = []
    if case.asked is not None:
        value = harness.ratio(timings[best], timings[OURS]).median
        rows.append({**where, "figure": f"times {best} (best random peer)", "asked": f">= {case.asked}"})
        rows[-1] |= {"reached": value, "met": value >= case.asked}
    if case.step == 2:
        limit, most = 1.35 if case.stride == 1 else 1.0, max(race.decodes)
        rows.append({**where, "figure": "decodes a frame used", "asked": f"<= {limit}", "reached": most})
        rows[-1]["met"] = most <= limit
    return rows


def plot(rows: list[dict[str, object]]) -> None:
    """Windows per second of float32 batches, one panel a case that a figure is asked of."""
    cases = [case for case in CASES if case.asked is not None]
    figure, axes = plt.subplots(2, 2, figsize=(11, 5.5), constrained_layout=True)
    for axis, case in zip(axes.flat, cases, strict=True):
        shown = [
            row
            for row in rows
            if (row["frames"], row["step"], row["stride"]) == (case.size, case.step, case.stride)
            and not str(row["loader"]).endswith(RAW)
        ]
        names = [str(row["loader"]) for row in shown][::-1]
        values = [float(str(row["windows_per_s"])) for row in shown][::-1]
        bars = axis.barh(names, values, color=["tab:blue" if name == OURS else "silver" for name in names])
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(
            xlabel="windows per second", title=f"{case.size}, T={T}, step {case.step}, stride {case.stride}, S={S}"
        )
        axis.margins(x=0.15)
    figure.savefig(harness.RESULTS / "loader.png", dpi=120)


def run_size(size: Size, cases: list[Case], quick: bool) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """All cases of one size of frames -> rows, figures."""
    rows: list[dict[str, object]] = []
    figures: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        copies, longest = (max(1, size.copies // 2), min(size.longest, 120)) if quick else (size.copies, size.longest)
        root = write_clips(Path(folder) / "clips", size.shape, copies, longest)
        build_shards(root, Path(folder) / "shards", verify="header", shard_size=4 << 20)
        dataset = ShardDataset(Path(folder) / "shards")
        for case in cases:
            race = Race(dataset, root, case, most=10 if quick else 20)
            timings, cpu = run_race(race, rounds=2 if quick else case.rounds)
            rows += rows_of(race, timings, cpu)
            figures += verdict(race, timings)
    return rows, figures


def main() -> None:
    parser = harness.parser("loader", "Windows per second of the loader and its peers on the CPU.")
    names = [size.name for size in SIZES]
    parser.add_argument("--frames", help=f"sizes of frames, of {', '.join(names)} (default: all; fewer write no files)")
    args = parser.parse_args()
    wanted = args.frames.split(",") if args.frames else names
    if unknown := sorted(set(wanted) - set(names)):
        raise SettingsError(f"no frames called {', '.join(unknown)}; there are {', '.join(names)}")
    rows: list[dict[str, object]] = []
    figures: list[dict[str, object]] = []
    for size in (size for size in SIZES if size.name in wanted):
        more = run_size(size, [case for case in CASES if case.size == size.name], args.quick)
        rows, figures = rows + more[0], figures + more[1]
        harness.print_table(more[0], f"Windows per second, {size.name}")
        harness.print_table(more[1], "Figures asked for")
        if wanted == names:
            harness.write_csv("loader", rows)
            harness.write_csv("loader_figures", figures)
    if wanted == names:
        plot(rows)


if __name__ == "__main__":
    cli.run(main, "benchmarks.loader")
