"""Is it time that teaches? Five arms on COIL-20 and on the demo's clips, three seeds each, the same number of steps.

``python -m benchmarks.time_teaches [--quick] [--resume] [--data FOLDER]``. What differs between arms is what makes the
five views of a window, nothing else:

- untrained: the weights that every arm of the seed starts from;
- one frame, augmented: one frame five times (``--frame-step 0``), each with its own crop, flip, colour and blur
  (``--augment simclr``);
- time: five frames that follow each other, as they are;
- time, augmented: five frames that follow each other, each augmented;
- shuffled time: five frames of the clip from anywhere in it (``--shuffle-frames``), as they are.

Nearest neighbour by cosine of the frozen encoder's features, one and four labelled images a class, mean of ten draws.
COIL-20: labelled views of the clips that were trained on, all other views to be named. Demo: labels from the training
clips, frames of the test clips to be named. ResNet-18 on the CPU, Adam 1e-3. A run is written down as soon as it is
done; with ``--resume`` those in ``results/time_teaches.csv`` are kept.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import coil20, harness, report
from cltt import ShardDataset, build_shards, cli
from cltt.config import TrainSettings
from cltt.demo import __main__ as demo
from cltt.errors import SettingsError
from cltt.training.factory import build_index, build_model, load_weights
from cltt.training.run import train
from tests.helpers.data import SHARED

SEEDS = (0, 1, 2)
EPOCHS = {"COIL-20": 2, "demo": 2}
COIL_SIZE = 32  # as its views are stored
UNTRAINED = "untrained"
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    UNTRAINED: {},
    "one frame, augmented": {"windows": {"frame_step": 0}, "data": {"augment": "simclr"}},
    "time": {},
    "time, augmented": {"data": {"augment": "simclr"}},
    "shuffled time": {"data": {"shuffle_frames": True}},
}
COLOURS = ("#999999", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7")
KEY, ACCURACIES = ("data", "arm", "seed"), ("one_shot", "four_shot")
Accuracies = Callable[[nn.Module], dict[str, float]]
Row = dict[str, Any]


def coil_case(data: Path, folder: Path, seed: int) -> tuple[TrainSettings, Accuracies]:
    """Settings of the arm "time" on COIL-20 in ``folder``, and how an encoder is judged."""
    build_shards(data, folder / "shards")
    settings = coil20.run_settings(folder / "shards", folder / "run", seed, EPOCHS["COIL-20"])
    settings = replace(settings, data=replace(settings.data, image_size=COIL_SIZE))

    def accuracies(encoder: nn.Module) -> dict[str, float]:
        found = coil20.few_view_accuracy(encoder, data, COIL_SIZE)
        return {"one_shot": found["1_view"], "four_shot": found["4_view"]}

    return settings, accuracies


def demo_case(folder: Path, seed: int) -> tuple[TrainSettings, Accuracies]:
    """The same on the demo's clips."""
    asked = demo.DemoSettings(out=str(folder), seed=seed, epochs=EPOCHS["demo"], device="cpu")
    settings = demo.train_settings(asked, demo.build(asked))

    def accuracies(encoder: nn.Module) -> dict[str, float]:
        nearest = demo.build_evaluator(settings)(encoder).nearest
        return {"one_shot": nearest["1"], "four_shot": nearest["4"]}

    return settings, accuracies


def steps_of(settings: TrainSettings) -> int:
    """Batches of an epoch of the arm "time"; every arm makes as many steps."""
    assert settings.data.shards is not None
    return len(build_index(ShardDataset(settings.data.shards), settings)) // settings.data.batch_size


def in_arm(settings: TrainSettings, arm: str, steps: int, run_dir: Path) -> TrainSettings:
    """``settings`` with what the arm changes, in a run of its own."""
    changed = {group: replace(getattr(settings, group), **values) for group, values in ARMS[arm].items()}
    return replace(
        settings,
        optim=replace(settings.optim, max_batches_per_epoch=steps),
        checkpoint=replace(settings.checkpoint, checkpoint_dir=str(run_dir)),
        log=replace(settings.log, csv_log_path=None),
        **changed,
    )


