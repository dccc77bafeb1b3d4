"""Short runs that differ in a few settings ("arms"), on COIL-20 and the demo's clips.

All arms of a seed start from the same weights and make the same number of steps. A run is written down as soon as it is
done; with ``--resume`` those in the CSV file are kept.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import coil20, harness, report
from cltt import ShardDataset, build_shards
from cltt.config import TrainSettings, WindowSettings
from cltt.demo import pipeline as demo
from cltt.demo.settings import DemoSettings
from cltt.errors import SettingsError
from cltt.evaluation.probe import few_shot_accuracies, fit_linear_probe
from cltt.evaluation.protocols.abx import AbxEvaluator
from cltt.training.factory import build_index, build_model, load_weights
from cltt.training.run import train
from tests.helpers.data import SHARED

COIL, DEMO = "COIL-20", "demo"
COIL_SIZE = 32  # as its views are stored
TIME, UNTRAINED = "time", "untrained"
ABX_STEP = "abx_step_"
KEY = ("data", "arm", "seed")
Arms = dict[str, dict[str, dict[str, Any]]]
Measure = Callable[[nn.Module], dict[str, float]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Which runs are made.

    Attributes:
        name: of the CSV file in ``results``.
        arms: the settings that each arm changes, by group; UNTRAINED is the encoder that all start from.
        measures: columns of the CSV file: of ``one_shot``, ``four_shot``, ``probe``, ``abx_across`` on the run's own
            windows, ``abx_across_before``, that of the untrained encoder, and ``abx_step_S``, on windows of two frames
            S apart, whatever the run's.
        epochs: of the arm TIME, by data set.
        backbone: the encoder.
        batch_size: windows per step.
        seeds: each arm is run with.
    """

    name: str
    arms: Arms
    measures: tuple[str, ...]
    epochs: dict[str, int]
    backbone: str = "resnet18"
    batch_size: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)


def run_study(study: Study, args: Namespace) -> list[Row]:
    """Make the runs that are missing -> the rows of all; ``args`` as :func:`parse` gives them."""
    if not args.data.is_dir():
        raise SettingsError(f"no folder {args.data}; give COIL-20's views, one folder an object, with --data")
    if args.quick:
        study = replace(study, name=f"{study.name}_quick", seeds=study.seeds[:1])
    rows = rows_there(study) if args.resume else []
    for data in study.epochs:
        for seed in study.seeds:
            rows = run_seed(study, data, seed, rows, args.data)
    harness.print_table(mean_rows(study, rows), "Share named right, mean over seeds")
    return rows


def parse(name: str, description: str) -> Namespace:
    """The command line of a study."""
    parser = harness.parser(name, description)
    parser.add_argument("--data", type=Path, default=SHARED / "coil20", help="COIL-20, one folder of views an object")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the CSV file holds")
    return parser.parse_args()


def run_seed(study: Study, data: str, seed: int, rows: list[Row], coil: Path) -> list[Row]:
    """All arms of one seed that ``rows`` lack -> ``rows`` with them; written down one by one."""
    missing = [arm for arm in study.arms if not any(tuple(row[c] for c in KEY) == (data, arm, seed) for row in rows)]
    if missing:
        with tempfile.TemporaryDirectory(prefix="arms-") as name:
            folder, epochs = Path(name), study.epochs[data]
            settings, measure = (
                demo_case(folder, seed, epochs) if data == DEMO else coil_case(coil, folder, seed, epochs)
            )
            settings = replace(
                settings,
                model=replace(settings.model, backbone=study.backbone),
                data=replace(settings.data, batch_size=study.batch_size),
            )
            for arm in missing:
                found = run_arm(study, arm, settings, folder, measure)
                row = {"data": data, "arm": arm, "seed": seed, "steps": found["steps"]}
                rows = [*rows, {**row, **{column: found[column] for column in study.measures}}]
                harness.print_table(rows[-1:])
                harness.write_csv(study.name, [*rows, *mean_rows(study, rows)])
    return rows


def coil_case(data: Path, folder: Path, seed: int, epochs: int) -> tuple[TrainSettings, Measure]:
    """Settings of the arm TIME on COIL-20 in ``folder``, and how an encoder is judged: by all views without a label."""
    build_shards(data, folder / "shards")
    settings = coil20.run_settings(folder / "shards", folder / "run", seed, epochs)
    settings = replace(settings, data=replace(settings.data, image_size=COIL_SIZE))

    def measure(encoder: nn.Module) -> dict[str, float]:
        features, labels = coil20.features_of(encoder, data, COIL_SIZE)
        nearest = {
            f"{name}_shot": float(few_shot_accuracies(features, labels, k).mean())
            for name, k in (("one", 1), ("four", 4))
        }
        return {**nearest, "probe": few_label_probe(features, labels)}

    return settings, measure


