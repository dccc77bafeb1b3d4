"""Small videos made for tests, whose frames tell their numbers, and the obvious way to sample one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from cltt.source.video.file import opened
from cltt.source.video.timeline import Timeline
from cltt.source.video.times import timeline_of

BITS = 8
BLOCK = 12
SIZE = (128, 80)  # width, height


def picture(number: int, width: int = SIZE[0], height: int = SIZE[1]) -> np.ndarray:
    """RGB uint8 [height, width, 3] that drifts with ``number``, and shows it as black and white blocks in a row."""
    noise = np.random.default_rng(7).integers(0, 255, (10, 32, 3)).astype(np.uint8)
    wide = cv2.resize(noise, (4 * width, height), interpolation=cv2.INTER_CUBIC)
    drawn = wide[:, number * 2 % (2 * width) :][:, :width].copy()
    for bit in range(BITS):
        drawn[4 : 4 + BLOCK, 4 + bit * BLOCK : 4 + (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    return drawn


def number_of(pixels: np.ndarray) -> int:
    """The number that a picture shows, at whatever size it has now."""
    scale = pixels.shape[0] / SIZE[1]
    row = pixels[int((4 + BLOCK / 2) * scale)].mean(-1)
    return sum(int(row[int((4 + (bit + 0.5) * BLOCK) * scale)] > 127) << bit for bit in range(BITS))


def write_video(
    path: Path,
    frames: int | Sequence[int],
    *,
    codec: str = "libx264",
    rate: int = 30,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int | None = None,
    times: Callable[[int], float] | None = None,
    options: dict[str, str] | None = None,
    container: str | None = None,
    draw: Callable[[int], np.ndarray] = picture,
    prepare: Callable[[object], None] | None = None,
) -> Path:
    """Write a video of pictures (their number, or their numbers in order) and return its path.

    ``times``: seconds at which the k-th is shown, instead of k/rate. ``prepare`` is given the stream before anything is
    encoded.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(frames) if isinstance(frames, int) else frames
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        first = draw(numbers[0])
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 90_000)
        if prepare is not None:
            prepare(stream)
        for place, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            if times is not None:
                frame.time_base = Fraction(1, 90_000)
                frame.pts = round(times(place) * 90_000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def timeline(path: Path) -> Timeline:
    """The timeline of a video's main stream."""
    with opened(os.fsencode(path)) as (container, stream):
        return timeline_of(container, stream, (1 << 31) - 1)


def write_sound(path: Path) -> Path:
    """A file with nothing but sound in it."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def largest(file: object) -> object:
    """The video stream of an open container with the most pixels."""
    return max(file.streams.video, key=lambda stream: stream.width * stream.height)  # type: ignore[attr-defined]


def decode_all(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """(seconds from the first, RGB as PyAV turns it) of all frames, each decoded."""
    import av

    times, pixels = [], []
    with av.open(os.fspath(path)) as file:
        stream = largest(file)
        for frame in file.decode(stream):
            times.append(float(frame.pts * stream.time_base))
            pixels.append(frame.to_ndarray(format="rgb24"))
    return [time - times[0] for time in times], pixels


def obvious_samples(times: Sequence[float], fps: float | None, max_gap: float | None) -> list[list[int]]:
    """Places of the frames taken, a list for each part: the rule read aloud, one step of the clock after the other."""
    distances = sorted(b - a for a, b in itertools.pairwise(times))
    usual = (distances[len(distances) // 2] + distances[(len(distances) - 1) // 2]) / 2 if distances else 0.0
    if fps is not None and usual > 1 / fps + 0.001:
        fps = None
    if max_gap is None:
        max_gap = max(0.5, 2 * usual) if fps is None else max(0.5, 2 / fps)
    parts: list[list[int]] = [[]]
    for place, time in enumerate(times):
        if place and not 0 <= time - times[place - 1] <= max_gap + 1e-6:
            parts.append([])
        parts[-1].append(place)
    return parts if fps is None else [_clocked(part, times, fps) for part in parts if part]


def _clocked(part: list[int], times: Sequence[float], fps: float) -> list[int]:
    taken, tick = [], 0
    while times[part[0]] + tick / fps <= times[part[-1]] + 1e-6:
        taken.append([place for place in part if times[place] <= times[part[0]] + tick / fps + 1e-6][-1])
        tick += 1
    return taken
