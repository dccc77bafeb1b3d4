"""Curves of training runs, read from the CSV files that ``train.py --csv-log`` writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cltt._figures import PALETTE, plain_axes
from cltt.errors import DataError
from cltt.text import printable, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Columns = dict[str, list[float]]
TRAIN_COLUMNS = ("epoch", "loss", "learning_rate", "decay_rate")
EVAL_COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc")
PART_STYLES = {"train": ":", "val": "--", "test": "-"}
THIN, BROAD = 1.6, 4.0  # line widths, in points, of the last run and the first
FEW = 40  # points a curve may have and still get a dot each


@dataclass(frozen=True)
class RunMetrics:
    """Columns of a run's metrics, one value an epoch; ``evaluation`` has no rows where nothing was evaluated."""

    train: Columns
    evaluation: Columns


def read_run(path: Path) -> RunMetrics:
    """Metrics of the run in folder ``path`` (``metrics.csv``, ``metrics_eval.csv``), or of the metrics file ``path``.

    Raises DataError if there is no metrics file, or if a line is not what training writes.
    """
    metrics = path / "metrics.csv" if path.is_dir() else path
    if not metrics.is_file():
        raise DataError(f"{metrics} does not exist; name a run's folder or metrics CSV (train.py --csv-log writes it)")
    evaluation = metrics.with_name(f"{metrics.stem}_eval{metrics.suffix}")
    empty: Columns = {name: [] for name in EVAL_COLUMNS}
    return RunMetrics(
        train=read_columns(metrics, TRAIN_COLUMNS),
        evaluation=read_columns(evaluation, EVAL_COLUMNS) if evaluation.is_file() else empty,
    )


def read_columns(path: Path, expected: Sequence[str]) -> Columns:
    """Columns of a metrics CSV as floats; an empty cell (a part without data) is NaN.

    A last line without its line end is left out: training may be writing it now.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    if not rows or rows[0] != list(expected):
        found = ",".join(rows[0]) if rows else "nothing"
        raise DataError(f"{path} begins with {found!r}; a metrics file begins with {','.join(expected)!r}")
    columns: Columns = {name: [] for name in expected}
    for number, row in enumerate(rows[1:], start=2):
        try:
            values = [float(cell) if cell else math.nan for cell in row]
            for name, value in zip(expected, values, strict=True):
                columns[name].append(value)
        except ValueError:
            wanted = f"{len(expected)} numbers"
            raise DataError(f"{path}, line {number}: {','.join(row)!r} where {wanted} were expected") from None
    return columns


def name_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """A short name for each run: the last parts of its path, as many as tell the runs apart.

    The same run given twice is drawn once.
    """
    paths = list(dict.fromkeys(paths))
    for parts in range(1, max(len(path.resolve().parts) for path in paths) + 1):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, paths, strict=True))


def draw_curves(runs: Mapping[str, RunMetrics]) -> Figure:
    """Loss, learning rate and, where any run has it, evaluation loss and accuracy; one colour a run."""
    from matplotlib.figure import Figure

    evaluated = any(metrics.evaluation["epoch"] for metrics in runs.values())
    panels = 4 if evaluated else 2
    figure = Figure(figsize=(11, 7 if evaluated else 3.8), facecolor="white", layout="constrained")
    axes = figure.subplots(panels // 2, 2, squeeze=False).ravel()
    plain_axes(axes[0], "Training loss", "epoch", "mean loss")
    plain_axes(axes[1], "Learning rate", "epoch", "at the end of the epoch")
    looks = zip(_colors(len(runs)), _widths(len(runs)), strict=True)
    for (name, metrics), (color, width) in zip(runs.items(), looks, strict=True):
        _line(axes[0], metrics.train, "loss", color, "-", width, shorten(printable(name), 48))
        _line(axes[1], metrics.train, "learning_rate", color, "-", width)
    if evaluated:
        _draw_evaluation(axes[2], axes[3], runs)
    if len(runs) > 1:
        handles, names = axes[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a run's name may hold $
    return figure


def _draw_evaluation(loss_axes: Axes, accuracy_axes: Axes, runs: Mapping[str, RunMetrics]) -> None:
    """The linear classifier's loss and accuracy; line styles tell train, val and test apart."""
    plain_axes(loss_axes, "Linear evaluation: loss", "epoch", "cross-entropy")
    plain_axes(accuracy_axes, "Linear evaluation: accuracy", "epoch", "accuracy")
    shown = set()
    looks = zip(_colors(len(runs)), _widths(len(runs)), strict=True)
    for metrics, (color, width) in zip(runs.values(), looks, strict=True):
        for part, style in PART_STYLES.items():
            if _line(loss_axes, metrics.evaluation, f"{part}_loss", color, style, width):
                shown.add(part)
            if _line(accuracy_axes, metrics.evaluation, f"{part}_acc", color, style, width):
                shown.add(part)
    for part in (part for part in PART_STYLES if part in shown):
        accuracy_axes.plot([], [], color="#666666", linestyle=PART_STYLES[part], label=part)
    accuracy_axes.legend(frameon=False, loc="best")


def _line(
    axes: Axes, columns: Columns, name: str, color: str, style: str, width: float, label: str | None = None
) -> bool:
    """Draw one column over its epochs; False if it has no value."""
    from matplotlib.ticker import MaxNLocator

    points = [(x, y) for x, y in zip(columns["epoch"], columns[name], strict=True) if math.isfinite(y)]
    marker = "o" if len(points) <= FEW else None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, color=color, linestyle=style, marker=marker, markersize=1.9 + width, linewidth=width, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return bool(points)


def _widths(count: int) -> list[float]:
    """Line widths in points, the first run's the broadest: of runs with equal curves each still shows."""
    return [THIN + (BROAD - THIN) * (count - 1 - number) / max(count - 1, 1) for number in range(count)]


def _colors(count: int) -> list[str]:
    """One colour a run; of more runs than the palette tells apart, shades from dark to light in their order."""
    import matplotlib
    from matplotlib.colors import to_hex

    if count <= len(PALETTE):
        return list(PALETTE[:count])
    shades = matplotlib.colormaps["viridis"]
    return [to_hex(shades(0.95 * number / (count - 1))) for number in range(count)]
