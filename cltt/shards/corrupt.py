"""Reading every frame of a data set to find the corrupt ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cltt.errors import FrameError, InvalidImage
from cltt.files.threads import ordered_map
from cltt.shards.folder import Dataset
from cltt.source import image, jpeg, pixels
from cltt.text import counted

Ids = NDArray[np.int64]
PIECE = 256  # frames a thread reads at a time
NAMED = 20  # lines of frames for one reason
AHEAD = 4  # pieces in flight for each thread


def corrupt_frames(dataset: Dataset, clips: Ids, *, decode: bool = False, threads: int = 4) -> list[FrameError]:
    """Read every frame of ``clips`` and check its CRC; with ``decode``, decode it too; the corrupt, in data order."""
    pieces = (
        np.arange(first, min(first + PIECE, end), dtype=np.int64)
        for clip in clips.tolist()
        for end in [int(dataset.clip_offsets[clip + 1])]
        for first in range(int(dataset.clip_offsets[clip]), end, PIECE)
    )
    total = int((dataset.clip_offsets[clips + 1] - dataset.clip_offsets[clips]).sum())
    corrupt: list[FrameError] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=total, unit="frame", delay=2, leave=False, disable=None) as bar,
    ):
        checked = ordered_map(pool, lambda ids: (len(ids), _check(dataset, ids, decode)), pieces, threads * AHEAD)
        for count, found in checked:
            corrupt += found
            bar.update(count)
    return corrupt


def _check(dataset: Dataset, ids: Ids, decode: bool) -> list[FrameError]:
    corrupt = []
    for frame, data in zip(ids.tolist(), dataset.read_each(ids), strict=True):
        if isinstance(data, FrameError):
            corrupt.append(data)
        elif decode and (problem := decode_problem(data)):
            corrupt.append(FrameError(frame, dataset.frame_name(frame), problem))
    return corrupt


def decode_problem(data: bytes) -> str:
    """Why a stored frame cannot be decoded, every bit of it; empty if it can."""
    try:
        info = jpeg.jpeg_info(data)
        image.check_pixels(info.width, info.height, image.MAX_PIXELS)
        jpeg.check_scans(data, info)
        pixels.check_every_bit(data)
    except InvalidImage as error:
        return str(error)
    return ""


def corrupt_text(corrupt: list[FrameError]) -> list[str]:
    """Lines to read: for each reason (it names the shard, where there is one) how many frames, and which.

    A frame that is alone with its reason has one line. Neighbours of one name share a line: a missing shard takes the
    names of its frames with it, but not their clip.
    """
    reasons: dict[str, list[FrameError]] = {}
    for error in corrupt:
        reasons.setdefault(error.reason, []).append(error)
    lines = []
    for reason, errors in reasons.items():
        if len(errors) == 1:
            lines.append(str(errors[0]))
            continue
        lines.append(f"{counted(len(errors), 'frame')}: {reason}")
        runs = _runs(errors)
        lines += [f"  {_frames_text(run)}" for run in runs[:NAMED]]
        if rest := sum(map(len, runs[NAMED:])):
            lines.append(f"  and {counted(rest, 'frame')} more; --json names all")
    return lines


def _runs(errors: list[FrameError]) -> list[list[FrameError]]:
    """Neighbouring frames of one name together."""
    runs: list[list[FrameError]] = []
    for error in errors:
        if runs and (error.name, error.frame_id) == (runs[-1][-1].name, runs[-1][-1].frame_id + 1):
            runs[-1].append(error)
        else:
            runs.append([error])
    return runs


def _frames_text(run: list[FrameError]) -> str:
    first, last = run[0].frame_id, run[-1].frame_id
    return f"frame {first} ({run[0].name})" if first == last else f"frames {first} to {last} ({run[0].name})"
