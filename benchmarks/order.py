"""How well an epoch is mixed, what that costs in decodes, and how fast the order is at 100 million windows.

``python -m benchmarks.order [--quick]`` writes order.csv (mixing), order_decodes.csv, order_scale.csv and order.png.

Mixing is told by clips: the share of a batch's pairs that come from one clip, and the chance that a clip seen in batch
k is seen again in batch k+1, k+10, k+100. A true uniform shuffle of all windows is the mark to meet. Decodes are
counted with a cache that holds one block: every block decodes each of its frames once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from cltt import EpochPlan, WindowIndex

SETTINGS = [(1, 1), (64, 16), (128, 32), (1024, 128)]  # depth, run
WINDOWS = [(5, 2, 1), (5, 10, 1), (5, 2, 10), (16, 1, 4)]  # T, step, stride
LAGS = (1, 10, 100)
BATCH = 64
FRAMES_A_CLIP = 540
SCALE_WINDOWS = [(5, 10, 1), (5, 2, 10)]
SCALE_CLIPS, SCALE_BATCH = 1_000_000, 1024


# -------------------------------------------------------------------------------------------------------------- mixing
def uniform_batches(num_windows: int, batch_size: int, seed: int) -> np.ndarray:
    """The mark: a permutation of all windows, cut into batches [S, B]."""
    order = np.random.default_rng(seed).permutation(num_windows)
    return order[: num_windows // batch_size * batch_size].reshape(-1, batch_size)


def plan_batches(plan: EpochPlan) -> np.ndarray:
    return np.stack([plan.batch(step) for step in range(len(plan))])


def same_clip_pairs(clips: np.ndarray) -> float:
    """Share of the row pairs of a batch that come from one clip; ``clips`` [S, B]."""
    ordered = np.sort(clips, axis=1)
    row, place = np.nonzero(np.diff(ordered, axis=1, prepend=-1))
    sizes = np.diff(row * clips.shape[1] + place, append=clips.size)
    return float((sizes * (sizes - 1)).sum() / (len(clips) * clips.shape[1] * (clips.shape[1] - 1)))


def seen_again(clips: np.ndarray, lag: int, samples: int = 500) -> float:
    """Chance that a clip of batch k is in batch k + lag, over up to ``samples`` batches k."""
    steps = np.linspace(0, len(clips) - lag - 1, samples).astype(int)
    return float(np.mean([np.isin(np.unique(clips[k]), clips[k + lag]).mean() for k in steps]))


def mixing_rows(num_clips: int) -> list[dict[str, Any]]:
    index = WindowIndex([FRAMES_A_CLIP] * num_clips, 5, 10, 1)
    plans = {f"{d}/{r}": EpochPlan(index, BATCH, depth=d, run=r) for d, r in SETTINGS}
    batches = {name: plan_batches(plan) for name, plan in plans.items()}
    batches["uniform shuffle"] = uniform_batches(len(index), BATCH, seed=0)
    rows = []
    for name, ids in batches.items():
        clips = index.locate(ids)[0]
        row: dict[str, Any] = {"depth/run": name, "depth used": plans[name].depth if name in plans else "-"}
        row["same-clip pairs %"] = 100 * same_clip_pairs(clips)
        rows.append({**row, **{f"again in k+{lag} %": 100 * seen_again(clips, lag) for lag in LAGS}})
    return rows


# ------------------------------------------------------------------------------------------------------------- decodes
def decodes(plan: EpochPlan) -> tuple[int, int]:
    """Frames decoded over an epoch with a cache of one block, and distinct frames used."""
    blocks = [plan.block_frames(block) for block in range(plan.num_blocks)]
    return sum(map(len, blocks)), len(np.unique(np.concatenate(blocks)))


def uniform_decodes(index: WindowIndex) -> tuple[int, int]:
    """The same for a uniform shuffle with nothing kept from batch to batch."""
    frames = np.sort(index.frames(uniform_batches(len(index), BATCH, seed=0)).reshape(-1, BATCH * index.window_size))
    return int((np.diff(frames, axis=1) != 0).sum()) + len(frames), len(np.unique(frames))


def decode_rows(num_clips: int) -> list[dict[str, Any]]:
    rows = []
    for window in WINDOWS:
        index = WindowIndex([FRAMES_A_CLIP] * num_clips, *window)
        row: dict[str, Any] = {"T/step/stride": "/".join(map(str, window))}
        for depth, run in SETTINGS:
            decoded, used = decodes(EpochPlan(index, BATCH, depth=depth, run=run))
            row[f"{depth}/{run}"] = decoded / used
        decoded, used = uniform_decodes(index)
        rows.append({**row, "uniform shuffle": decoded / used})
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
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def scale_rows(rounds: int) -> list[dict[str, Any]]:
    return [row for window in SCALE_WINDOWS for row in scale_of(window, rounds)]


def scale_of(window: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    lengths = scale_lengths(window)
    set_up = [seconds(lambda e=epoch: setup(lengths, window, e)) for epoch in range(rounds)]  # type: ignore[misc]
    plan = setup(lengths, window)
    random = np.random.default_rng(1)
    steps = random.integers(0, len(plan), 20 * rounds).tolist()
    ids = random.integers(0, len(plan.index), (20 * rounds, 65_536))
    memory = harness.peak_memory("benchmarks.order:setup_work", *window) / 1e6
    measured = {
        "set-up (s)": (set_up, "< 2"),
        "set-up memory (MB)": ([memory], "< 300"),
        "batch in sequence (ms)": ([1e3 * seconds(lambda s=step: plan.batch(s)) for step in range(1000)], "< 2"),
        "batch at a random step (ms)": ([1e3 * seconds(lambda s=step: plan.batch(s)) for step in steps], "< 20"),
        "frames() (million windows/s)": (
            [len(i) / 1e6 / seconds(lambda i=i: plan.index.frames(i)) for i in ids],
            "> 10",
        ),
    }
    where = {
        "T/step/stride": "/".join(map(str, window)),
        "windows": len(plan.index),
        "clips": SCALE_CLIPS,
        "B": SCALE_BATCH,
    }
    return [
        {
            **where,
            "measured": name,
            "median": statistics.median(values),
            "p20": harness.percentile(values, 20),
            "p80": harness.percentile(values, 80),
            "asked": asked,
        }
        for name, (values, asked) in measured.items()
    ]


# ---------------------------------------------------------------------------------------------------------------- plot
def plot(mixing: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in mixing:
        uniform = row["depth/run"] == "uniform shuffle"
        style = {"color": "black", "linestyle": "--"} if uniform else {"marker": "o"}
        left.plot(
            [str(lag) for lag in LAGS], [row[f"again in k+{lag} %"] for lag in LAGS], label=row["depth/run"], **style
        )
    left.set(
        xlabel="batches later", ylabel="clips seen again, %", title="How close batches are (5, 10, 1)", ylim=(0, None)
    )
    left.legend(title="depth/run", loc="lower left")
    names = [f"{depth}/{run}" for depth, run in SETTINGS]
    for row in saved:
        right.plot(names, [row[name] for name in names], marker="o", label=row["T/step/stride"])
    right.set(xlabel="depth/run", ylabel="decodes per frame used", title="What depth saves", ylim=(0, None))
    right.axhline(1, color="black", linewidth=0.8, linestyle="--")
    right.legend(title="T/step/stride")
    figure.savefig(harness.RESULTS / "order.png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    args = harness.parser("order", "Mixing, decodes and speed of an epoch's order.").parse_args()
    mixing = mixing_rows(500 if args.quick else 2000)
    harness.print_table(mixing, f"How close batches are: B = {BATCH}, (5, 10, 1)")
    saved = decode_rows(500 if args.quick else 2000)
    harness.print_table(saved, f"Frames decoded per frame used: B = {BATCH}")
    scale = scale_rows(rounds=3 if args.quick else 9)
    harness.print_table(scale, "100 million windows over one million clips")
    for name, rows in (("order", mixing), ("order_decodes", saved), ("order_scale", scale)):
        harness.write_csv(name, rows)
    plot(mixing, saved)


if __name__ == "__main__":
    main()
