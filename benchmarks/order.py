"""How well an epoch is mixed, what that costs in decodes and memory, and how fast the order is at 100 million windows.

``python -m benchmarks.order [--quick]`` writes order_runs.csv (what the length of a run does), order_decodes.csv,
order_mixing.csv, order_options.csv (steps drawn anew, blocks of few clips), order_scale.csv and order.png.

Mixing is told by windows of one clip: how many of a batch overlap in time with one of the batch before, how often far
ones meet in a batch, as a multiple of a uniform shuffle's rate, and the chance that a clip seen in batch k is seen
again in batch k+1, k+10, k+100. A uniform shuffle of all windows stands beside them. Decodes are counted with a cache
that holds one block: every block decodes each of its frames once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import harness, order_figures
from benchmarks.order_figures import clip_lengths
from benchmarks.report import read_rows
from cltt import EpochPlan, WindowIndex

Window = tuple[int, int, int]
Row = dict[str, Any]
# T, step, stride -> the lengths of runs that are compared; the default's is among them.
RUNS: dict[Window, tuple[int, ...]] = {(5, 10, 1): (1, 4, 8, 12, 16, 20, 32, 64), (16, 30, 1): (8, 16, 32, 48, 75)}
# T, step, stride -> B, and what a window may cost at most with 200 clips: decodes, gigabytes for two blocks.
COSTS: dict[Window, tuple[int, float, float]] = {
    (5, 2, 1): (64, 1.25, 4),
    (5, 10, 1): (64, 1.25, 4),
    (5, 90, 1): (64, 1.4, 5),
    (5, 300, 1): (64, 1.6, 6),
    (2, 900, 1): (128, 1.4, 9),
    (16, 30, 1): (32, 2.0, 5),
}
CLIPS = {str(clips): clip_lengths(clips) for clips in (6, 12, 200, 2000)}
SHORT_CLIPS = {f"{clips} of 500 frames": np.full(clips, 500) for clips in (6, 12)}  # one block holds whole clips
MIXED: list[Window] = [(5, 2, 1), (5, 10, 1), (5, 90, 1)]
# (T, steps, stride), decodes a window asked, clips_per_block: the options beside the default order.
OPTIONS: list[tuple[tuple[int, int | str, int], float | None, int]] = [
    ((2, "1-15", 1), 1.35, 0),
    ((5, "1-15", 1), 2.6, 0),
    *(((5, 10, 1), None, clips) for clips in (0, 64, 16, 4)),
    *(((5, "1-15", 1), None, clips) for clips in (16, 4)),
]
LAGS = (1, 10, 100)
BATCH = 64
SCALE_WINDOWS: list[Window] = [(5, 2, 1), (5, 10, 1), (2, 2, 1), (5, 2, 10)]
SCALE_CLIPS, SCALE_BATCH = 1_000_000, 1024


def named(window: Sequence[int | str]) -> str:
    return "/".join(map(str, window))


# -------------------------------------------------------------------------------------------------------------- mixing
def uniform_batches(num_windows: int, batch: int, seed: int = 0) -> np.ndarray:
    """The mark to meet: a permutation of all windows, cut into batches [S, B]."""
    order = np.random.default_rng(seed).permutation(num_windows)
    return order[: num_windows // batch * batch].reshape(-1, batch)


def mixing(index: WindowIndex, batches: np.ndarray) -> Row:
    clips = index.locate(batches)[0]
    again = {f"again in k+{lag} %": 100 * order_figures.seen_again(clips, lag) for lag in LAGS if lag < len(clips)}
    return {
        "overlap with batch before %": 100 * order_figures.overlap_with_batch_before(index, batches),
        "same-clip pairs %": 100 * order_figures.same_clip_pairs(clips),
        **again,
    }


def run_rows(num_clips: int) -> list[Row]:
    """How the default was chosen: runs of several lengths, and a uniform shuffle."""
    rows = []
    for window, lengths in RUNS.items():
        index, batch = WindowIndex(clip_lengths(num_clips), *window), COSTS[window][0]
        for run in lengths:
            plan = EpochPlan(index, batch, run=run)
            batches = order_figures.all_batches(plan)
            cost = {"decodes a window": order_figures.decodes_a_window(plan), "GB": order_figures.gigabytes(plan)}
            far = {"far pairs": order_figures.far_pairs_rate(plan, batches)}
            rows.append({"T/step/stride": named(window), "run": run, **cost, **far, **mixing(index, batches)})
        uniform = mixing(index, uniform_batches(len(index), batch))
        rows.append({"T/step/stride": named(window), "run": "uniform", "far pairs": 1.0, **uniform})
    return rows


def mixing_rows(data: dict[str, np.ndarray]) -> list[Row]:
    rows = []
    for name, lengths in data.items():
        for window in MIXED:
            index = WindowIndex(lengths, *window)
            if len(index) // BATCH < index.steps_needed(index.span):
                continue  # too few windows to keep them apart
            plan = EpochPlan(index, BATCH)
            batches = order_figures.all_batches(plan)
            far = order_figures.far_pairs_rate(plan, batches)
            row = {"clips": name, "T/step/stride": named(window), "far pairs": far}
            row["met again"] = order_figures.met_again(plan)
            uniform = mixing(index, uniform_batches(len(index), BATCH))["overlap with batch before %"]
            rows.append({**row, **mixing(index, batches), "overlap uniform %": uniform})
    return rows


# ------------------------------------------------------------------------------------------------------------- decodes
def ranks_over_one(plan: EpochPlan, world_size: int) -> float:
    """Frames that all ranks decode over those of one alone, in the first blocks."""
    blocks = range(min(8, plan.num_blocks))
    share = [{"rank": rank, "world_size": world_size} for rank in range(world_size)]
    together = sum(len(plan.block_frames(block, **where)) for block in blocks for where in share)
    return together / sum(len(plan.block_frames(block)) for block in blocks)


def decode_rows(clips: Sequence[int]) -> list[Row]:
    rows = []
    for num_clips in clips:
        for window, (batch, decodes, gigabytes) in COSTS.items():
            plan = EpochPlan(WindowIndex(clip_lengths(num_clips), *window), batch)
            row: Row = {"clips": num_clips, "T/step/stride": named(window), "B": batch, "run": plan.run}
            row |= {"steps a block": len(plan) / plan.num_blocks}
            row |= {"decodes a window": order_figures.decodes_a_window(plan), "GB": order_figures.gigabytes(plan)}
            row |= {f"{size} ranks over one": ranks_over_one(plan, size) for size in (4, 8)}
            asked = {"asked decodes": f"<= {decodes}", "asked GB": f"<= {gigabytes}"} if num_clips == 200 else {}
            rows.append({**row, **asked})
    return rows


# ------------------------------------------------------------------------------------------------------------- options
def option_rows(clips: Sequence[int]) -> list[Row]:
    rows = []
    for num_clips in clips:
        for window, asked, clips_per_block in OPTIONS:
            index = WindowIndex(clip_lengths(num_clips), *window)
            plan = EpochPlan(index, BATCH, clips_per_block=clips_per_block)
            batches = order_figures.all_batches(plan)
            row: Row = {"clips": num_clips, "T/step/stride": named(window), "clips per block": clips_per_block}
            row |= {"steps a block": len(plan) / plan.num_blocks}
            row |= {"clips in a block": order_figures.most_clips_in_a_block(plan)}
            row |= {"decodes a window": order_figures.mean_decodes_a_window(plan), "GB": order_figures.gigabytes(plan)}
            row |= {"asked decodes": f"<= {asked}" if asked and num_clips == 200 else ""}
            row |= {"far pairs": order_figures.far_pairs_rate(plan, batches)}
            rows.append({**row, **mixing(index, batches)})
    return rows


# --------------------------------------------------------------------------------------------------------------- scale
def scale_lengths(window: Sequence[int]) -> np.ndarray:
    """Lengths of a million clips that offer 60 to 141 windows each: 100 million windows."""
    size, step, stride = window
    offered = np.random.default_rng(0).integers(60, 142, SCALE_CLIPS)
    return (size - 1) * step + 1 + (offered - 1) * stride


def setup(lengths: np.ndarray, window: Sequence[int], epoch: int = 0) -> EpochPlan:
    return EpochPlan(WindowIndex(lengths, *window), SCALE_BATCH, epoch=epoch)


def setup_work(*window: int) -> Callable[[], Any]:
    """For :func:`benchmarks.harness.peak_memory`: one set-up, its imports paid for by a small one."""
    setup(np.full(100, 2000), window)
    lengths = scale_lengths(window)
    return lambda: setup(lengths, window)


def seconds(call: Callable[[], Any]) -> float:
    """CPU time of this thread: all of it runs in one, and others on the machine disturb it less than the clock."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def scale_rows(rounds: int) -> list[Row]:
    return [row for window in SCALE_WINDOWS for row in scale_of(window, rounds)]


