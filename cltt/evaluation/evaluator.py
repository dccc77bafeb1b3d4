"""Evaluation of a frozen encoder, as papers report it, on labelled images.

    python -m cltt.evaluation --checkpoint checkpoints/run --data LABELLED      every checkpoint of a run
    python -m cltt.evaluation --checkpoint checkpoints/run/epoch-0010.pt --data LABELLED

Features are computed once, by the encoder in evaluation mode, from centre crops. A linear classifier is fitted on the
train part; its loss and accuracy are given for every part. Nearest neighbours, by cosine, take 1 or 4 labelled images
per class (ten drawings) or all of the train part, and classify the test part; so does the weighted vote of 20.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cltt.errors import SettingsError
from cltt.evaluation.datasets import LabelledData, open_labelled
from cltt.evaluation.features import extract_features, spread
from cltt.evaluation.images import Images
from cltt.evaluation.parts import held_out
from cltt.evaluation.probe import (
    LABEL_DRAWS,
    LinearProbe,
    ProbeSettings,
    choose_linear_probe,
    drawn_rows,
    few_shot_accuracies,
    fit_linear_probe,
    fit_sgd_probe,
    knn_accuracy,
)
from cltt.evaluation.protocols.older_coil import fit_older_head

SHOTS = (1, 4)
Features = dict[str, torch.Tensor]
Labelled = tuple[torch.Tensor, torch.Tensor]  # features [n, F], labels int64 [n]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What one encoder reaches.

    Attributes:
        loss, accuracy, top5: of the linear probe, by part; top5 is empty where there are not more than five classes.
        nearest: accuracy of nearest neighbours, by the number of labelled images per class ("1", "4", "all").
        nearest_std: standard deviation of that over drawings, of those that are drawn.
        knn, knn_top5: accuracy of the weighted vote of k neighbours, by k; top-5 as above.
        fraction, fraction_std: accuracy of linear probes on a share of the train labels, by the share: mean and
            standard deviation over draws, on test (else val, else train).
        effective_rank, alignment, uniformity: of the features of the test part, see :class:`features.Spread`.
        probe: how the linear probe was fitted: "closed", "sgd", or the name of the protocol.
        strength: of the closed probe, chosen on val (scikit-learn's C); None: by SGD.
        images: number of images, by part.
        classes: number of classes.
        split_by: how the parts came about.
    """

    loss: dict[str, float]
    accuracy: dict[str, float]
    top5: dict[str, float]
    nearest: dict[str, float] = field(default_factory=dict)
    nearest_std: dict[str, float] = field(default_factory=dict)
    knn: dict[str, float] = field(default_factory=dict)
    knn_top5: dict[str, float] = field(default_factory=dict)
    fraction: dict[str, float] = field(default_factory=dict)
    fraction_std: dict[str, float] = field(default_factory=dict)
    effective_rank: float
    alignment: float | None
    uniformity: float
    probe: str
    strength: float | None
    images: dict[str, int]
    classes: int
    split_by: str

    def row(self) -> dict[str, float]:
        """``train_loss``, ``train_acc`` ... for the evaluation CSV of training."""
        return {
            f"{part}_{name}": values[part]
            for part in self.loss
            for name, values in (("loss", self.loss), ("acc", self.accuracy))
        }

    def columns(self) -> dict[str, Any]:
        """All of it in flat columns, for ``evaluation.csv``."""
        return {
            **self.row(),
            **{f"{part}_top5": value for part, value in self.top5.items()},
            **{f"nn_{shots}": value for shots, value in self.nearest.items()},
            **{f"nn_{shots}_std": value for shots, value in self.nearest_std.items()},
            **{f"knn{k}_top1": value for k, value in self.knn.items()},
            **{f"knn{k}_top5": value for k, value in self.knn_top5.items()},
            **{f"probe_{share}": value for share, value in self.fraction.items()},
            **{f"probe_{share}_std": value for share, value in self.fraction_std.items()},
            "effective_rank": self.effective_rank,
            "alignment": self.alignment,
            "uniformity": self.uniformity,
            "probe": self.probe,
            "strength": self.strength,
        }

    def describe(self) -> str:
        """A table for the console: a row per classifier, with its accuracies by part or by labels."""
        rows = {
            "linear probe": _cells(self.accuracy),
            "linear probe by share of labels": _cells(self.fraction, self.fraction_std),
            "nearest neighbour by labels per class": _cells(self.nearest, self.nearest_std),
            "vote of so many neighbours": _cells(self.knn),
            "effective rank": f"{self.effective_rank:.1f}",
        }
        return "\n".join(f"{name:<38} {cells}" for name, cells in rows.items() if cells)


def _cells(accuracy: dict[str, float], deviation: dict[str, float] | None = None) -> str:
    shown = {name: f"±{value:.3f}" for name, value in (deviation or {}).items()}
    return " ".join(f"{name:>5}: {value:.3f}{shown.get(name, ''):<8}" for name, value in accuracy.items()).rstrip()


def features_of(parts: dict[str, Images], encoder: nn.Module, **reading: Any) -> Features:
    """Of every part, float32 [n, F] on the device; ``reading``: arguments of :func:`features.extract_features`."""
    return {part: extract_features(encoder, images, **reading) for part, images in parts.items()}


