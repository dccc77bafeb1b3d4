"""Evaluation of a frozen encoder: a linear probe and nearest neighbours on its features.

    python -m cltt.evaluation --checkpoint checkpoints/run --data LABELLED      every checkpoint of a run
    python -m cltt.evaluation --checkpoint checkpoints/run/epoch-0010.pt --data LABELLED

Features are computed once, by the encoder in evaluation mode, from centre crops. The probe is a logistic regression
fitted on the train part by L-BFGS; its loss and accuracy are given for every part. Nearest neighbours, by cosine, take
1 or 4 labelled images a class (mean of ten drawings) or all of the train part, and classify the test part.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from cltt import checkpoint, cli, config, distributed
from cltt._eval_data import PARTS, Images, LabelledData, open_labelled
from cltt._probe import LinearProbe, few_shot_accuracy, fit_linear_probe, nearest_accuracy
from cltt.config import DEVICES, require, require_positive
from cltt.distributed import RankFacts
from cltt.errors import SettingsError
from cltt.files import atomic
from cltt.files.atomic import replace_file
from cltt.frames.batch import IMAGENET_MEAN, IMAGENET_STD
from cltt.models.encoders import build_encoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "EvaluationResult",
    "Evaluator",
    "LinearProbe",
    "extract_features",
    "few_shot_accuracy",
    "fit_linear_probe",
    "load_encoder",
    "nearest_accuracy",
    "open_labelled",
]

SHOTS = (1, 4)
PART_STYLES = {"train": (":", "v"), "val": ("--", "s"), "test": ("-", "o")}
COLORS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, told apart by colour-blind readers
INK, GREY, PALE = "#222222", "#666666", "#DDDDDD"


@dataclass(frozen=True)
class EvaluationResult:
    """What one encoder reaches.

    Attributes:
        loss, accuracy: of the linear probe, by part.
        nearest: accuracy of nearest neighbours, by the number of labelled images a class ("1", "4", "all").
        images: number of images, by part.
        classes: number of classes.
        split_by: how the parts came about.
    """

    loss: dict[str, float]
    accuracy: dict[str, float]
    nearest: dict[str, float]
    images: dict[str, int]
    classes: int
    split_by: str

    def row(self) -> dict[str, float]:
        """``train_loss``, ``train_acc`` ... for the evaluation CSV."""
        return {
            f"{part}_{name}": values[part]
            for part in self.loss
            for name, values in (("loss", self.loss), ("acc", self.accuracy))
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """One line for the console."""
        probe = ", ".join(f"{part} {accuracy:.3f}" for part, accuracy in self.accuracy.items())
        nearest = ", ".join(f"{shots} {accuracy:.3f}" for shots, accuracy in self.nearest.items())
        return f"linear probe: {probe}; nearest neighbour by labels a class: {nearest}"


@torch.inference_mode()
def extract_features(
    encoder: nn.Module, images: Images, *, image_size: int, device: torch.device, batch_size: int = 256
) -> torch.Tensor:
    """Features of ``images`` in their order -> float32 [n, F] on the CPU.

    The encoder computes in evaluation mode and is left in the mode it was in; nothing random is drawn.
    """
    was_training = encoder.training
    encoder.eval()
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    features = []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="features", unit="batch", disable=None, leave=False):
        pixels = images.batch(start, min(start + batch_size, len(images)), image_size).to(device)
        features.append(encoder((pixels - mean) / std).float().cpu())
    encoder.train(was_training)
    return torch.cat(features)


class Evaluator:
    """Evaluates encoders on one set of labelled images; call it with an encoder on ``device``.

    Args:
        data: what :func:`open_labelled` takes, or its result.
        image_size: side of the frames the encoder sees.
        device: where the encoder is.
    """

    def __init__(self, data: str | Path | LabelledData, *, image_size: int, device: torch.device) -> None:
        self.data = data if isinstance(data, LabelledData) else open_labelled(data)
        if "train" not in self.data.parts:
            raise SettingsError("the evaluation data has no train part for the linear probe to learn from")
        self.image_size = image_size
        self.device = device

    def __call__(self, encoder: nn.Module) -> EvaluationResult:
        parts = {part: self.data.parts[part] for part in PARTS if part in self.data.parts}
        features = {
            part: extract_features(encoder, images, image_size=self.image_size, device=self.device)
            for part, images in parts.items()
        }
        labels = {part: torch.from_numpy(images.labels) for part, images in parts.items()}
        classes = len(self.data.label_names)
        on_gpu = self.device if self.device.type == "cuda" else torch.device("cpu")
        probe = fit_linear_probe(features["train"].to(on_gpu), labels["train"], classes)
        scores = {part: probe.score(features[part], labels[part]) for part in parts}
        return EvaluationResult(
            loss={part: loss for part, (loss, _) in scores.items()},
            accuracy={part: accuracy for part, (_, accuracy) in scores.items()},
            nearest=_nearest(features, labels),
            images={part: len(images) for part, images in parts.items()},
            classes=classes,
            split_by=self.data.split_by,
        )


def _nearest(features: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> dict[str, float]:
    """Accuracy on the test part (else val) by labelled images a class; numbers that a class lacks are left out."""
    asked = next((part for part in ("test", "val") if part in features), None)
    if asked is None:
        return {}
    gallery, queries = (features["train"], labels["train"]), (features[asked], labels[asked])
    smallest = int(torch.unique(gallery[1], return_counts=True)[1].min())
    found = {
        str(shots): few_shot_accuracy(*gallery, shots, queries=queries[0], query_labels=queries[1])
        for shots in SHOTS
        if shots <= smallest
    }
    return {**found, "all": nearest_accuracy(*gallery, *queries)}


def load_encoder(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder in the checkpoint at ``path``, on the CPU, and the settings it was trained with."""
    state = checkpoint.load(path)
    settings = state["settings"]
    encoder = build_encoder(settings["model"]["backbone"])
    prefix = "encoder."
    weights = {name.removeprefix(prefix): value for name, value in state["model"].items() if name.startswith(prefix)}
    encoder.load_state_dict(weights)
    return encoder, settings


