"""Clips for the loader's benchmark: real frames (drawn ones where there are none) at a size of one's choice."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from tests.helpers import data


def write_clips(root: Path, size: tuple[int | None, int], copies: int, longest: int) -> Path:
    """Clips of up to ``longest`` frames at (width, lines), as ``copies`` mirrored or shifted variants.

    Without a width a frame keeps its shape.
    """
    sources = sorted(path for path in data.SHARED.glob("real/*/*") if path.is_dir() and not path.name.startswith("."))
    width, lines = size
    if not sources:
        lengths = {f"clip_{k}": min(240, longest) for k in range(7 * copies)}
        return data.make_clips(root, lengths, height=lines, width=width or round(lines * 4 / 3))
    for folder in sources:
        files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")][:longest]
        for number, path in enumerate(files):
            image = cv2.imread(str(path))
            if image is None:
                continue
            image = _resized(image, width, lines)
            for copy in range(copies):
                _write(root / f"{folder.parent.name}_{folder.name}_{copy}" / f"frame_{number:06d}.jpg", image, copy)
    return root


def repeat_clips(root: Path, frames: int) -> Path:
    """Hard links of all clips of ``root`` under further names, until there are at least ``frames`` frames."""
    clips = {clip: sorted(clip.iterdir()) for clip in sorted(root.iterdir())}
    for turn in range(1, -(-frames // sum(map(len, clips.values())))):
        for clip, files in clips.items():
            again = root / f"{clip.name}_again_{turn:05d}"
            again.mkdir()
            for file in files:
                os.link(file, again / file.name)
    return root


def _resized(image: np.ndarray, width: int | None, lines: int) -> np.ndarray:
    scale = lines / min(image.shape[:2])
    shape = (width, lines) if width else (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _write(path: Path, image: np.ndarray, copy: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.flip(image, 1) if copy % 2 else image
    image = np.roll(image, copy // 2 * 40, axis=1)
    path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