def few_label_probe(features: torch.Tensor, labels: torch.Tensor, shots: int = 4, draws: int = 10) -> float:
    """Accuracy of a linear probe fitted on ``shots`` rows per class, on all others; mean over draws."""
    accuracies = []
    for draw in range(draws):
        order = torch.from_numpy(np.random.default_rng(draw).permutation(len(labels)))
        drawn = torch.cat([order[labels[order] == label][:shots] for label in labels.unique()])
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[drawn] = False
        probe = fit_linear_probe(features[drawn], labels[drawn], int(labels.max()) + 1)
        accuracies.append(probe.score(features[rest], labels[rest]).top1)
    return float(np.mean(accuracies))


def demo_case(folder: Path, seed: int, epochs: int) -> tuple[TrainSettings, Measure]:
    """The same on the demo's clips: labels from the training clips, frames of the test clips to be named."""
    asked = DemoSettings(out=str(folder), seed=seed, epochs=epochs, device="cpu")
    settings = demo.train_settings(asked, demo.build(asked))

    def measure(encoder: nn.Module) -> dict[str, float]:
        found = demo.build_evaluator(settings)(encoder)
        return {"one_shot": found.nearest["1"], "four_shot": found.nearest["4"], "probe": found.accuracy["test"]}

    return settings, measure


def run_arm(study: Study, arm: str, settings: TrainSettings, folder: Path, measure: Measure) -> Row:
    """Train (unless the arm is UNTRAINED) with what the arm changes in ``settings``, and evaluate."""
    torch.manual_seed(settings.run.seed)
    model = build_model(settings.model)  # the weights that training starts from
    if arm == UNTRAINED:
        return {"steps": 0, **measure(model.encoder)}
    asked = replace(
        settings,
        checkpoint=replace(settings.checkpoint, checkpoint_dir=str(folder / arm)),
        log=replace(settings.log, csv_log_path=None),
    )
    changes = {group: replace(getattr(asked, group), **values) for group, values in study.arms[arm].items()}
    asked = with_steps(replace(asked, **changes), settings.optim.epochs * steps_of(settings))
    before = abx_of(model.encoder, asked, asked.windows) if "abx_across" in study.measures else 0.0
    if train(asked) != 0:
        raise KeyboardInterrupt  # asked to stop; --resume goes on
    load_weights(model, asked.run_dir)
    steps = [int(name.removeprefix(ABX_STEP)) for name in study.measures if name.startswith(ABX_STEP)]
    common = {step: WindowSettings(window_size=2, frame_step=step) for step in steps}
    return {
        "steps": asked.optim.epochs * asked.optim.max_batches_per_epoch,
        **measure(model.encoder),
        "abx_across": abx_of(model.encoder, asked, asked.windows) if before else 0.0,
        "abx_across_before": before,
        **{f"{ABX_STEP}{step}": abx_of(model.encoder, asked, windows) for step, windows in common.items()},
    }


def abx_of(encoder: nn.Module, settings: TrainSettings, windows: WindowSettings) -> float:
    """ABX across clips that the run is not trained on; across all where it is trained on all."""
    assert settings.data.shards is not None
    dataset = ShardDataset(settings.data.shards)
    _, trained = dataset.training_clips(settings.data.split, settings.data.clips)
    evaluator = AbxEvaluator(
        dataset,
        trained if len(trained) < dataset.num_clips else np.empty(0, np.int64),
        windows,
        image_size=settings.data.image_size,
        device=torch.device("cpu"),
        normalise=settings.data.normalise,
    )
    return evaluator(encoder).abx_across or 0.0


def with_steps(settings: TrainSettings, steps: int) -> TrainSettings:
    """``settings`` that make ``steps`` steps (or a few less) in equal epochs, in more of them if windows are few."""
    epochs = max(settings.optim.epochs, -(-steps // steps_of(settings)))
    return replace(settings, optim=replace(settings.optim, epochs=epochs, max_batches_per_epoch=steps // epochs))


def steps_of(settings: TrainSettings) -> int:
    """Batches of an epoch."""
    assert settings.data.shards is not None
    return len(build_index(ShardDataset(settings.data.shards), settings)) // settings.data.batch_size


def rows_there(study: Study) -> list[Row]:
    """Runs that the CSV file holds already, without the columns about the machine."""
    return [
        {
            "data": row["data"],
            "arm": row["arm"],
            "seed": int(row["seed"]),
            "steps": int(row["steps"]),
            **{column: float(row[column]) for column in study.measures},
        }
        for row in report.read_rows(study.name)
        if row["seed"] != "mean"
    ]


def mean_rows(study: Study, rows: list[Row]) -> list[Row]:
    """The mean over seeds of every arm, with the worst and the best seed's accuracies."""
    means = []
    for data, arm in dict.fromkeys((row["data"], row["arm"]) for row in rows):
        own = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
        columns = {}
        for column in study.measures:
            values = [row[column] for row in own]
            columns |= {
                column: sum(values) / len(values),
                f"{column}_min": min(values),
                f"{column}_max": max(values),
            }
        means.append({"data": data, "arm": arm, "seed": "mean", "seeds": len(own), "steps": own[0]["steps"], **columns})
    return means