def run_arm(arm: str, settings: TrainSettings, folder: Path, accuracies: Accuracies) -> Row:
    """Train (unless the arm is that of the untrained encoder) and evaluate."""
    torch.manual_seed(settings.run.seed)
    model = build_model(settings.model)  # the weights that training starts from
    steps = 0 if arm == UNTRAINED else steps_of(settings)
    if steps:
        asked = in_arm(settings, arm, steps, folder / arm)
        if train(asked) != 0:
            raise KeyboardInterrupt  # asked to stop; --resume goes on
        load_weights(model, asked.run_dir)
    return {"steps": steps * settings.optim.epochs, **accuracies(model.encoder)}


def rows_there(name: str) -> list[Row]:
    """Runs that ``results/NAME.csv`` holds already, without the columns about the machine."""
    rows = [row for row in report.read_rows(name) if row["seed"] != "mean"]
    return [
        {
            **{column: row[column] for column in ("data", "arm")},
            "seed": int(row["seed"]),
            "steps": int(row["steps"]),
            **{column: float(row[column]) for column in ACCURACIES},
        }
        for row in rows
    ]


def mean_rows(rows: list[Row]) -> list[Row]:
    """The mean over seeds of every arm, with the worst and the best seed's one-shot accuracy."""
    means = []
    for data, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
        mean = {column: sum(row[column] for row in own) / len(own) for column in ACCURACIES}
        spread = {
            f"one_shot_{name}": pick(row["one_shot"] for row in own) for name, pick in (("min", min), ("max", max))
        }
        means.append(
            {"data": data, "arm": arm, "seed": "mean", "seeds": len(own), "steps": own[0]["steps"], **mean, **spread}
        )
    return means


def draw(rows: list[Row], path: Path) -> None:
    """One panel a data set: a bar an arm, the mean over seeds, and a dot a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=120, layout="constrained")
    for axes, data in zip(figure.subplots(1, 2, sharey=True), EPOCHS, strict=True):
        for place, (arm, colour) in enumerate(zip(ARMS, COLOURS, strict=True)):
            seeds = [100 * row["one_shot"] for row in rows if (row["data"], row["arm"]) == (data, arm)]
            if seeds:
                bar = axes.bar(place, sum(seeds) / len(seeds), 0.8, color=colour)
                axes.bar_label(bar, fmt="%.0f", label_type="center", color="white", fontweight="bold")
                axes.plot([place] * len(seeds), seeds, "o", color="black", markersize=3)
        axes.set_xticks(range(len(ARMS)), ["\n".join(arm.rsplit(" ", 1)) for arm in ARMS], fontsize=8)
        axes.set_ylim(0, 105)
        axes.set_title(f"{data}, {EPOCHS[data]} epochs", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supylabel("named right by one labelled image a class, %", fontsize=9)
    figure.savefig(path)


def main() -> int:
    parser = harness.parser("time_teaches", "Five arms on COIL-20 and the demo's clips: is it time that teaches?")
    parser.add_argument("--data", type=Path, default=SHARED / "coil20", help="COIL-20, one folder of views an object")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the CSV file holds")
    args = parser.parse_args()
    if not args.data.is_dir():
        raise SettingsError(f"no folder {args.data}; give COIL-20's views, one folder an object, with --data")
    name = "time_teaches_quick" if args.quick else "time_teaches"
    rows = rows_there(name) if args.resume else []
    for data in EPOCHS:
        for seed in SEEDS[:1] if args.quick else SEEDS:
            rows = run_seed(data, seed, rows, name, args.data)
    harness.print_table(mean_rows(rows), "Named right by one and by four labelled images a class, mean over seeds")
    draw(rows, harness.RESULTS / f"{name}.png")
    return 0


def run_seed(data: str, seed: int, rows: list[Row], name: str, coil: Path) -> list[Row]:
    """All arms of one seed that ``rows`` lack -> ``rows`` with them; written down one by one."""
    missing = [arm for arm in ARMS if not any(tuple(row[c] for c in KEY) == (data, arm, seed) for row in rows)]
    if missing:
        with tempfile.TemporaryDirectory(prefix="time-teaches-") as folder:
            settings, accuracies = (
                demo_case(Path(folder), seed) if data == "demo" else coil_case(coil, Path(folder), seed)
            )
            for arm in missing:
                row = {"data": data, "arm": arm, "seed": seed}
                rows = [*rows, {**row, **run_arm(arm, settings, Path(folder), accuracies)}]
                harness.print_table(rows[-1:])
                harness.write_csv(name, [*rows, *mean_rows(rows)])
    return rows


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.time_teaches"))
