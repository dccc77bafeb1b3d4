"""ABX on windows: whether a frame lies nearer to another of its window than to one of another moment, or another clip.

It needs no labels and no classifier, and tells encoders apart where the loss is flat. The measure is that of the
minimal-pair ABX task for speech (Schatz et al. 2013, "Evaluating speech features with the minimal-pair ABX task",
Interspeech), with windows in place of phonemes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cltt.config import WindowSettings
from cltt.errors import SettingsError
from cltt.evaluation.features import extract_features
from cltt.evaluation.images import Images, ShardSource
from cltt.metrics import ABX_COLUMNS
from cltt.sampling.permutation import mix64
from cltt.shards.dataset import ShardDataset

MAX_FRAMES = 800  # encoded per evaluation
CLIP_WINDOWS = 4  # per clip, or more where clips are few


@dataclass(frozen=True)
class AbxResult:
    """Share of triples (X, A of its window, B) in which X is nearer to A than to B, by cosine; equal counts half.

    Attributes:
        abx_within: B is of another window of the clip, that shares no moment with the first. None: there is none.
        abx_across: B is of another clip. None: there is one clip.
        abx_windows: size and step of the windows; figures of other windows are of another task.
    """

    abx_within: float | None
    abx_across: float | None
    abx_windows: str

    def columns(self) -> dict[str, Any]:
        """All of it, for ``evaluation.csv``."""
        return self.row() | {"abx_windows": self.abx_windows}

    def row(self) -> dict[str, float]:
        """The figures there are, for the history of training."""
        return {name: getattr(self, name) for name in ABX_COLUMNS if getattr(self, name) is not None}

    def describe(self) -> str:
        """One line for the console."""
        words = ", ".join(f"{name.removeprefix('abx_')} clips {value:.3f}" for name, value in self.row().items())
        return f"ABX on windows of {self.abx_windows}: {words}"


class AbxEvaluator:
    """Computes ABX of encoders on windows of some clips; call it with an encoder on ``device``.

    Args:
        dataset: the shards.
        trained: ids of the clips that the encoder is trained on; windows are taken from the others.
        windows: window size and step; of a range of steps the longest is taken.
        image_size, device, normalise: as the encoder was trained.

    Raises SettingsError if no frame has another of its window and one outside.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        trained: np.ndarray,
        windows: WindowSettings,
        *,
        image_size: int,
        device: torch.device,
        normalise: str,
    ) -> None:
        clips = np.setdiff1d(np.arange(dataset.num_clips), trained)
        if not len(clips):
            raise SettingsError(
                "ABX compares frames of clips that are not trained on, and all are; build the shards with --splits, "
                "and train on train"
            )
        self.images = window_frames(dataset, clips, windows)
        if windows.span == 1 or len(np.unique(self.images.groups)) < 2:
            raise SettingsError(
                f"ABX compares two windows of two frames or more; the {len(clips)} clips that are not trained on hold "
                f"{len(np.unique(self.images.groups))} of {windows.window_size} frames at step {windows.frame_step}"
            )
        self.windows = f"{windows.window_size} frames, step {windows.frame_steps[1]}"
        self.reading = {"image_size": image_size, "device": device, "normalise": normalise}

    def __call__(self, encoder: nn.Module) -> AbxResult:
        features = extract_features(encoder, self.images, **self.reading)  # type: ignore[arg-type]
        return AbxResult(*abx(features.cpu().numpy(), self.images.labels, self.images.groups), self.windows)


def window_frames(dataset: ShardDataset, clips: np.ndarray, windows: WindowSettings) -> Images:
    """Frames of windows that share no moment, of clips that are evenly spread over ``clips``.

    Windows lie end to end. In a clip that has more than there is room for, a hash of each window's first frame chooses,
    so that every call takes the same ones. Labels are the clips, groups the windows. At most MAX_FRAMES frames, unless
    two windows of two clips have more.
    """
    step, size, span = windows.frame_steps[1], windows.window_size, windows.span
    room = dataset.clip_lengths[clips] // span
    clips, room = clips[room > 0], room[room > 0]
    most = max(MAX_FRAMES // size, 4)  # windows in all
    chosen = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), max(most // CLIP_WINDOWS, 2))).astype(np.int64))
    starts = []
    for clip, slots in zip(clips[chosen].tolist(), room[chosen].tolist(), strict=True):
        last = int(dataset.clip_lengths[clip]) - span
        places = np.arange(slots) * last // max(slots - 1, 1) if slots > 1 else np.array([last // 2])
        first = dataset.clip_offsets[clip] + places
        kept = np.argsort(mix64(first.astype(np.uint64)))[: most // len(chosen)]
        starts.append(np.sort(first[kept]))
    firsts = np.concatenate(starts) if starts else np.empty(0, np.int64)
    ids = (firsts[:, None] + step * np.arange(size)).ravel()
    owners = np.repeat(clips[chosen], [size * len(places) for places in starts])
    return Images(ids, owners, np.repeat(np.arange(len(firsts)), size), ShardSource(dataset))


def abx(features: np.ndarray, clip: np.ndarray, window: np.ndarray) -> tuple[float | None, float | None]:
    """(within, across) clips, of features [n, F] of frames of ``window`` [n] of ``clip`` [n].

    Each frame X that has an A and a B counts once: the mean over its pairs of A and B.
    """
    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    found: tuple[list[float], list[float]] = ([], [])
    for x, cosines in enumerate(unit @ unit.T):
        own = window == window[x]
        others = (clip == clip[x]) & ~own, clip != clip[x]
        near = np.delete(cosines, x)[np.delete(own, x)]
        for scores, other in zip(found, others, strict=True):
            if len(near) and other.any():
                far = np.sort(cosines[other])
                beaten = np.searchsorted(far, near, "left") + np.searchsorted(far, near, "right")
                scores.append(float(beaten.mean()) / (2 * len(far)))
    within, across = (float(np.mean(scores)) if scores else None for scores in found)
    return within, across