def scale_of(window: Window, rounds: int) -> list[Row]:
    lengths = scale_lengths(window)
    set_up = [seconds(lambda e=epoch: setup(lengths, window, e)) for epoch in range(rounds)]  # type: ignore[misc]
    plan = setup(lengths, window)
    random = np.random.default_rng(1)
    steps = random.integers(0, len(plan), 20 * rounds).tolist()
    ids = random.integers(0, len(plan.index), (20 * rounds, 65_536))
    memory = harness.peak_memory("benchmarks.order:setup_work", *window) / 1e6
    asked = window == (5, 2, 1)
    measured = {
        "set-up (s)": (set_up, "< 3"),
        "set-up memory (MB)": ([memory], "< 400"),
        "batch in sequence (ms)": ([1e3 * seconds(lambda s=step: plan.batch(s)) for step in range(1000)], "< 2"),
        "batch at a random step (ms)": ([1e3 * seconds(lambda s=step: plan.batch(s)) for step in steps], "< 20"),
        "frames() (million windows/s)": (
            [len(i) / 1e6 / seconds(lambda i=i: plan.index.frames(i)) for i in ids],
            "> 10",
        ),
    }
    where = {"T/step/stride": named(window), "windows": len(plan.index), "clips": SCALE_CLIPS, "B": SCALE_BATCH}
    return [
        {
            **where,
            "measured": name,
            "median": statistics.median(values),
            "p20": harness.percentile(values, 20),
            "p80": harness.percentile(values, 80),
            "mean": statistics.mean(values),
            "asked": bound if asked else "",
        }
        for name, (values, bound) in measured.items()
    ]


