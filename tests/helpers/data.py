"""Small data for tests: real frames where they lie beside the repository, else clips drawn here."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

SHARED = Path(os.environ.get("CLTT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def frame_image(clip: int, index: int, height: int, width: int) -> np.ndarray:
    """A smooth BGR uint8 picture [height, width, 3] that differs between clips and drifts with ``index``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin((x * (1 + k) + index * 5) / 23 + clip) + np.cos((y + clip * 17) / (11 + k)) for k in range(3)]
    return np.clip(127 + 60 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)


def make_clips(root: Path, lengths: dict[str, int], *, height: int = 48, width: int = 64, quality: int = 90) -> Path:
    """Write ``lengths[clip]`` JPEG frames ``frame_000000.jpg ...`` into each ``root/clip``; return ``root``."""
    for number, (clip, length) in enumerate(lengths.items()):
        folder = root / clip
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(length):
            image = frame_image(number, index, height, width)
            _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
            (folder / f"frame_{index:06d}.jpg").write_bytes(data.tobytes())
    return root


def add_mac_clutter(root: Path) -> None:
    """What a Mac leaves behind: sidecars beside the frames and at the root, .DS_Store, an empty clip, a text file."""
    (root / "._clips").write_bytes(b"\x00\x05\x16\x07")
    (root / ".DS_Store").write_bytes(b"Bud1")
    (root / "notes.txt").write_text("not a frame\n")
    (root / "empty_clip").mkdir(exist_ok=True)
    for frame in sorted(root.rglob("frame_*.jpg"))[:3]:
        (frame.parent / f"._{frame.name}").write_bytes(b"\x00\x05\x16\x07")
