"""Is it time that teaches? Five arms on COIL-20 and on the demo's clips, three seeds each, the same number of steps.

``python -m benchmarks.time_teaches [--quick] [--resume] [--data FOLDER]``. What differs between arms is what makes the
five views of a window, nothing else:

- untrained: the weights that every arm of the seed starts from;
- one frame, augmented: one frame five times (``--frame-step 0``), each with its own crop, flip, colour and blur
  (``--augment simclr``);
- time: five frames that follow each other, as they are;
- time, augmented: five frames that follow each other, each augmented;
- shuffled time: five frames of the clip from anywhere in it (``--shuffle-frames``), as they are.

Nearest neighbour by cosine of the frozen encoder's features, one and four labelled images per class, mean of ten draws.
COIL-20: labelled views of the clips that were trained on, all other views to be named. Demo: labels from the training
clips, frames of the test clips to be named. ResNet-18 on the CPU, Adam 1e-3 (:mod:`benchmarks.arms`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import harness
from benchmarks.arms import COIL, DEMO, TIME, UNTRAINED, Row, Study, parse, run_study
from cltt import cli

STUDY = Study(
    name="time_teaches",
    arms={
        UNTRAINED: {},
        "one frame, augmented": {"windows": {"frame_step": 0}, "data": {"augment": "simclr"}},
        TIME: {},
        "time, augmented": {"data": {"augment": "simclr"}},
        "shuffled time": {"data": {"shuffle_frames": True}},
    },
    measures=("one_shot", "four_shot"),
    epochs={COIL: 2, DEMO: 2},
)
COLOURS = ("#999999", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7")


def main() -> int:
    args = parse("time_teaches", "Five arms on COIL-20 and the demo's clips: is it time that teaches?")
    rows = run_study(STUDY, args)
    draw(rows, harness.RESULTS / f"time_teaches{'_quick' if args.quick else ''}.png")
    return 0


def draw(rows: list[Row], path: Path) -> None:
    """One panel a data set: a bar an arm, the mean over seeds, and a dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    for axes, data in zip(figure.subplots(1, 2, sharey=True), STUDY.epochs, strict=True):
        for place, (arm, colour) in enumerate(zip(STUDY.arms, COLOURS, strict=True)):
            seeds = [100 * row["one_shot"] for row in rows if (row["data"], row["arm"]) == (data, arm)]
            if seeds:
                bar = axes.bar(place, sum(seeds) / len(seeds), 0.8, color=colour)
                axes.bar_label(bar, fmt="%.0f", label_type="center", color="white", fontweight="bold")
                axes.plot([place] * len(seeds), seeds, "o", color="black", markersize=3)
        axes.set_xticks(range(len(STUDY.arms)), ["\n".join(arm.rsplit(" ", 1)) for arm in STUDY.arms], fontsize=8)
        axes.set_ylim(0, 105)
        axes.set_title(f"{data}, {STUDY.epochs[data]} epochs", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("named right by one labelled image a class, %", fontsize=9)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.time_teaches"))
