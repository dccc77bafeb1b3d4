"""The one-page picture of a data set's statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cltt.text import counted, printable, shorten
from cltt.visualize.figures import GREY, INK, PALE, PALETTE, plain_axes
from cltt.visualize.stats import size_name, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_BARS = 7  # room for so many, that two bars don't become blocks
BARS = 12  # bars of a panel before the rest is summed up
BLUE, ORANGE = PALETTE[0], PALETTE[1]


def draw_stats(stats: dict[str, Any], title: str) -> Figure:
    """One page: totals, clip lengths, windows at other settings, and bars of frame sizes, splits and labels.

    A single size, split or label stands in the totals: a chart of one bar shows nothing.
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
        _draw_sizes(figure.add_subplot(grid[0, 2]), stats)
    kinds = {"Splits (clips)": stats["splits"], "Labels (clips)": stats["labels"]}
    groups = [(name, found) for name, found in kinds.items() if len(found) > 1]
    _draw_table(figure.add_subplot(grid[1, : 3 - len(groups)]), stats)
    for column, (name, found) in enumerate(groups, start=3 - len(groups)):
        _draw_groups(figure.add_subplot(grid[1, column]), name, found)
    return figure


def _draw_totals(axes: Axes, stats: dict[str, Any]) -> None:
    """The numbers a person looks for first."""
    settings, short, repeats = stats["window_settings"], stats["too_short"], stats["duplicates"]
    sizes = stats["frame_sizes"]
    groups = [f", {kind} {stats[f'{kind}s'][0]['name']}" for kind in ("split", "label") if len(stats[f"{kind}s"]) == 1]
    lines = [
        _number(stats["clips"], "clip", printable("".join(groups))),
        _number(stats["frames"], "frame", f" of {size_name(sizes[0])}" if len(sizes) == 1 else ""),
        (size_text(stats["bytes"]), "of JPEG data"),
        _number(stats["windows"], "window", f" ({_short_settings(settings)})"),
        _number(short["clips"], "clip", f" too short, with {counted(short['frames'], 'frame')}"),
        _number(repeats["pairs"], "frame", " equal to the one before"),
    ]
    axes.axis("off")
    for number, (value, name) in enumerate(lines):
        y = 0.95 - number * 0.165
        axes.text(0, y, value, transform=axes.transAxes, fontsize=15, fontweight="bold", color=INK, va="center")
        axes.text(0, y - 0.075, name, transform=axes.transAxes, fontsize=9.5, color=GREY, va="center", parse_math=False)


def _number(count: int, noun: str, more: str = "") -> tuple[str, str]:
    """A count, and what it counts."""
    value, _, name = counted(count, noun).partition(" ")
    return value, name + more


def _short_settings(settings: dict[str, Any]) -> str:
    return f"size {settings['window_size']}, step {settings['frame_step']}, stride {settings['window_stride']}"


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


def _draw_sizes(axes: Axes, stats: dict[str, Any]) -> None:
    sizes = [(size_name(size), size["frames"]) for size in stats["frame_sizes"]]
    _bars(axes, sizes)
    plain_axes(axes, "Frame sizes (frames)", "", "")
    axes.grid(False)


def _draw_groups(axes: Axes, title: str, groups: list[dict[str, Any]]) -> None:
    plain_axes(axes, title, "", "")
    axes.grid(False)
    _bars(axes, [(shorten(printable(group["name"]), 18), group["clips"]) for group in groups])


def _bars(axes: Axes, values: list[tuple[str, int]]) -> None:
    """Horizontal bars with their number; the smallest are summed up in a last one when there are many."""
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
    """Windows at other steps and strides; the settings in use are framed."""
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
    """A count in at most five letters."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
