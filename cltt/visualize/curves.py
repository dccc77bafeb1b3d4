"""Draws the curves of training runs: loss, learning rate, evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cltt.metrics import Columns, RunMetrics, read_run
from cltt.text import printable, shorten
from cltt.visualize.figures import GREY, PALETTE, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_STYLES = {"train": ":", "val": "--", "test": "-"}
THIN, BROAD = 1.6, 4.0  # line widths in points, of the last run and the first
FEW = 40  # a curve with at most so many points gets a dot at each
Style = tuple[str, float]  # colour and line width of a run


def name_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """A short, unique name for each run: the last parts of its path.

    A run given twice is drawn once.
    """
    paths = list(dict.fromkeys(paths))
    for parts in range(1, max(len(path.resolve().parts) for path in paths) + 1):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def draw_curves(runs: Mapping[str, RunMetrics]) -> Figure:
    """Draw loss, learning rate and, if any run has it, the evaluation; one colour per run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    evaluated = any(metrics.evaluation["epoch"] for metrics in runs.values())
    has_abx = any(metrics.abx["epoch"] for metrics in runs.values())
    panels = 2 + 2 * evaluated + 2 * has_abx
    figure = Figure(figsize=(11, 0.6 + 1.6 * panels), facecolor="white", layout="constrained")
    axes = figure.subplots(panels // 2, 2, squeeze=False).ravel()
    plain_axes(axes[0], "Training loss", "epoch", "mean loss")
    plain_axes(axes[1], "Learning rate", "epoch", "after the epoch")
    styled = list(zip(runs.values(), zip(_colors(len(runs)), _widths(len(runs)), strict=True), strict=True))
    for name, (metrics, style) in zip(runs, styled, strict=True):
        _line(axes[0], metrics.train, "loss", style, label=shorten(printable(name), 48))
        _line(axes[1], metrics.train, "learning_rate", style)
    for chance in {metrics.chance for metrics in runs.values() if metrics.chance is not None}:
        axes[0].axhline(chance, color=GREY, linestyle=":", linewidth=1)
        axes[0].annotate(
            f"chance: {chance:.2f}",
            (1, chance),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=GREY,
        )
    if evaluated:
        _draw_evaluation(axes[2], axes[3], styled)
    if has_abx:
        _draw_abx(axes[-2], axes[-1], styled)
    for panel in axes:  # epochs are whole numbers
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if len(runs) > 1:
        handles, names = axes[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a run's name may hold $
    else:
        figure.suptitle(shorten(printable(next(iter(runs))), 90), x=0.012, ha="left", weight="bold", parse_math=False)
    return figure


def _draw_evaluation(loss_axes: Axes, accuracy_axes: Axes, styled: list[tuple[RunMetrics, Style]]) -> None:
    """Loss and accuracy of the linear classifier.

    The line style tells train, val and test apart.
    """
    plain_axes(loss_axes, "Linear evaluation: loss", "epoch", "cross-entropy")
    plain_axes(accuracy_axes, "Linear evaluation: accuracy", "epoch", "accuracy")
    shown = set()
    for metrics, style in styled:
        for part, dashes in PART_STYLES.items():
            has_loss = _line(loss_axes, metrics.evaluation, f"{part}_loss", style, dashes)
            if _line(accuracy_axes, metrics.evaluation, f"{part}_acc", style, dashes) or has_loss:
                shown.add(part)
    for part in (part for part in PART_STYLES if part in shown):
        accuracy_axes.plot([], [], color="#666666", linestyle=PART_STYLES[part], label=part)
    accuracy_axes.legend(frameon=False, loc="best")


def _draw_abx(within: Axes, across: Axes, styled: list[tuple[RunMetrics, Style]]) -> None:
    """How often a frame is nearer to another frame of its window than to one outside it.

    Chance is 0.5.
    """
    for axes, column, where in (
        (within, "abx_within", "another moment of the clip"),
        (across, "abx_across", "another clip"),
    ):
        plain_axes(axes, f"ABX: nearer to its window than to {where}", "epoch", "share (chance: 0.5)")
        for metrics, style in styled:
            _line(axes, metrics.abx, column, style)


def _line(axes: Axes, columns: Columns, name: str, style: Style, dashes: str = "-", label: str | None = None) -> bool:
    """Draw one column over its epochs; False if it has no value."""
    from matplotlib.ticker import MaxNLocator

    color, width = style
    points = [(x, y) for x, y in zip(columns["epoch"], columns[name], strict=True) if math.isfinite(y)]
    marker = "o" if len(points) <= FEW else None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=color, ls=dashes, marker=marker, markersize=1.9 + width, linewidth=width, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return bool(points)


def _widths(count: int) -> list[float]:
    """Line widths in points, decreasing, so that equal curves do not hide each other."""
    return [THIN + (BROAD - THIN) * (count - 1 - number) / max(count - 1, 1) for number in range(count)]


def _colors(count: int) -> list[str]:
    """One colour per run; for more runs than PALETTE has, shades from dark to light."""
    import matplotlib
    from matplotlib.colors import to_hex

    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = matplotlib.colormaps["viridis"]
    return [to_hex(shades(0.95 * number / (count - 1))) for number in range(count)]


def plot_run(run_dir: Path, save_path: Path) -> None:
    """Save a picture of loss, learning rate and evaluation of the run in ``run_dir``.

    Raises DataError if the metrics are missing or cannot be read.
    """
    save_figure(draw_curves({run_dir.name or str(run_dir): read_run(run_dir)}), save_path)
