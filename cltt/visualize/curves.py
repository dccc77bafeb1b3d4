"""Draws the curves of training runs: loss, learning rate, evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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


class Panel(NamedTuple):
    """One panel: columns of a table of RunMetrics, and the line style of each."""

    title: str
    y: str
    table: str
    columns: dict[str, str]


ABX = "ABX: nearer to its window than to another"
PANELS = (
    Panel("Training loss", "mean loss", "train", {"loss": "-"}),
    Panel("Learning rate", "after the epoch", "train", {"learning_rate": "-"}),
    Panel("Linear evaluation: loss", "cross-entropy", "evaluation", {f"{p}_loss": s for p, s in PART_STYLES.items()}),
    Panel("Linear evaluation: accuracy", "accuracy", "evaluation", {f"{p}_acc": s for p, s in PART_STYLES.items()}),
    Panel(f"{ABX} moment of the clip", "share (chance: 0.5)", "abx", {"abx_within": "-"}),
    Panel(f"{ABX} clip", "share (chance: 0.5)", "abx", {"abx_across": "-"}),
)


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

    filled = {name for metrics in runs.values() for name in ("evaluation", "abx") if getattr(metrics, name)["epoch"]}
    panels = [panel for panel in PANELS if panel.table in {"train", *filled}]
    figure = Figure(figsize=(11, 0.6 + 1.6 * len(panels)), facecolor="white", layout="constrained")
    axes = figure.subplots(len(panels) // 2, 2, squeeze=False).ravel()
    styles = list(zip(_colors(len(runs)), _widths(len(runs)), strict=True))
    for place, panel in zip(axes, panels, strict=True):
        plain_axes(place, panel.title, "epoch", panel.y)
        place.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # epochs are whole numbers
        for metrics, style in zip(runs.values(), styles, strict=True):
            for column, dashes in panel.columns.items():
                _draw_line(place, getattr(metrics, panel.table), column, style, dashes)
    if "evaluation" in filled:
        _name_parts(axes[3], runs)
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
    if len(runs) > 1:
        lines, names = axes[0].get_lines()[: len(runs)], [shorten(printable(name), 48) for name in runs]
        legend = figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a run's name may hold $
    else:
        figure.suptitle(shorten(printable(next(iter(runs))), 90), x=0.012, ha="left", weight="bold", parse_math=False)
    return figure


def _draw_line(axes: Axes, columns: Columns, name: str, style: Style, dashes: str) -> None:
    """One column over its epochs."""
    color, width = style
    points = [(x, y) for x, y in zip(columns["epoch"], columns[name], strict=True) if math.isfinite(y)]
    marker = "o" if len(points) <= FEW else None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=color, ls=dashes, marker=marker, markersize=1.9 + width, linewidth=width)


def _name_parts(axes: Axes, runs: Mapping[str, RunMetrics]) -> None:
    """A legend of the line styles, of the parts that any run is evaluated on."""
    for part, dashes in PART_STYLES.items():
        columns = [metrics.evaluation[f"{part}_{kind}"] for metrics in runs.values() for kind in ("loss", "acc")]
        if any(math.isfinite(value) for column in columns for value in column):
            axes.plot([], [], color="#666666", linestyle=dashes, label=part)
    axes.legend(frameon=False, loc="best")


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
