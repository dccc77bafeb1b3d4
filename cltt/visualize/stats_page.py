"""Draws the statistics of a data set on one page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.text import byte_size, counted, printable, shorten
from cltt.visualize.figures import GREY, INK, PALE, PALETTE, plain_axes
from cltt.visualize.stats import size_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_BARS = 7  # a panel has room for at least so many bars, as two bars alone would become blocks
BARS = 12  # bars of a panel; the rest is summed up in the last
BLUE, ORANGE = PALETTE[0], PALETTE[1]


def draw_stats(stats: dict[str, Any], title: str) -> Figure:
    """Draw totals, clip lengths, windows at other settings, sizes, splits and labels.

    A single size, split or label is in the totals, not in a chart with one bar.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]
    figure.suptitle(printable(title), x=0.012, ha="left", fontsize=14, weight="bold", color=INK, parse_math=False)
    grid = figure.add_gridspec(2, 3)
    _draw_totals(figure.add_subplot(grid[0, 0]), stats)
    several_sizes = len(stats["frame_sizes"]) > 1
    _draw_lengths(figure.add_subplot(grid[0, 1] if several_sizes else grid[0, 1:]), stats)
    if several_sizes:
        sizes = [(size_name(size), size["frames"]) for size in stats["frame_sizes"]]
        _draw_bars(figure.add_subplot(grid[0, 2]), "Frame sizes (frames)", sizes)
    kinds = {"Splits (clips)": stats["splits"], "Labels (clips)": stats["labels"]}
    groups = [(name, found) for name, found in kinds.items() if len(found) > 1]
    _draw_table(figure.add_subplot(grid[1, : 3 - len(groups)]), stats)
    for column, (name, found) in enumerate(groups, start=3 - len(groups)):
        clips = [(shorten(printable(group["name"]), 18), group["clips"]) for group in found]
        _draw_bars(figure.add_subplot(grid[1, column]), name, clips)
    return figure


def _draw_totals(axes: Axes, stats: dict[str, Any]) -> None:
    """Clips, frames, bytes and windows as text."""
    settings, short, repeats = stats["window_settings"], stats["too_short"], stats["duplicates"]
    sizes = stats["frame_sizes"]
    groups = [f", {kind} {stats[f'{kind}s'][0]['name']}" for kind in ("split", "label") if len(stats[f"{kind}s"]) == 1]
    used = f"size {settings['window_size']}, step {settings['frame_step']}, stride {settings['window_stride']}"
    lines = [
        _number(stats["clips"], "clip", printable("".join(groups))),
        _number(stats["frames"], "frame", f" of {size_name(sizes[0])}" if len(sizes) == 1 else ""),
        (byte_size(stats["bytes"]), "of JPEG data"),
        _number(stats["windows"], "window", f" ({used})"),
        _number(short["clips"], "clip", f" too short, with {counted(short['frames'], 'frame')}"),
        _number(repeats["pairs"], "frame", " equal to the one before"),
    ]
    axes.axis("off")
    for number, (value, name) in enumerate(lines):
        y = 0.95 - number * 0.165
        axes.text(0, y, value, transform=axes.transAxes, fontsize=15, fontweight="bold", color=INK, va="center")
        axes.text(0, y - 0.075, name, transform=axes.transAxes, fontsize=9.5, color=GREY, va="center", parse_math=False)


def _number(count: int, noun: str, more: str = "") -> tuple[str, str]:
    """A count, and the name of what it counts, as two texts."""
    value, _, name = counted(count, noun).partition(" ")
    return value, name + more


def _draw_lengths(axes: Axes, stats: dict[str, Any]) -> None:
    """Histogram of clip lengths, with the span below which a clip has no window."""
    from matplotlib.ticker import MaxNLocator

    histogram, span = stats["clip_lengths"]["histogram"], stats["window_settings"]["span"]
    edges = np.array(histogram["edges"])
    axes.bar(edges[:-1], histogram["clips"], np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
    axes.axvline(span, color=ORANGE, linewidth=1.6)
    axes.set_ylim(0, 1.12 * max(histogram["clips"], default=1))
    axes.annotate(
        f" span {span}", (span, 1), xycoords=("data", "axes fraction"), color=ORANGE, fontsize=9.5, ha="left", va="top"
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, "Clip lengths", "frames in a clip", "clips")


def _draw_bars(axes: Axes, title: str, values: list[tuple[str, int]]) -> None:
    """Horizontal bars with their numbers.

    If there are many, the last bar is the sum of the smallest.
    """
    plain_axes(axes, title, "", "")
    axes.grid(False)
    if len(values) > BARS:
        ordered = sorted(values, key=lambda value: -value[1])
        rest = ordered[BARS - 1 :]
        values = [*ordered[: BARS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    places = np.arange(len(values))
    axes.barh(places, [count for _, count in values], color=BLUE, height=0.7)
    axes.set_yticks(places, [name for name, _ in values], parse_math=False)
    axes.set_ylim(max(len(values), FEWEST_BARS) - 0.5, -0.5)
    axes.set_xticks([])
    longest = max((count for _, count in values), default=1)
    axes.set_xlim(0, 1.28 * longest)
    for place, (_, count) in enumerate(values):
        axes.text(count + 0.02 * longest, place, f"{count:,}", va="center", fontsize=9, color=GREY)
    axes.spines["bottom"].set_visible(False)


def _draw_table(axes: Axes, stats: dict[str, Any]) -> None:
    """Windows at other frame steps and strides as a table; the settings in use have a frame."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    table, settings = stats["windows_at"], stats["window_settings"]
    counts = np.array(table["windows"])
    norm = LogNorm(1, max(2, counts.max()))
    axes.imshow(np.maximum(counts, 1), cmap="Blues", norm=norm, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        color = "white" if norm(max(1, int(counts[row, column]))) > 0.6 else INK
        axes.text(column, row, _compact(int(counts[row, column])), ha="center", va="center", fontsize=8.5, color=color)
    place = (
        table["window_strides"].index(settings["window_stride"]),
        table["frame_steps"].index(settings["longest_step"]),
    )
    axes.add_patch(Rectangle((place[0] - 0.5, place[1] - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=2.4))
    axes.set_xticks(range(counts.shape[1]), table["window_strides"])
    axes.set_yticks(range(counts.shape[0]), table["frame_steps"])
    plain_axes(axes, "Windows at other settings", "window stride", "frame step")
    axes.grid(False)
    axes.spines[:].set_color(PALE)


def _compact(count: int) -> str:
    """A count in at most five characters."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