# ---------------------------------------------------------------------------------------------------------------- plot
def plot() -> None:
    """Draw order.png from the CSV files as they stand."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    runs = [row for row in read_rows("order_runs") if row["T/step/stride"] == "5/10/1" and row["run"] != "uniform"]
    lengths = [row["run"] for row in runs]
    for name, colour, mark in (("decodes a window", "#0072B2", "o"), ("far pairs", "#D55E00", "s")):
        left.plot(lengths, [float(row[name]) for row in runs], marker=mark, color=colour, label=name)
    left.axhline(1, color="black", linewidth=0.8, linestyle="--")
    left.set(xlabel="windows a run (5, 10, 1; 200 clips)", ylim=(0, None), title="What the length of a run does")
    left.legend()
    for window, colour in zip(MIXED, ("#0072B2", "#D55E00", "#009E73"), strict=True):
        rows = [
            row for row in read_rows("order_mixing") if row["T/step/stride"] == named(window) and row["clips"] in CLIPS
        ]
        for column, style, label in (
            ("overlap with batch before %", "-", named(window)),
            ("overlap uniform %", "--", None),
        ):
            values = [float(row[column]) for row in rows]
            right.plot([row["clips"] for row in rows], values, linestyle=style, color=colour, label=label)
    right.set(xlabel="clips", ylabel="%", title="Windows that overlap with the batch before", ylim=(0, None))
    right.legend(title="T/step/stride (dashed: uniform)")
    figure.savefig(harness.RESULTS / "order.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = harness.parser("order", "Mixing, decodes and speed of an epoch's order.")
    tables: dict[str, tuple[str, Callable[[bool], list[Row]]]] = {
        "runs": ("What the length of a run does", lambda quick: run_rows(40 if quick else 200)),
        "mixing": (
            "How well batches are mixed",
            lambda quick: mixing_rows(SHORT_CLIPS if quick else {**SHORT_CLIPS, **CLIPS}),
        ),
        "decodes": ("Decodes a window", lambda quick: decode_rows((40,) if quick else (200, 2000))),
        "options": ("Drawn steps and few clips", lambda quick: option_rows((40,) if quick else (200, 2000))),
        "scale": ("100 million windows over one million clips", lambda quick: scale_rows(3 if quick else 5)),
    }
    parser.add_argument("--only", choices=list(tables), help="one of the tables")
    args = parser.parse_args()
    for name, (title, rows_of) in tables.items():
        if args.only in (None, name):
            rows = rows_of(args.quick)
            harness.print_table(rows, title)
            harness.write_csv(f"order_{name}_quick" if args.quick else f"order_{name}", rows)
    if not args.quick:
        plot()


if __name__ == "__main__":
    main()
