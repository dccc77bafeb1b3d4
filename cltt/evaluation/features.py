"""Features of a frozen encoder, computed once, and what they look like as a whole: a collapse shows here.

Letters: n images, F features, C classes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from cltt.evaluation.images import Images
from cltt.frames.gather import statistics
from cltt.threads import Call, Threads

READ_THREADS = min(8, os.cpu_count() or 1)
AHEAD = 2  # batches that are read while the encoder computes
UNIFORMITY_ROWS = 4096  # whose pairs are looked at: 8 million


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
    """Features of ``images`` in their order -> float32 [n, F] on ``device``; ``normalise`` as the encoder was trained.

    The encoder computes in evaluation mode and is left in the mode it was in; nothing random is drawn.
    """
    was_training = encoder.training
    encoder.eval()
    offset, scale = (values.to(device).view(3, 1, 1) for values in statistics(normalise))
    batches = _batches(images, image_size, batch_size)
    total = -(-len(images) // batch_size)
    features = []
    for pixels in tqdm(batches, total=total, desc="features", unit="batch", disable=None, leave=False):
        features.append(encoder((pixels.to(device) - offset) * scale).float())
    encoder.train(was_training)
    return torch.cat(features)


def _batches(images: Images, image_size: int, batch_size: int) -> Iterator[torch.Tensor]:
    """uint8 [batch_size, 3, S, S], the last shorter; the next are read meanwhile."""
    pending: deque[Call[torch.Tensor]] = deque()
    with ThreadPoolExecutor(READ_THREADS) as pool, Threads(1, "cltt-images") as ahead:
        for start in range(0, len(images), batch_size):
            stop = min(start + batch_size, len(images))
            pending.append(ahead.submit(partial(images.batch, start, stop, image_size, pool)))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@dataclass(frozen=True)
class Spread:
    """How the features of labelled images lie.

    Attributes:
        effective_rank: RankMe (Garrido et al. 2023, arXiv:2210.02885): the exponential of the entropy of the singular
            values, 1 to F; near 1 after a collapse.
        alignment: mean squared distance of two images of one class, of unit features (Wang and Isola 2020,
            arXiv:2005.10242, with alpha 2); 0 to 4. None where no class has two images.
        uniformity: log of the mean of exp(-2 * squared distance) over pairs of any two (there, with t 2); 0 after a
            collapse, about -4 on a sphere that is filled evenly.
    """

    effective_rank: float
    alignment: float | None
    uniformity: float


def spread(features: torch.Tensor, labels: torch.Tensor) -> Spread:
    """Of ``features`` [n, F] with ``labels`` int64 [n]."""
    unit = F.normalize(features.double() if features.device.type == "cpu" else features, dim=1)
    return Spread(effective_rank(features), _alignment(unit, labels.to(unit.device)), _uniformity(unit))


def effective_rank(features: torch.Tensor) -> float:
    """RankMe of ``features`` [n, F]."""
    x = features.cpu().double()
    values = torch.linalg.eigvalsh(x.T @ x).clamp_min(0).sqrt()
    share = values / values.sum().clamp_min(1e-300)
    return float(torch.exp(torch.special.entr(share).sum()))


def _alignment(unit: torch.Tensor, labels: torch.Tensor) -> float | None:
    """From the sum of each class, as |x - y|^2 = 2 - 2 x.y and the sum over x, y of x.y is |sum of x|^2."""
    counts = torch.bincount(labels).to(unit.dtype)
    sums = torch.zeros(len(counts), unit.shape[1], dtype=unit.dtype, device=unit.device).index_add_(0, labels, unit)
    pairs = (counts * (counts - 1)).sum()
    products = (sums.square().sum() - unit.square().sum()) / pairs
    return float(2 - 2 * products) if pairs else None


def _uniformity(unit: torch.Tensor) -> float:
    rows = unit[:: -(-len(unit) // UNIFORMITY_ROWS)]
    return float(torch.pdist(rows).square().mul(-2).exp().mean().log())
