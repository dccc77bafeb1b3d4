"""The race: CPU time and windows per second of the loader and of its peers, in the first epoch and in later ones.

``python -m benchmarks.loader [--quick] [--frames 256 lines,853x480]``. Sets of 100,000 frames: real ones (drawn ones
where there are none), the same clips again and again under other names. Same JPEG bytes, same batches of float32
[B, T, 3, S, S], normalised, as ``WindowLoader`` gives where nothing is changed (raw uint8 beside them, as a view of
channels-last memory). Peers are at their best setting (loader_peers.py, loader_pools.py). All have as many threads or
worker processes as there are cores, and take turns: nobody works ahead while another one is timed. A peer whose library
is missing is left out, with the reason.

Each is timed over some batches in the middle of an epoch, with its workers busy before and after. *cltt, nothing kept*
is a new loader each time that keeps no frames for later epochs; where windows share frames it is timed over three
blocks, after two others. *cltt, first epoch* is the same with all frames kept. *cltt, later epochs* is a loader of some
of the clips whose frames are kept since its first epoch. A peer decodes in every epoch as in its first.

The CPU time is that of all threads and processes per window; it changes little where others keep the machine busy.
The clock stands beside it.
"""

from __future__ import annotations

import gc
import itertools
import resource
import statistics
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import simplejpeg
import torch

from benchmarks import harness, loader_peers, loader_pools
from benchmarks.loader_data import repeat_clips, write_clips
from benchmarks.loader_peers import Batches, Peer, S, Wanted
from benchmarks.report import read_rows
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards, cli
from cltt.errors import SettingsError
from cltt.loader.memory import frames_used
from cltt.source import libjpeg

matplotlib.use("Agg")
import matplotlib.pyplot as plt

T, BATCH = 5, 16
FRAMES, QUICK_FRAMES = 100_000, 20_000
SHARD_SIZE = 64 << 20
LATER_FRAMES = 20_000  # of the part whose frames are all kept: 3 GB
CEILING = "libjpeg-turbo decode alone"
RAW = ", uint8"


