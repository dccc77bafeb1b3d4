"""The demo's pictures: a sample of what the network sees, and what it learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cltt.config import OrderSettings, TrainSettings, values_of
from cltt.sampling.epoch_plan import EpochPlan
from cltt.shards.dataset import ShardDataset
from cltt.training import factory
from cltt.visualize.views import view_windows
from cltt.visualize.windows import draw_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#E69F00", "#CC79A7", "#999999", "#0072B2")


def draw_sample(shards: Path, training: TrainSettings) -> Figure:
    """The first windows of the first training batch, at the size that the network sees."""
    dataset = ShardDataset(shards)
    index = factory.build_index(dataset, training)
    plan = EpochPlan(index, **values_of(training.data, OrderSettings), seed=training.run.seed)
    view = view_windows(dataset, plan, plan.batch(0)[:6], image_size=training.data.image_size)
    return draw_windows(view, "windows of the first training batch")


def draw_accuracy(results: Mapping[str, Mapping[str, float]], chance: float) -> Figure:
    """Bars of every measure's accuracy (0..1), one colour for each of up to four kinds of features."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    measures = list(next(iter(results.values())))
    width = 0.8 / len(results)
    for number, (name, accuracy) in enumerate(results.items()):
        places = np.arange(len(measures)) + (number - (len(results) - 1) / 2) * width
        heights = [100 * accuracy[measure] for measure in measures]
        bars = axes.bar(places, heights, 0.95 * width, label=name, color=COLOURS[number])
        axes.bar_label(bars, fmt="%.0f%%", padding=2)
    axes.axhline(100 * chance, color="#D55E00", linewidth=1, linestyle="--", label=f"chance ({100 * chance:.3g}%)")
    axes.set_xticks(range(len(measures)), measures)
    axes.set_ylim(0, 105)
    axes.set_ylabel("test frames named right, %")
    axes.set_title("Which solid? Clips, backgrounds and light not seen in training", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    return figure
