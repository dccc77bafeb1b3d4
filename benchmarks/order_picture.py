"""Draw the pictures of docs/order.md: ``python -m benchmarks.order_picture``.

Two clips of twelve frames, windows of two frames two apart, runs of at most three windows, three windows per batch,
three steps per block: an epoch as EpochPlan makes it. The windows are called a to t, in order of clip and start.
"""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np

from benchmarks import harness
from cltt import EpochPlan, WindowIndex
from cltt.sampling.blocks import Block
from cltt.sampling.runs import RunTable, Segments

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Rectangle

FOLDER = harness.ROOT / "docs" / "images"
SEED, B, K, FRAMES, RUN = 26, 3, 3, 12, 3
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B3589A", "#A07800", "#56B4E9", "#7A4B94", "#444444")
SHADES = ("#DDDDDD", "#FFFFFF")
NAMES = "abcdefghijklmnopqrst"
LETTER = {"ha": "center", "va": "center", "fontsize": 11, "fontweight": "bold"}


def example() -> tuple[EpochPlan, Segments]:
    """The plan of the epoch and its row: runs and parts of runs, end to end."""
    index = WindowIndex([FRAMES, FRAMES], window_size=2, frame_step=2)
    plan = EpochPlan(index, B, seed=SEED, depth=K, run=RUN)
    row = plan._sequence.segments(0, len(index))
    assert len(index) == len(NAMES) and plan.num_blocks == 2
    return plan, row


def colours_of(index: WindowIndex) -> dict[int, str]:
    """A colour for each window: that of its run."""
    table = RunTable(index, RUN)
    numbers = np.arange(len(table))
    runs = table.segments(numbers, table.clip_of(numbers))
    return {
        int(window): COLOURS[run] for window, run in zip(runs.windows(), np.repeat(numbers, runs.count), strict=True)
    }


def draw_runs(index: WindowIndex, colours: dict[int, str]) -> Any:
    """Every window as a line over its clip's frames, with a dot on each frame that it holds; a level per phase."""
    figure, axes = pyplot.subplots(figsize=(8.6, 4.6), layout="constrained")
    for clip in range(2):
        base = -clip * 4.4
        for frame in range(FRAMES):
            axes.add_patch(Rectangle((frame - 0.42, base - 0.42), 0.84, 0.84, facecolor="#F2F2F2", edgecolor="#888888"))
            axes.text(frame, base, str(frame), ha="center", va="center", fontsize=8)
        axes.text(-0.9, base, f"clip {clip}", ha="right", va="center", fontsize=9)
        for phase in range(2):
            axes.text(-0.9, base + 1.1 + 1.3 * phase, f"phase {phase}", ha="right", va="center", fontsize=9)
    for window in range(len(index)):
        clip, start = (int(value) for value in index.locate(window))
        phase, number = start % 2, start // 2
        height = -clip * 4.4 + 0.85 + 1.3 * phase + 0.5 * (number % 2)
        held = [start + 0.08, start + index.frame_step - 0.08]
        axes.plot(held, [height] * 2, color=colours[window], marker="o", markersize=5, linewidth=2)
        axes.text(start + 1, height + 0.08, NAMES[window], color=colours[window], **{**LETTER, "va": "bottom"})
    axes.set(xlim=(-2.4, FRAMES), ylim=(-5, 3.4))
    return figure


def draw_cells(axes: Any, cells: np.ndarray, colours: dict[int, str], shades: np.ndarray) -> None:
    """Window names in a grid [rows, columns], over shaded cells."""
    for (row, column), window in np.ndenumerate(cells):
        axes.add_patch(Rectangle((column, -row), 1, 1, facecolor=SHADES[shades[row, column]], edgecolor="#888888"))
        axes.text(column + 0.5, -row + 0.5, NAMES[window], color=colours[int(window)], **LETTER)


def draw_row(plan: EpochPlan, row: Segments, colours: dict[int, str]) -> Any:
    """The row of the epoch, cut into blocks."""
    figure, axes = pyplot.subplots(figsize=(8.6, 1.5), layout="constrained")
    windows = row.windows()
    draw_cells(axes, windows[None], colours, np.ones((1, len(windows)), dtype=int))
    bounds = [plan.block_steps(block).stop * B for block in range(plan.num_blocks)]
    for block, (low, high) in enumerate(zip([0, *bounds], [*bounds, len(windows)], strict=True)):
        name = f"block {block}" if block < plan.num_blocks else "left out"
        axes.text((low + high) / 2, 1.35, name, ha="center", va="bottom", fontsize=9)
        axes.plot([low + 0.1, high - 0.1], [1.2] * 2, color="#444444", linewidth=1)
    axes.set(xlim=(-0.2, len(windows) + 0.2), ylim=(-0.1, 1.9))
    return figure


def draw_block(plan: EpochPlan, colours: dict[int, str]) -> Any:
    """The chains of block 0, its rows with the groups shaded, and its steps."""
    block = plan._block(0)
    assert isinstance(block, Block) and len(plan.block_steps(0)) == K
    figure, (chains, rows, steps) = pyplot.subplots(
        1, 3, figsize=(8.6, 3), layout="constrained", width_ratios=(1.5, 1, 1)
    )
    low = 0
    for number, length in enumerate(block.chains.lengths):
        for place, window in enumerate(block.chains.windows[low : low + length]):
            chains.text(place + 0.5, -number + 0.5, NAMES[window], color=colours[int(window)], **LETTER)
            chains.plot(
                [place + 0.8, place + 1.2], [-number + 0.5] * 2, color="#AAAAAA", alpha=float(place + 1 < length)
            )
        clip = int(plan.index.locate(block.chains.windows[low])[0])
        chains.text(-0.2, -number + 0.5, f"clip {clip}", ha="right", va="center", fontsize=9)
        low += length
    chains.set_title("1. Chains", fontsize=10)
    group = block._stretches(B, K, plan._spacing.num_blocks).of_positions()[1]
    draw_cells(rows, block._windows.reshape(B, K), colours, np.tile(group, (B, 1)))
    rows.set_title("2. Rows; a shade is a group", fontsize=10)
    for row in range(B):
        rows.text(-0.15, -row + 0.5, f"row {row}", ha="right", va="center", fontsize=9)
    assigned = np.stack([block.windows(step, np.arange(B)) for step in range(K)], axis=1)
    draw_cells(steps, assigned, colours, np.ones((B, K), dtype=int))
    for step in range(K):
        steps.text(step + 0.5, 1.2, f"step {step}", ha="center", fontsize=9)
    steps.set_title("3. Steps: a column is a batch", fontsize=10)
    chains.set(xlim=(-1.3, max(block.chains.lengths) + 0.3))
    for axes in (rows, steps):
        axes.set(xlim=(-1.2, K + 0.2))
    for axes in (chains, rows, steps):
        axes.set(ylim=(1.2 - max(B, len(block.chains.lengths)) - 0.4, 1.8))
    return figure


def main() -> None:
    plan, row = example()
    colours = colours_of(plan.index)
    pictures = {
        "order_runs.png": draw_runs(plan.index, colours),
        "order_row.png": draw_row(plan, row, colours),
        "order_block.png": draw_block(plan, colours),
    }
    for name, figure in pictures.items():
        for axes in figure.axes:
            axes.set_axis_off()
            axes.title.set_visible(True)
        figure.savefig(FOLDER / name, dpi=110)
        print(f"{(FOLDER / name).relative_to(harness.ROOT)} drawn")


if __name__ == "__main__":
    main()
