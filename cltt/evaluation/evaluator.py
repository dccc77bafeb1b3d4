"""Evaluation of a frozen encoder: a linear probe and nearest neighbours on its features.

    python -m cltt.evaluation --checkpoint checkpoints/run --data LABELLED      every checkpoint of a run
    python -m cltt.evaluation --checkpoint checkpoints/run/epoch-0010.pt --data LABELLED

Features are computed once, by the encoder in evaluation mode, from centre crops. The probe is a logistic regression
fitted on the train part by L-BFGS; its loss and accuracy are given for every part. Nearest neighbours, by cosine, take
1 or 4 labelled images a class (mean of ten drawings) or all of the train part, and classify the test part.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from cltt import checkpoint
from cltt.errors import DataError, SettingsError
from cltt.evaluation.datasets import PARTS, Images, LabelledData, open_labelled
from cltt.evaluation.probe import few_shot_accuracy, fit_linear_probe, nearest_accuracy
from cltt.frames.gather import statistics
from cltt.models.encoders import build_encoder

if TYPE_CHECKING:
    pass


SHOTS = (1, 4)


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
    encoder: nn.Module,
    images: Images,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int = 256,
    normalise: str = "imagenet",
) -> torch.Tensor:
    """Features of ``images`` in their order -> float32 [n, F] on the CPU; ``normalise`` as the encoder was trained.

    The encoder computes in evaluation mode and is left in the mode it was in; nothing random is drawn.
    """
    was_training = encoder.training
    encoder.eval()
    offset, scale = (values.to(device).view(3, 1, 1) for values in statistics(normalise))
    features = []
    starts = range(0, len(images), batch_size)
    for start in tqdm(starts, desc="features", unit="batch", disable=None, leave=False):
        pixels = images.batch(start, min(start + batch_size, len(images)), image_size).to(device)
        features.append(encoder((pixels - offset) * scale).float().cpu())
    encoder.train(was_training)
    return torch.cat(features)


class Evaluator:
    """Evaluates encoders on one set of labelled images; call it with an encoder on ``device``.

    Args:
        data: what :func:`open_labelled` takes, or its result.
        image_size: side of the frames the encoder sees.
        device: where the encoder is.
        normalise: of the pixels, as the encoder was trained.
    """

    def __init__(
        self, data: str | Path | LabelledData, *, image_size: int, device: torch.device, normalise: str = "imagenet"
    ) -> None:
        self.data = data if isinstance(data, LabelledData) else open_labelled(data)
        if "train" not in self.data.parts:
            raise SettingsError("the evaluation data has no train part for the linear probe to learn from")
        self.image_size = image_size
        self.device = device
        self.normalise = normalise

    def __call__(self, encoder: nn.Module) -> EvaluationResult:
        parts = {part: self.data.parts[part] for part in PARTS if part in self.data.parts}
        features = {
            part: extract_features(
                encoder, images, image_size=self.image_size, device=self.device, normalise=self.normalise
            )
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
    checkpoint.require_parts(path, state, model=dict)
    settings = checkpoint.settings_of(path, state)
    encoder = build_encoder(settings["model"]["backbone"])
    prefix = "encoder."
    named = {str(name): value for name, value in state["model"].items()}
    weights = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    try:
        encoder.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        words = str(error).splitlines()[0]
        raise DataError(
            f"the weights in {path} are not those of a {settings['model']['backbone']} ({words})"
        ) from error
    return encoder, settings


# ---- python -m cltt.evaluation
