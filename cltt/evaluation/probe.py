"""Classifiers on frozen features: logistic regression and nearest neighbours. Both give the same result every time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cltt.errors import SettingsError

_ROWS = 1024  # similarities of so many queries are held at a time


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features.

    Attributes:
        mean, scale: [F], of the features it was fitted on.
        weight: [classes, F]. bias: [classes].
    """

    mean: torch.Tensor
    scale: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def score(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on ``features`` [n, F] with ``labels`` int64 [n]."""
        logits = ((features.to(self.mean) - self.mean) / self.scale) @ self.weight.T + self.bias
        labels = labels.to(logits.device)
        return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()


def fit_linear_probe(
    features: torch.Tensor, labels: torch.Tensor, classes: int, *, max_iterations: int = 200
) -> LinearProbe:
    """Fit by L-BFGS, from zero, to convergence or ``max_iterations``.

    The objective is that of scikit-learn's ``LogisticRegression(C=1)``: summed cross-entropy + |weight|^2 / 2. On the
    CPU it is computed in double precision, on a GPU in single.
    """
    x = features.double() if features.device.type == "cpu" else features.float()
    mean, scale = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    x = (x - mean) / scale
    labels = labels.to(x.device)
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + weight.square().sum() / (2 * len(x))
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearProbe(mean, scale, weight.detach(), bias.detach())


def nearest_accuracy(
    gallery: torch.Tensor, gallery_labels: torch.Tensor, queries: torch.Tensor, query_labels: torch.Tensor
) -> float:
    """Share of ``queries`` [m, F] whose nearest row of ``gallery`` [n, F], by cosine, has their label."""
    gallery = F.normalize(gallery.float(), dim=1)
    hits = 0
    for rows, labels in zip(F.normalize(queries.float(), dim=1).split(_ROWS), query_labels.split(_ROWS), strict=True):
        nearest = gallery_labels[(rows @ gallery.T).argmax(1).to(gallery_labels.device)]
        hits += int((nearest == labels).sum())
    return hits / len(query_labels)


def few_shot_accuracy(
    features: torch.Tensor,
    labels: torch.Tensor,
    shots: int,
    draws: int = 10,
    seed: int = 0,
    *,
    queries: torch.Tensor | None = None,
    query_labels: torch.Tensor | None = None,
) -> float:
    """Nearest-neighbour accuracy by cosine with ``shots`` labelled rows a class, the mean over ``draws`` drawings.

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
        accuracies.append(nearest_accuracy(features[drawn], labels[drawn], asked, answers))
    return float(np.mean(accuracies))
