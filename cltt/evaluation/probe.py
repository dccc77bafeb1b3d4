"""Classifiers on frozen features: linear and nearest neighbours. All give the same result every time.

Letters: n images, F features, C classes; top-5 is None where there are not more than five classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from cltt.config import MANY, check_fields, setting
from cltt.errors import SettingsError

PROBES = ("closed", "sgd")
PROTOCOLS = ("older-coil",)  # :mod:`cltt.evaluation.protocols.older_coil`
# Inverse strengths of the penalty, as scikit-learn's C: from one extreme to the other in steps of ten.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
TEMPERATURE = 0.07  # of Wu et al. 2018 (arXiv:1805.01978)
LABEL_SEED, LABEL_DRAWS = 7, 5  # of ``--label-fraction``
_ROWS = 1024  # similarities of so many queries are held at a time


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear classifier is fitted."""

    probe: str = setting(
        "closed",
        "linear classifier: logistic regression to convergence, its penalty chosen on val; or sgd as papers do",
        choices=PROBES,
    )
    probe_epochs: int = setting(100, "epochs of --probe sgd", within=(1, MANY))
    probe_lr: float = setting(0.1, "learning rate of --probe sgd for 256 images, on a cosine", within=(1e-9, 1e9))
    probe_batch_size: int = setting(256, "images per step of --probe sgd", within=(1, MANY))

    protocol: str | None = setting(
        None,
        "older-coil: the COIL numbers of the script before this project, by its splits, its pixels (224, ImageNet's "
        "mean and deviation) and its linear head, instead of --probe",
        choices=PROTOCOLS,
    )
    knn: tuple[int, ...] = setting(
        (20,), "votes of so many nearest neighbours, an accuracy each", metavar="K", within=(1, MANY)
    )

    label_fraction: tuple[float, ...] = setting(
        (),
        "also fit the linear classifier on such shares of the train labels, as in 0.01 0.1: mean and deviation over "
        "five draws",
        metavar="SHARE",
        within=(1e-6, 1),
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """Of the protocol, or of the probe."""
        return self.protocol or self.probe


class Score(NamedTuple):
    """Mean cross-entropy, and the share whose label is the first, or among the first five."""

    loss: float
    top1: float
    top5: float | None


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features.

    Attributes:
        mean, scale: [F], of the features it was fitted on.
        weight: [C, F]. bias: [C].
        strength: C, the inverse of the penalty; None: fitted by SGD, without one.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    strength: float | None

    def score(self, features: torch.Tensor, labels: torch.Tensor) -> Score:
        """On ``features`` [n, F] with ``labels`` int64 [n]."""
        logits = ((features.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias
        labels = labels.to(logits.device)
        top1 = (logits.argmax(1) == labels).double().mean().item()
        return Score(F.cross_entropy(logits, labels).item(), top1, _top5(logits, labels))


def _top5(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Share of rows whose label has one of the five best ``scores`` [n, C], and one above nothing."""
    if scores.shape[1] <= 5:
        return None
    best = scores.topk(5, dim=1)
    hits = (best.indices == labels[:, None]) & (best.values > -math.inf)
    return hits.any(1).double().mean().item()


def choose_linear_probe(
    train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor] | None, classes: int
) -> LinearProbe:
    """The probe fitted on ``train`` (features [n, F], labels [n]) whose strength does best on ``val``; C=1 without.

    Of equal accuracies the smaller loss decides. Each strength goes on from the weights of the one before.
    """
    if val is None:
        return fit_linear_probe(*train, classes)
    fitted: list[LinearProbe] = []
    for strength in STRENGTHS:
        fitted.append(fit_linear_probe(*train, classes, strength=strength, start=fitted[-1] if fitted else None))
    scores = [probe.score(*val) for probe in fitted]
    best = max(range(len(fitted)), key=lambda k: (scores[k].top1, -scores[k].loss))
    return fitted[best]


def fit_linear_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    *,
    strength: float = 1.0,
    start: LinearProbe | None = None,
    max_iterations: int = 200,
) -> LinearProbe:
    """Fit by L-BFGS, from zero or from ``start``, to convergence or ``max_iterations``.

    The objective is that of scikit-learn's ``LogisticRegression(C=strength)``: summed cross-entropy + |weight|^2 / 2C.
    On the CPU it is computed in double precision, on a GPU in single.
    """
    x = features.double() if features.device.type == "cpu" else features.float()
    x, mean, scale = _standardised(x)
    labels = labels.to(x.device)
    weight, bias = _zeros(classes, x)
    if start is not None:
        weight.data.copy_(start.weight)
        bias.data.copy_(start.bias)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = weight.square().sum() / (2 * strength * len(x))
        loss = F.cross_entropy(x @ weight.T + bias, labels) + penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearProbe(mean, scale, weight.detach(), bias.detach(), strength)


def fit_sgd_probe(features: torch.Tensor, labels: torch.Tensor, classes: int, settings: ProbeSettings) -> LinearProbe:
    """A linear layer on standardised features by SGD with momentum 0.9, without augmentation or weight decay.

    Batches are drawn anew each epoch; the rate, ``probe_lr * probe_batch_size / 256``, falls to 0 on a cosine, step by
    step (as in linear probing of MAE, arXiv:2111.06377, whose BatchNorm before the layer standardises as well).
    """
    x, mean, scale = _standardised(features.float())
    labels = labels.to(x.device)
    weight, bias = _zeros(classes, x)
    size = settings.probe_batch_size
    optimizer = torch.optim.SGD([weight, bias], lr=settings.probe_lr * size / 256, momentum=0.9)
    steps = settings.probe_epochs * -(-len(x) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    order = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(settings.probe_epochs):
            for rows in torch.randperm(len(x), generator=order).to(x.device).split(size):
                optimizer.zero_grad()
                F.cross_entropy(x[rows] @ weight.T + bias, labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return LinearProbe(mean, scale, weight.detach(), bias.detach(), None)


def _standardised(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``x`` [n, F] less its mean, over its deviation; mean, deviation [F]."""
    mean, scale = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    return (x - mean) / scale, mean, scale


def _zeros(classes: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [C, F] and bias [C] to be fitted, of the type of ``x`` [n, F]."""
    weight, bias = x.new_zeros(classes, x.shape[1]), x.new_zeros(classes)
    return weight.requires_grad_(True), bias.requires_grad_(True)


def drawn_rows(labels: np.ndarray, fraction: float, draw: int) -> np.ndarray:
    """Rows with ``fraction`` of each class of ``labels`` [n], at least one of each; drawing ``draw`` of several."""
    rng = np.random.default_rng([LABEL_SEED, draw])
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    drawn = [rng.choice(rows, max(1, round(fraction * len(rows))), replace=False) for rows in classes]
    return np.sort(np.concatenate(drawn))


# ---- nearest neighbours


def knn_accuracy(
    bank: torch.Tensor,
    bank_labels: torch.Tensor,
    queries: torch.Tensor,
    query_labels: torch.Tensor,
    *,
    k: int = 1,
    temperature: float = TEMPERATURE,
) -> tuple[float, float | None]:
    """Top-1 and top-5 accuracy of ``queries`` [m, F] by their ``k`` nearest rows of ``bank`` [n, F], by cosine.

    Each neighbour votes for its label with the weight exp(cosine / temperature) (Wu et al. 2018, arXiv:1805.01978,
    section 3.4); a class without a vote is never among the five.
    """
    bank = F.normalize(bank.float(), dim=1)
    bank_labels, query_labels = bank_labels.to(bank.device), query_labels.to(bank.device)
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    hits, hits5 = 0.0, 0.0
    for rows, labels in zip(F.normalize(queries.float(), dim=1).split(_ROWS), query_labels.split(_ROWS), strict=True):
        near = (rows.to(bank.device) @ bank.T).topk(min(k, len(bank)), dim=1)
        weights = ((near.values - near.values[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(rows), classes).scatter_add_(1, bank_labels[near.indices], weights)
        hits += (votes.argmax(1) == labels).sum().item()
        hits5 += (_top5(votes.log(), labels) or 0) * len(rows)
    return hits / len(query_labels), hits5 / len(query_labels) if classes > 5 else None


def few_shot_accuracies(
    features: torch.Tensor,
    labels: torch.Tensor,
    shots: int,
    draws: int = 10,
    seed: int = 0,
    *,
    queries: torch.Tensor | None = None,
    query_labels: torch.Tensor | None = None,
) -> np.ndarray:
    """Nearest-neighbour accuracy by cosine with ``shots`` labelled rows per class -> float64 [draws].

    Args:
        features: [n, F], rows to draw the labelled ones from.
        labels: int64 [n].
        shots: labelled rows drawn of each class.
        draws: drawings; drawing k depends on (``seed``, k) alone.
        seed: 0 or more.
        queries, query_labels: rows to classify; without them, all rows of ``features`` that were not drawn.

    Raises SettingsError if a class has fewer than ``shots`` rows.
    """
    known = labels.cpu().numpy()
    classes = [np.flatnonzero(known == label) for label in np.unique(known)]
    if min(len(rows) for rows in classes) < shots:
        raise SettingsError(f"{shots} shots asked for, but the smallest class has {min(map(len, classes))} images")
    accuracies = []
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        drawn = torch.from_numpy(np.concatenate([rng.choice(rows, shots, replace=False) for rows in classes]))
        if queries is None or query_labels is None:
            rest = torch.ones(len(labels), dtype=torch.bool)
            rest[drawn] = False
            asked, answers = features[rest], labels[rest]
        else:
            asked, answers = queries, query_labels
        accuracies.append(knn_accuracy(features[drawn], labels[drawn], asked, answers)[0])
    return np.array(accuracies)
