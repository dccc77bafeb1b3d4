"""Draw docs/images/order.png, the example of docs/order.md: ``python -m benchmarks.order_picture``.

Two clips of twelve frames, windows of two frames two apart, three windows a run, two a batch, three steps a block: the
first block of an epoch as EpochPlan makes it.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np

from benchmarks import harness
from cltt import EpochPlan, WindowIndex
from cltt.sampling.blocks import Block
from cltt.sampling.runs import Segments

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

PICTURE = harness.ROOT / "docs" / "images" / "order.png"
SEED, B, K, FRAMES = 60, 2, 3, 12
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
SHADES = ("#DDDDDD", "#FFFFFF")


def example() -> tuple[WindowIndex, Block, Segments]:
    """The windows, the first block of the epoch, and its runs."""
    index = WindowIndex([FRAMES, FRAMES], window_size=2, frame_step=2)
    plan = EpochPlan(index, B, seed=SEED, depth=K, run=3)
    block = plan._block(0)
    assert isinstance(block, Block) and len(plan.block_steps(0)) == K
    return index, block, plan._row.segments(0, B * K)


def draw_clips(axes: Any, index: WindowIndex, names: dict[int, str], colours: dict[int, str]) -> None:
    """Every window as a bar over its clip's frames, with a dot on each frame that it holds."""
    for clip in range(2):
        base = -clip * 4.2
        for frame in range(FRAMES):
            axes.add_patch(Rectangle((frame - 0.42, base - 0.42), 0.84, 0.84, facecolor="#F2F2F2", edgecolor="#888888"))
            axes.text(frame, base, str(frame), ha="center", va="center", fontsize=8)
        axes.text(-0.9, base, f"clip {clip}", ha="right", va="center", fontsize=9)
    levels = dict.fromkeys((0, 1), 0)
    for window, name in names.items():
        clip, start = (int(value) for value in index.locate(window))
        levels[clip] += 1
        height = -clip * 4.2 + 0.55 + 0.62 * levels[clip]
        held = [start, start + index.frame_step]
        axes.plot(held, [height] * 2, color=colours[window], marker="o", markersize=5, linewidth=2)
        axes.text(held[1] + 0.35, height, name, color=colours[window], va="center", fontsize=10, fontweight="bold")
    axes.set(xlim=(-2.4, FRAMES), ylim=(-4.9, 3))
    axes.set_title("1. The runs of the block, one colour a run", fontsize=10)


def draw_cells(
    axes: Any, cells: np.ndarray, names: dict[int, str], colours: dict[int, str], shades: np.ndarray
) -> None:
    """Window names in a grid [rows, columns], over shaded cells."""
    for (row, column), window in np.ndenumerate(cells):
        axes.add_patch(Rectangle((column, -row), 1, 1, facecolor=SHADES[shades[row, column]], edgecolor="#888888"))
        axes.text(
            *(column + 0.5, -row + 0.5, names[window]),
            color=colours[window],
            ha="center",
            va="center",
            fontsize=13,
            fontweight="bold",
        )
    axes.set(xlim=(-1.3, cells.shape[1] + 0.2), ylim=(-cells.shape[0] + 0.4, 2))


def main() -> None:
    index, block, runs = example()
    sequence = block._windows
    names = {int(window): "abcdef"[place] for place, window in enumerate(sequence)}
    ends = np.cumsum(runs.count)
    colours = {
        int(window): COLOURS[int(np.searchsorted(ends, place, side="right"))]
        for place, window in enumerate(runs.windows())
    }
    group = block._stretches(B, K, 3).of_positions()[1]
    figure = pyplot.figure(figsize=(8.6, 5.6), layout="constrained")
    clips, rows, steps = figure.subplot_mosaic([["clips", "clips"], ["rows", "steps"]], height_ratios=[1.5, 1]).values()
    draw_clips(clips, index, dict(sorted(names.items())), colours)
    draw_cells(rows, sequence.reshape(B, K), names, colours, np.tile(group, (B, 1)))
    rows.set_title(f"2. Chains shuffled, {B} rows of {K} places;\ngroups of places are shaded", fontsize=10)
    dealt = np.stack([block.windows(step, np.arange(B)) for step in range(K)], axis=1)
    draw_cells(steps, dealt, names, colours, np.ones((B, K), dtype=int))
    for step in range(K):
        steps.text(step + 0.5, 1.3, f"step {step}", ha="center", fontsize=9)
    steps.set_title("3. Dealt to steps: a column is a batch", fontsize=10)
    for axes in (clips, rows, steps):
        axes.set_axis_off()
        axes.title.set_visible(True)
    for row in range(B):
        rows.text(-0.15, -row + 0.5, f"row {row}", ha="right", va="center", fontsize=9)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE.relative_to(harness.ROOT)} drawn")


if __name__ == "__main__":
    main()
