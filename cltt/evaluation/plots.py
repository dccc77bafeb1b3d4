"""Accuracies of a run's checkpoints as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_STYLES = {"train": (":", "v"), "val": ("--", "s"), "test": ("-", "o")}
COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, told apart by colour-blind readers
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"


def draw_accuracies(rows: list[dict[str, Any]]) -> Figure:
    """Accuracies over checkpoints, from the rows of ``evaluation.csv``; of equal curves each still shows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), facecolor="white", layout="constrained")
    probe, nearest = figure.subplots(1, 2)
    for number, (part, (style, marker)) in enumerate(PART_STYLES.items()):
        _draw(
            probe, rows, f"{part}_acc", part, linestyle=style, marker=marker, color=COLORS[number], linewidth=3 - number
        )
    shots = [name for name in rows[0] if name.startswith("nn_")]
    for number, (name, color) in enumerate(zip(shots, COLORS, strict=False)):
        label = f"{name.removeprefix('nn_')} labelled a class"
        _draw(nearest, rows, name, label, linestyle="-", marker="osv"[number], color=color, linewidth=3 - number)
    _dress(probe, "Linear probe", rows)
    _dress(nearest, "Nearest neighbour", rows)
    return figure


def _draw(axes: Axes, rows: list[dict[str, Any]], name: str, label: str, **look: Any) -> None:
    if name in rows[0]:
        axes.plot(
            range(len(rows)), [row[name] for row in rows], label=label, markersize=2 + 2 * look["linewidth"], **look
        )


def _dress(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """Title, axes named, no more lines than needed; at most ten checkpoints named."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    labels = [f"{row['epoch']}" + (f"+{row['step']}" if row["step"] else "") for row in rows]
    every = -(-len(rows) // 10)
    axes.set_xticks(range(0, len(rows), every), labels[::every])
    axes.set_xlabel("epoch", color=GREY)
    axes.set_ylabel("accuracy", color=GREY)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    if axes.lines:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