class Evaluator:
    """Evaluates encoders on one set of labelled images; call it with an encoder on ``device``.

    Args:
        data: what :func:`open_labelled` takes, or its result.
        image_size: side of the frames the encoder sees.
        device: where the encoder is.
        normalise: of the pixels, as the encoder was trained.
        probe: how the linear classifier is fitted.
    """

    def __init__(
        self,
        data: str | Path | LabelledData,
        *,
        image_size: int,
        device: torch.device,
        normalise: str = "imagenet",
        probe: ProbeSettings | None = None,
    ) -> None:
        self.data = data if isinstance(data, LabelledData) else open_labelled(data)
        if "train" not in self.data.parts:
            raise SettingsError("the evaluation data has no train part for the linear probe to learn from")
        self.device = device
        self.reading = {"image_size": image_size, "device": device, "normalise": normalise}
        self.probe = probe or ProbeSettings()

    def __call__(self, encoder: nn.Module) -> EvaluationResult:
        return self.evaluate(self.features(encoder))

    def features(self, encoder: nn.Module) -> Features:
        """Of every part, float32 [n, F] on the device."""
        return features_of(self.data.parts, encoder, **self.reading)

    def evaluate(self, features: Features) -> EvaluationResult:
        """Of features as :meth:`features` gives them."""
        if self.device.type not in ("cpu", "cuda"):  # elsewhere torch lacks double precision, or an operation
            features = {part: values.cpu() for part, values in features.items()}
        parts = {part: (features[part], torch.from_numpy(self.data.parts[part].labels)) for part in features}
        probe = self._fit(parts, self.data.parts["train"])
        scores = {part: probe.score(*labelled) for part, labelled in parts.items()}
        asked = next(part for part in ("test", "val", "train") if part in parts)
        neighbours = {} if asked == "train" else _neighbours(parts["train"], parts[asked], self.probe.knn)
        shares = {str(share): self._on_share(parts, asked, share) for share in self.probe.label_fraction}
        return EvaluationResult(
            fraction={share: float(found.mean()) for share, found in shares.items()},
            fraction_std={share: float(found.std(ddof=1)) for share, found in shares.items()},
            loss={part: score.loss for part, score in scores.items()},
            accuracy={part: score.top1 for part, score in scores.items()},
            top5={part: score.top5 for part, score in scores.items() if score.top5 is not None},
            **neighbours,
            **asdict(spread(*parts[asked])),
            probe=self.probe.name,
            strength=probe.strength,
            images={part: len(values) for part, values in features.items()},
            classes=len(self.data.label_names),
            split_by=self.data.split_by,
        )

    def _on_share(self, parts: dict[str, Labelled], asked: str, share: float) -> np.ndarray:
        """Accuracy on ``asked`` of probes fitted on ``share`` of the train labels -> float64 [draws]."""
        (features, labels), accuracies = parts["train"], []
        for draw in range(LABEL_DRAWS):
            rows = drawn_rows(labels.numpy(), share, draw)
            drawn = parts | {"train": (features[rows], labels[rows])}
            probe = self._fit(drawn, self.data.parts["train"].take(rows))
            accuracies.append(probe.score(*parts[asked]).top1)
        return np.array(accuracies)

    def _fit(self, parts: dict[str, Labelled], train: Images) -> LinearProbe:
        """The strength is chosen on val; where that is what is asked, on a tenth of train, held out for it."""
        classes = len(self.data.label_names)
        features, labels = parts["train"]
        if self.probe.protocol:
            return fit_older_head(features, labels, classes)
        if self.probe.probe == "sgd":
            return fit_sgd_probe(features, labels, classes, self.probe)
        if "test" in parts:
            return choose_linear_probe((features, labels), parts.get("val"), classes)
        rows = held_out(train)
        if rows is None:
            return fit_linear_probe(features, labels, classes)
        out = torch.from_numpy(rows)
        chosen = choose_linear_probe((features[~out], labels[~out]), (features[out], labels[out]), classes)
        return fit_linear_probe(features, labels, classes, strength=chosen.strength or 1.0)


def _neighbours(bank: Labelled, queries: Labelled, votes: tuple[int, ...]) -> dict[str, Any]:
    """What :class:`EvaluationResult` has of neighbours; numbers of labels that a class lacks are left out."""
    smallest = int(torch.unique(bank[1], return_counts=True)[1].min())
    few_shot = partial(few_shot_accuracies, *bank, queries=queries[0], query_labels=queries[1])
    draws = {str(shots): few_shot(shots) for shots in SHOTS if shots <= smallest}
    knn = {str(k): knn_accuracy(*bank, *queries, k=k) for k in votes}
    return {
        "nearest": {
            **{shots: float(found.mean()) for shots, found in draws.items()},
            "all": knn_accuracy(*bank, *queries)[0],
        },
        "nearest_std": {shots: float(found.std(ddof=1)) for shots, found in draws.items()},
        "knn": {k: top1 for k, (top1, _) in knn.items()},
        "knn_top5": {k: top5 for k, (_, top5) in knn.items() if top5 is not None},
    }
