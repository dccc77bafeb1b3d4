"""The whole road in a few minutes, without data: rendered clips -> shards -> trained encoder -> curves.

The same command again keeps what is there and finishes what was interrupted; ``--fresh`` starts anew. Training and test
clips show the same solids before different backgrounds, in different light and at different distances.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from cltt import distributed
from cltt.checkpoint import SETTINGS_FILE
from cltt.config import (
    CheckpointSettings,
    DataSettings,
    LogSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    TrainSettings,
    differences,
)
from cltt.demo.baselines import ColourHistogram, RawPixels
from cltt.demo.figures import draw_accuracy, draw_sample
from cltt.demo.render import SOLIDS, write_clip
from cltt.demo.settings import RENDERED_SIZE, WINDOWS, DemoSettings
from cltt.errors import SettingsError
from cltt.evaluation.datasets import open_labelled
from cltt.evaluation.evaluator import Evaluator
from cltt.files import atomic
from cltt.files.regular import is_regular
from cltt.packing.builder import build_shards
from cltt.text import changes
from cltt.training import factory
from cltt.training.records import COMPLETE_FILE
from cltt.training.run import train
from cltt.visualize.curves import plot_run
from cltt.visualize.figures import save_figure

CLIPS_PER_OBJECT = 12
SPLITS = "train=0.75,test=0.25"
SPLIT_SEED = 60  # every object has two to four of its twelve clips in the test part (a test counts them)
EVALUATED = slice(None, None, 4)  # frames that the evaluation looks at: neighbours tell it nothing new
ONE_SHOT, PROBE = "one-shot nearest neighbour", "linear probe"
BASELINES, BEFORE, AFTER = ("colour histogram", "raw pixels"), "before training", "after training"

STAMP = "rendered.json"  # in --out: what the clips were rendered with
MADE = ("clips", "shards", "run")  # folders in --out
PICTURES = ("windows.png", "loss.png", "accuracy.png")  # files in --out
RESULTS = "accuracy.json"  # in --out: the settings, and the accuracies that the demo prints
# CPU time of the settings below: benchmarks/results/demo.csv, 124 to 132 s on two cores of an AMD EPYC
TIME = "this takes one to three minutes on two CPU cores; Ctrl-C stops it, and the same command goes on"
Accuracy = dict[str, float]


def run_demo(settings: DemoSettings, prog: str = "python -m cltt.demo") -> dict[str, Accuracy]:
    """Render, build, train, evaluate, draw -> test accuracy of BASELINES, and BEFORE and AFTER training.

    What is there already is kept; of a demo that is complete the results are read. SystemExit, with the training's
    status, if training was asked to stop.
    """
    out = Path(settings.out)
    if settings.fresh:
        remove_demo(out)
    if not (out / "run" / COMPLETE_FILE).exists():
        print(TIME, flush=True)
    shards = build(settings)
    training = train_settings(settings, shards)
    _check_run(training)
    if (finished := _finished(training)) is not None:
        print("everything is there already; --fresh makes it anew", flush=True)
        return finished
    save_figure(draw_sample(shards, training), out / "windows.png")
    results = {**evaluate_baselines(training), BEFORE: evaluate(untrained_encoder(training), training)}
    for name, accuracy in results.items():
        print(f"{name}: {accuracy_text(accuracy)}", flush=True)
    if (status := train(training, prog=prog)) != 0:
        raise SystemExit(status)  # training has said how to go on
    results[AFTER] = evaluate(trained_encoder(training), training)
    plot_run(training.run_dir, out / "loss.png")
    save_figure(draw_accuracy(results, chance=1 / settings.objects), out / "accuracy.png")
    (out / RESULTS).write_text(json.dumps({"settings": asdict(settings), **results}, indent=1) + "\n")
    return results


def build(settings: DemoSettings) -> Path:
    """Render the clips and build labelled shards of them -> their folder; what is there stays."""
    clips, shards = render_clips(settings), Path(settings.out) / "shards"
    report = build_shards(clips, shards, splits=SPLITS, split_seed=SPLIT_SEED, label_from="parent")
    print(f"{report.clips} clips, {report.frames} frames in {report.path}", flush=True)
    return report.path


def render_clips(settings: DemoSettings) -> Path:
    """Make ``out/clips/obj03/clip_02/frame_000000.jpg ...``; clips that are there stay.

    SettingsError if ``out`` holds clips of another seed, number of objects or length, or folders of no demo.
    """
    out = Path(settings.out)
    stamp = out / STAMP
    asked = {name: getattr(settings, name) for name in ("seed", "objects", "frames")}
    asked |= {"size": RENDERED_SIZE, "clips": CLIPS_PER_OBJECT, "splits": SPLITS, "split_seed": SPLIT_SEED}
    if (rendered := _rendered(stamp)) != asked:
        if made := _made(out):
            words = "; ".join(changes(rendered, asked)) if isinstance(rendered, dict) else f"{STAMP} cannot be read"
            raise _other_demo(made[0], words)
        if not os.path.lexists(stamp) and out.is_dir() and any(out.iterdir()):
            raise SettingsError(f"{out} holds files that are not of a demo; give another --out")
        out.mkdir(parents=True, exist_ok=True)
        atomic.replace_file(stamp, json.dumps(asked).encode())
    names = [(number, clip) for number in range(settings.objects) for clip in range(CLIPS_PER_OBJECT)]
    for number, clip in tqdm(names, desc="render", unit="clip", disable=None):
        folder = out / "clips" / f"obj{number:02d}" / f"clip_{clip:02d}"
        if not folder.is_dir():
            rng = np.random.default_rng([settings.seed, number, clip])
            length = int(rng.integers(settings.shortest, 2 * settings.frames - settings.shortest + 1))
            write_clip(folder, SOLIDS[number], length, RENDERED_SIZE, rng)
    return out / "clips"


def _rendered(stamp: Path) -> object:
    """What the clips there were rendered with; None if that cannot be told."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _made(out: Path) -> list[Path]:
    """The folders of an earlier demo in ``out``; SettingsError if one is there that is not a demo's."""
    there = [out / name for name in MADE if os.path.lexists(out / name)]
    for folder in there:
        if not is_regular(out / STAMP) or folder.is_symlink() or not folder.is_dir():
            raise SettingsError(f"{folder} is there and not of a demo, so it is left alone; give another --out")
    return there