class NothingKept(Peer):
    """A new loader in the middle of an epoch; ``decodes``: per window, of each time."""

    name = "cltt, nothing kept"
    keep_bytes: int | None = 0

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        plan = our_loader(wanted, wanted.index, 0).plan
        first = max(plan.num_blocks // 2 - 3, 0)
        steps = [len(plan.block_steps(block)) for block in range(first, min(first + 5, plan.num_blocks))]
        self._start, self.untimed, self.timed = plan.block_steps(first).start, sum(steps[:2]), sum(steps[2:])
        if plan.frames_per_block() >= steps[0] * wanted.batch * wanted.index.window_size:
            self._start, self.untimed, self.timed = len(plan) // 4, 16, 64  # no window shares frames: steps are alike
        self.decodes: list[float] = []

    def batches(self) -> Batches:
        with our_loader(self.wanted, self.wanted.index, self.keep_bytes) as loader:
            loader.load_state_dict({**loader.state_dict(), "plan": loader.plan.state_dict(self._start)})
            for step, batch in enumerate(loader, 1):
                if step == self.untimed:
                    before = loader.stats()["frames_decoded"]
                if step == self.untimed + self.timed:
                    decoded = loader.stats()["frames_decoded"] - before
                    self.decodes.append(decoded / (self.timed * BATCH))
                yield batch.frames


class FirstEpoch(NothingKept):
    """The same with frames kept as by default."""

    name = "cltt, first epoch"
    keep_bytes = None


class LaterEpochs(Peer):
    """A loader of the first clips, after its first epoch: it decodes nothing any more."""

    name = "cltt, later epochs"
    timed = 256

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        ends = np.cumsum(wanted.dataset.clip_lengths)
        clips = np.arange(max(1, int(np.searchsorted(ends, LATER_FRAMES))))
        s, lengths = wanted.index.settings, wanted.dataset.clip_lengths
        index = WindowIndex(lengths, s.window_size, s.frame_step, s.window_stride, clips=clips)
        self._loader = our_loader(wanted, index, None)
        for _ in self._loader:
            pass
        _, share = self._loader.keeps()
        if share < 1:
            raise RuntimeError(f"only {share:.0%} of {LATER_FRAMES:,} frames are kept; free some memory")

    def batches(self) -> Batches:
        while True:
            for batch in self._loader:
                yield batch.frames


def our_loader(wanted: Wanted, index: WindowIndex, keep_bytes: int | None) -> WindowLoader:
    return WindowLoader(
        wanted.dataset,
        index,
        wanted.batch,
        device="cpu",
        num_threads=wanted.workers,
        keep_bytes=keep_bytes,
        dtype=torch.float32 if wanted.floats else torch.uint8,
        channels_last=not wanted.floats,
    )


RANDOM_PEERS: tuple[type[Peer], ...] = (
    loader_pools.ThreadPool,
    loader_pools.ThreadPoolFiles,
    loader_pools.TorchCodec,
    loader_pools.Spdl,
    loader_pools.SpdlOwn,
    loader_peers.OpenCv,
    loader_peers.Dali,
    loader_peers.Pil,
)
PEERS: tuple[type[Peer], ...] = (
    NothingKept,
    FirstEpoch,
    LaterEpochs,
    *RANDOM_PEERS,
    loader_peers.WebDataset,
    loader_pools.RawSquares,
    loader_pools.RawStored,
)
AS_BYTES: tuple[type[Peer], ...] = (
    NothingKept,
    FirstEpoch,
    LaterEpochs,
    loader_pools.ThreadPool,
    loader_pools.RawSquares,
)


@dataclass(frozen=True)
class Case:
    """Frames of one size, (width, lines), and windows of them.

    ``asked``: how many times less CPU time than the best peer that draws at random and decodes; None: nothing was.
    """

    frames: str
    shape: tuple[int | None, int]
    step: int
    stride: int
    rounds: int
    asked: float | None


CASES = (
    Case("256 lines", (None, 256), 10, 1, rounds=3, asked=None),  # the defaults
    Case("256 lines", (None, 256), 2, 1, rounds=5, asked=3.5),
    Case("256 lines", (None, 256), 2, 10, rounds=5, asked=1.5),
    Case("853x480", (853, 480), 2, 1, rounds=3, asked=4.0),
    Case("853x480", (853, 480), 2, 10, rounds=3, asked=1.5),
)


def cpu_seconds() -> float:
    """Of this process and of its children, those that have ended and those at work."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used) + sum(times.user + times.system for times in living)


def seconds_a_window(peer: Peer) -> tuple[float, float]:
    """Time per window by the clock, and CPU time."""
    gc.collect()
    with closing(peer.batches()) as batches:
        for frames in itertools.islice(batches, peer.untimed):
            check(frames, peer.wanted.floats)
        start, cpu = time.perf_counter(), cpu_seconds()
        taken = sum(len(frames) for frames in itertools.islice(batches, peer.timed))
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    assert taken == peer.timed * BATCH, f"{peer.name} gave {taken} windows"
    return seconds / taken, cpu / taken


def check(frames: torch.Tensor, floats: bool) -> None:
    assert frames.shape == (BATCH, T, 3, S, S) and frames.dtype == (torch.float32 if floats else torch.uint8)
    assert frames.is_contiguous() if floats else frames.stride()[2] == 1


def decode_ceiling(jpegs: list[bytes], threads: int) -> tuple[float, float]:
    """Seconds per frame, by the clock and of the CPU, where all cores decode and do nothing else."""

    def decode(part: list[bytes]) -> None:
        for jpeg in part:
            height, width = sizes[jpeg]
            libjpeg.decode(jpeg, height, width, libjpeg.largest_reduction(min(height, width) / S))

    sizes = {jpeg: simplejpeg.decode_jpeg_header(jpeg)[:2] for jpeg in jpegs}
    workers = [threading.Thread(target=decode, args=(jpegs[k::threads],)) for k in range(threads)]
    start, cpu = time.perf_counter(), cpu_seconds()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - start) / len(jpegs), (cpu_seconds() - cpu) / len(jpegs)


Timings = dict[str, tuple[harness.Timing, harness.Timing]]  # by the clock, and of the CPU; seconds per window


def run_race(peers: dict[str, Peer], dataset: ShardDataset, rounds: int) -> Timings:
    """All peers in turns, in alternating order; and T bare decodes."""
    jpegs = dataset.read(np.linspace(0, dataset.num_frames - 1, 500).astype(np.int64))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in (*peers, CEILING)}
    for turn in range(rounds):
        for name in list(peers)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(seconds_a_window(peers[name]))
        clock, cpu = decode_ceiling(jpegs, harness.cores())
        found[CEILING].append((T * clock, T * cpu))
    return {
        name: (
            harness.Timing(name, tuple(pair[0] for pair in pairs)),
            harness.Timing(name, tuple(pair[1] for pair in pairs)),
        )
        for name, pairs in found.items()
    }


def rows_of(case: Case, peers: dict[str, Peer], timings: Timings) -> list[dict[str, object]]:
    """One row per loader: ``cltt_times`` is its time over ours with nothing kept, ``later_times`` over later epochs."""
    rows: list[dict[str, object]] = []
    for name, (clock, cpu) in timings.items():
        form = RAW if name.endswith(RAW) else ""
        first, later = timings[NothingKept.name + form], timings[LaterEpochs.name + form]
        rate = harness.Timing(name, tuple(1 / seconds for seconds in clock.seconds))
        peer = peers.get(name)
        decodes = statistics.median(peer.decodes) if isinstance(peer, NothingKept) else ""
        row = {
            "frames": case.frames,
            "step": case.step,
            "stride": case.stride,
            "loader": name,
            "cpu_ms_a_window": cpu.median * 1000,
            "cltt_times_less_cpu": harness.ratio(cpu, first[1]).median,
            "later_times_less_cpu": harness.ratio(cpu, later[1]).median,
            "windows_per_s": rate.median,
            "p20": rate.p20,
            "p80": rate.p80,
            "cltt_times_faster": harness.ratio(clock, first[0]).median,
            "later_times_faster": harness.ratio(clock, later[0]).median,
            "share_of_decode_ceiling": harness.ratio(timings[CEILING][1], cpu).median,
            "set_gb": peer.set_bytes() / 1e9 if peer else "",
            "decodes_per_window": decodes,
        }
        rows.append(row)
    return rows


def verdict(case: Case, peers: dict[str, Peer], timings: Timings) -> list[dict[str, object]]:
    """The figures asked for, beside those reached, by CPU time."""
    where = {"frames": case.frames, "step": case.step, "stride": case.stride}
    best = min((peer.name for peer in RANDOM_PEERS if peer.name in peers), key=lambda name: timings[name][1].median)
    rows: list[dict[str, object]] = []
    for ours, asked in ((NothingKept, case.asked), (FirstEpoch, None), (LaterEpochs, None)):
        reached = harness.ratio(timings[best][1], timings[ours.name][1]).median
        figure = f"{ours.name}: times less CPU than {best} (best random peer)"
        rows.append({**where, "figure": figure, "asked": f">= {asked}" if asked else "", "reached": reached})
        rows[-1]["met"] = reached >= asked if asked else ""
    if case.asked is None:
        return rows
    first = peers[NothingKept.name]
    assert isinstance(first, NothingKept)
    limit, index = 1.35 if case.stride == 1 else 1.0, first.wanted.index
    reached = statistics.median(first.decodes) * len(index) / frames_used(index)
    figure = "decodes a frame used"
    rows.append({**where, "figure": figure, "asked": f"<= {limit}", "reached": reached, "met": reached <= limit + 1e-9})
    return rows


def plot(rows: list[dict[str, str]]) -> None:
    """Windows per second of CPU time of float32 batches, one panel a case."""
    figure, axes = plt.subplots(3, 2, figsize=(14, 12), constrained_layout=True)
    axes[2, 1].set_axis_off()
    for axis, case in zip(axes.flat, CASES, strict=False):
        shown = [
            row
            for row in rows
            if (row["frames"], row["step"], row["stride"]) == (case.frames, str(case.step), str(case.stride))
            and not row["loader"].endswith(RAW)
        ][::-1]
        names = [row["loader"] for row in shown]
        colors = ["tab:blue" if "cltt" in name else "gainsboro" if "raw" in name else "silver" for name in names]
        bars = axis.barh(names, [1000 / float(row["cpu_ms_a_window"]) for row in shown], color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=3)
        axis.set(
            xlabel="windows per second of CPU time",
            title=f"{case.frames}, T={T}, step {case.step}, stride {case.stride}, S={S}",
        )
        axis.margins(x=0.15)
    figure.savefig(harness.RESULTS / "loader.png", dpi=120)


def run_case(case: Case, root: Path, quick: bool) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows and figures of one case, over the shards beside ``root``."""
    dataset = ShardDataset(root.parent / "shards")
    index = WindowIndex(dataset.clip_lengths, T, case.step, case.stride)
    files = [str(root / dataset.frame_name(frame)) for frame in range(dataset.num_frames)]
    floats, raw = (Wanted(dataset, files, index, BATCH, harness.cores(), form) for form in (True, False))
    present = [peer for peer in PEERS if not peer.why_missing()]
    peers = {peer.name: peer(floats) for peer in present}
    peers |= {peer.name + RAW: peer(raw) for peer in present if peer in AS_BYTES}
    timings = run_race(peers, dataset, 2 if quick else case.rounds)
    extra = {"windows": len(index), "rounds": 2 if quick else case.rounds}
    return [{**row, **extra} for row in rows_of(case, peers, timings)], verdict(case, peers, timings)


def write(name: str, rows: list[dict[str, object]], wanted: list[str]) -> list[dict[str, str]]:
    """Write ``rows`` into NAME.csv and leave those of other sizes of frames as they are; all rows, by case."""
    others = [row for row in read_rows(name) if row["frames"] in {case.frames for case in CASES} - set(wanted)]
    harness.write_csv(name, sorted([*others, *rows], key=lambda row: str(row["frames"])))
    return read_rows(name)


def main() -> None:
    parser = harness.parser("loader", "CPU time of a window and windows per second, of the loader and its peers.")
    names = list(dict.fromkeys(case.frames for case in CASES))
    parser.add_argument("--frames", help=f"sizes of frames, of {', '.join(names)} (default: all)")
    args = parser.parse_args()
    wanted = args.frames.split(",") if args.frames else names
    if unknown := sorted(set(wanted) - set(names)):
        raise SettingsError(f"no frames called {', '.join(unknown)}; there are {', '.join(names)}")
    for peer in PEERS:
        if why := peer.why_missing():
            print(f"left out: {peer.name}: {why}")
    rows: list[dict[str, object]] = []
    figures: list[dict[str, object]] = []
    for size in wanted:
        cases = [case for case in CASES if case.frames == size]
        with tempfile.TemporaryDirectory(prefix="race-") as folder:
            root = repeat_clips(
                write_clips(Path(folder) / "clips", cases[0].shape, 1, 10_000), QUICK_FRAMES if args.quick else FRAMES
            )
            build_shards(root, Path(folder) / "shards", verify="header", shard_size=SHARD_SIZE)
            for case in cases:
                more = run_case(case, root, args.quick)
                rows, figures = rows + more[0], figures + more[1]
                harness.print_table(more[0], f"{size}, step {case.step}, stride {case.stride}")
                harness.print_table(more[1], "Figures asked for")
    if not args.quick:
        write("loader_figures", figures, wanted)
        plot(write("loader", rows, wanted))


if __name__ == "__main__":
    cli.run(main, "benchmarks.loader")