# ---- python -m cltt.evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Flags of ``python -m cltt.evaluation``."""

    checkpoint: str = config.setting("", "a checkpoint, or a run's folder: all of its checkpoints", required=True)
    data: str = config.setting(
        "",
        "labelled images: a folder a class, flat COIL files, CIFAR, or shards. Folders train, val and test in it, and "
        "the splits of shards, are kept; images without such parts are split at random, 60/20/20 a class: of a video, "
        "neighbouring frames then lie on both sides, which flatters the result",
        required=True,
    )
    out: str | None = config.setting(
        None, "folder for evaluation.csv, .json and .png (default: the run's folder)", type=str
    )
    image_size: int | None = config.setting(None, "side of the frames, in pixels (default: as trained)", type=int)
    device: str = config.setting("auto", "auto takes cuda, else mps, else cpu", choices=DEVICES)

    def __post_init__(self) -> None:
        require(self.checkpoint != "" and self.data != "", "give --checkpoint and --data")
        if self.image_size is not None:
            require_positive("image_size", self.image_size)


def evaluate_checkpoints(settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Evaluate each checkpoint asked for; one dictionary each, with its file, epoch and step."""
    source = Path(settings.checkpoint)
    paths = checkpoint.list_checkpoints(source) if source.is_dir() else [source]
    if not paths:
        raise SettingsError(f"{source} holds no checkpoints (epoch-*.pt)")
    device = distributed.pick_device(settings.device, RankFacts())
    data = open_labelled(settings.data)
    rows = []
    for path in paths:
        encoder, trained = load_encoder(path)
        image_size = settings.image_size or trained["data"]["image_size"]
        result = Evaluator(data, image_size=image_size, device=device)(encoder.to(device))
        epoch, step = checkpoint.position(path) if path.name.startswith("epoch-") else (0, 0)
        print(f"{path.name}: {result.describe()}", flush=True)
        rows.append({"checkpoint": str(path), "epoch": epoch, "step": step, **result.to_dict(), "row": result.row()})
    return rows


def write_results(rows: list[dict[str, Any]], out: Path) -> None:
    """Write ``evaluation.csv``, ``evaluation.json`` and ``evaluation.png`` into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "evaluation.json", json.dumps(rows, indent=1).encode())
    flat = [
        {"epoch": r["epoch"], "step": r["step"], **r["row"], **{f"nn_{k}": v for k, v in r["nearest"].items()}}
        for r in rows
    ]
    with open(out / "evaluation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, flat[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    draw_accuracies(flat).savefig(out / "evaluation.png", dpi=150)


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


def main(argv: list[str] | None = None) -> int:
    """``python -m cltt.evaluation``."""
    parser = cli.Parser(prog="python -m cltt.evaluation", description="Evaluate the encoder of one or all checkpoints.")
    cli.add_settings(parser, EvaluationSettings)
    settings = cli.settings_from(parser.parse_args(argv), EvaluationSettings)
    source = Path(settings.checkpoint)
    if not source.exists():
        raise SettingsError(f"no checkpoint at {source}")
    out = Path(settings.out) if settings.out else (source if source.is_dir() else source.parent)
    atomic.check_writable(out, "give another --out")
    rows = evaluate_checkpoints(settings)
    write_results(rows, out)
    print(f"written: {out / 'evaluation.csv'}, evaluation.json, evaluation.png")
    return 0


if __name__ == "__main__":
    cli.run(main, "python -m cltt.evaluation")