def remove_demo(out: Path) -> None:
    """Delete the folders of an earlier demo; SettingsError, with nothing deleted, if they are not all of one."""
    for folder in _made(out):
        shutil.rmtree(folder)


def _check_run(training: TrainSettings) -> None:
    """SettingsError if the run that is there was begun with other settings."""
    try:
        saved = json.loads((training.run_dir / SETTINGS_FILE).read_bytes())
    except (OSError, ValueError):  # none is there, or training says what is wrong with it
        return
    if differ := differences(saved, training.to_dict()):
        raise _other_demo(training.run_dir, "; ".join(differ))


def _finished(training: TrainSettings) -> dict[str, Accuracy] | None:
    """The results of an earlier demo that is complete, pictures and all; None if there is none."""
    complete, out = training.run_dir / COMPLETE_FILE, training.run_dir.parent
    results = out / RESULTS
    if not all(is_regular(path) for path in (complete, results, *(out / name for name in PICTURES))):
        return None
    if results.stat().st_mtime_ns < complete.stat().st_mtime_ns:  # those of an earlier run
        return None
    try:
        found = json.loads(results.read_bytes())
        return {name: dict(found[name]) for name in (*BASELINES, BEFORE, AFTER)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _other_demo(folder: Path, differ: str) -> SettingsError:
    return SettingsError(
        f"{folder} is of a demo with other settings ({differ}); give --fresh to remove it and start anew, "
        "or another --out"
    )


def train_settings(settings: DemoSettings, shards: Path) -> TrainSettings:
    """The settings of the training run, as ``train.py`` would make them from its flags."""
    out = Path(settings.out)
    return TrainSettings(
        windows=WINDOWS,
        data=DataSettings(shards=str(shards), batch_size=settings.batch_size, image_size=settings.image_size),
        model=ModelSettings(backbone="resnet18", temperature=0.2),
        optim=OptimSettings(epochs=settings.epochs),
        run=RunSettings(seed=settings.seed, device=settings.device),
        checkpoint=CheckpointSettings(checkpoint_dir=str(out / "run"), keep_last=1, resume=True),
        log=LogSettings(csv_log=True, csv_log_path=str(out / "metrics.csv")),
    )


def untrained_encoder(training: TrainSettings) -> nn.Module:
    """The encoder with the weights that training starts from."""
    torch.manual_seed(training.run.seed)
    return factory.build_model(training.model, training.data.image_size).encoder


def trained_encoder(training: TrainSettings) -> nn.Module:
    """The encoder of the run's last checkpoint."""
    model = factory.build_model(training.model, training.data.image_size)
    factory.load_weights(model, training.run_dir)
    return model.encoder


def evaluate(encoder: nn.Module, training: TrainSettings, normalise: str = "imagenet") -> Accuracy:
    """Accuracy (0..1) on the test clips: labels of one training frame an object, and of all training frames."""
    evaluator = build_evaluator(training, normalise)
    result = evaluator(encoder.to(evaluator.device))
    return {ONE_SHOT: result.nearest["1"], PROBE: result.accuracy["test"]}


def build_evaluator(training: TrainSettings, normalise: str = "imagenet") -> Evaluator:
    """Of every fourth frame, labels from the training clips, asked of the test clips."""
    assert training.data.shards is not None
    data = open_labelled(training.data.shards)
    parts = {name: images.take(EVALUATED) for name, images in data.parts.items()}
    device = distributed.pick_device(training.run.device, distributed.RankInfo())
    size = training.data.image_size
    return Evaluator(replace(data, parts=parts), image_size=size, device=device, normalise=normalise)


def evaluate_baselines(training: TrainSettings) -> dict[str, Accuracy]:
    """What can be told without learning; of the histograms of frame and centre the better one by each measure."""
    on_cpu = replace(training, run=replace(training.run, device="cpu"))
    whole, centre = (evaluate(ColourHistogram(centre=centre), on_cpu, "none") for centre in (False, True))
    histogram = {measure: max(whole[measure], centre[measure]) for measure in whole}
    return dict(zip(BASELINES, (histogram, evaluate(RawPixels(), on_cpu, "none")), strict=True))


def accuracy_text(accuracy: Accuracy) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())


def gains(results: dict[str, Accuracy]) -> str:
    """``linear probe 26.8% -> 58.5%``, for each measure, before and after training."""
    before, after = results[BEFORE], results[AFTER]
    return ", ".join(f"{name} {before[name]:.1%} -> {after[name]:.1%}" for name in before)
