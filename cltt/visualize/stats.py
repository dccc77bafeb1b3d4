"""Counts clips, frames and windows of a data set, for given window settings and for others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cltt.config import WindowSettings
from cltt.errors import SettingsError
from cltt.sampling.windows import WindowIndex
from cltt.shards.folder import Dataset
from cltt.text import byte_size, counted
from cltt.visualize.views import Ids, clip_name

PIECE = 1 << 14  # frames read at a time; it bounds memory and sets the steps of the progress bar
STEPS = (1, 2, 5, 10, 20, 30)
STRIDES = (1, 2, 5, 10, 20)
EXAMPLES = 10  # clips named at most
HISTOGRAM_BINS = 30


def dataset_stats(dataset: Dataset, settings: WindowSettings, clips: Ids | None = None) -> dict[str, Any]:
    """Statistics of ``clips`` (default: all) of ``dataset`` as JSON values.

    Duplicates are pairs of neighbouring frames of a clip with equal file size and CRC. A clip is too short if it has no
    window with these settings.
    """
    clips = np.arange(dataset.num_clips, dtype=np.int64) if clips is None else clips
    lengths = np.asarray(dataset.clip_lengths)[clips]
    return {
        "clips": len(clips),
        "frames": int(lengths.sum()),
        **_frame_stats(dataset, clips),
        "clip_lengths": _length_stats(lengths),
        "window_settings": {**asdict(settings), "longest_step": settings.frame_steps[1], "span": settings.span},
        "windows": count_windows(lengths, settings),
        "too_short": _too_short(dataset, clips, lengths, settings),
        "windows_at": _windows_at(lengths, settings),
        "splits": [
            _group(dataset, name, np.intersect1d(dataset.split_clips(name), clips), settings)
            for name in dataset.split_names
        ],
        "labels": _label_groups(dataset, clips, settings),
        "odd": dataset.odd,
    }


def count_windows(lengths: Ids, settings: WindowSettings) -> int:
    """Windows in clips of ``lengths`` [clips] frames; 0 if no clip is long enough."""
    try:
        return len(WindowIndex(lengths, **asdict(settings)))
    except SettingsError:
        return 0


def _frame_stats(dataset: Dataset, clips: Ids) -> dict[str, Any]:
    """Bytes, frame sizes and duplicates of the frames of ``clips``."""
    chosen = np.zeros(dataset.num_clips, dtype=bool)
    chosen[clips] = True
    sizes: Counter[int] = Counter()
    duplicates: Counter[int] = Counter()
    total = 0
    for records, frame_clips, repeats in _pieces(dataset):
        keep = chosen[frame_clips]
        total += int(records["size"][keep].sum(dtype=np.int64))
        sizes.update(_counts(records["width"][keep].astype(np.int64) << 32 | records["height"][keep].astype(np.int64)))
        duplicates.update(_counts(frame_clips[keep & repeats]))
    return {
        "bytes": total,
        "frame_sizes": [
            {"width": shape >> 32, "height": shape & 0xFFFFFFFF, "frames": count}
            for shape, count in sizes.most_common()
        ],
        "duplicates": {
            "pairs": sum(duplicates.values()),
            "clips": len(duplicates),
            "most": [
                {"clip": clip_name(dataset, clip), "pairs": pairs} for clip, pairs in duplicates.most_common(EXAMPLES)
            ],
        },
    }


def _pieces(dataset: Dataset) -> Iterator[tuple[NDArray[Any], Ids, NDArray[np.bool_]]]:
    """Records, clip ids and "repeats the frame before" of all frames, PIECE at a time."""
    last_clip, last_crc, last_size = -1, 0, 0
    bar = tqdm(total=dataset.num_frames, desc="read", unit="frame", unit_scale=True, delay=2, leave=False, disable=None)
    for start in range(0, dataset.num_frames, PIECE):
        ids = np.arange(start, min(start + PIECE, dataset.num_frames), dtype=np.int64)
        clips, records = dataset.clip_of(ids), dataset.frame_records(ids)
        repeats = np.empty(len(ids), dtype=bool)
        repeats[0] = (last_clip, last_crc, last_size) == (clips[0], records["crc"][0], records["size"][0])
        repeats[1:] = (clips[1:] == clips[:-1]) & (records["crc"][1:] == records["crc"][:-1])
        repeats[1:] &= records["size"][1:] == records["size"][:-1]
        last_clip, last_crc, last_size = clips[-1], records["crc"][-1], records["size"][-1]
        yield records, clips, repeats & (records["width"] > 0)  # width 0: not an image
        bar.update(len(ids))
    bar.close()


def _counts(values: Ids) -> dict[int, int]:
    """How often each value occurs."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _length_stats(lengths: Ids) -> dict[str, Any]:
    """Shortest, median and longest clip, and a histogram with integer bins of equal width."""
    if len(lengths) == 0:
        return {"shortest": 0, "median": 0.0, "longest": 0, "histogram": {"edges": [], "clips": []}}
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high + 1 - low) // HISTOGRAM_BINS)
    edges = np.arange(low, high + 1 + width, width)
    counts, _ = np.histogram(lengths, edges)
    return {
        "shortest": low,
        "median": float(np.median(lengths)),
        "longest": high,
        "histogram": {"edges": edges.tolist(), "clips": counts.tolist()},
    }


def _too_short(dataset: Dataset, clips: Ids, lengths: Ids, settings: WindowSettings) -> dict[str, Any]:
    """Number of clips without a window, their frames, and the names of the first few."""
    short = np.flatnonzero(lengths < settings.span)
    examples = [
        {"clip": clip_name(dataset, int(clips[place])), "frames": int(lengths[place])} for place in short[:EXAMPLES]
    ]
    return {"clips": len(short), "frames": int(lengths[short].sum()), "examples": examples}


def _windows_at(lengths: Ids, settings: WindowSettings) -> dict[str, Any]:
    """Windows at other settings: ``windows[i][j]`` for frame step i and window stride j."""
    steps = sorted({*STEPS, settings.frame_steps[1]})
    strides = sorted({*STRIDES, settings.window_stride})
    table = [
        [count_windows(lengths, replace(settings, frame_step=step, window_stride=stride)) for stride in strides]
        for step in steps
    ]
    return {"frame_steps": steps, "window_strides": strides, "windows": table}


def _group(dataset: Dataset, name: str, clips: Ids, settings: WindowSettings) -> dict[str, Any]:
    lengths = np.asarray(dataset.clip_lengths)[clips]
    windows = count_windows(lengths, settings)
    return {"name": name, "clips": len(clips), "frames": int(lengths.sum()), "windows": windows}


def _label_groups(dataset: Dataset, clips: Ids, settings: WindowSettings) -> list[dict[str, Any]]:
    """One entry per label in their order, then one for clips without a label, if any."""
    if not dataset.label_names:
        return []
    labels = np.asarray(dataset.labels)[clips]
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(-1, len(dataset.label_names) + 1))
    parts = [clips[order[start:end]] for start, end in pairwise(bounds.tolist())]
    named = list(zip(dataset.label_names, parts[1:], strict=True))
    if len(parts[0]):
        named.append(("(none)", parts[0]))
    return [_group(dataset, name, part, settings) for name, part in named]


def stats_text(stats: dict[str, Any]) -> str:
    """The statistics as lines of text."""
    lengths, short, repeats = stats["clip_lengths"], stats["too_short"], stats["duplicates"]
    settings = stats["window_settings"]
    lines = [
        f"{counted(stats['clips'], 'clip')}, {counted(stats['frames'], 'frame')}, {byte_size(stats['bytes'])}",
        f"clip length: {lengths['shortest']:,} to {counted(lengths['longest'], 'frame')}, "
        f"median {lengths['median']:,.0f}",
        f"frame sizes: {sizes_text(stats['frame_sizes'])}",
        f"windows: {stats['windows']:,} at size {settings['window_size']}, step {settings['frame_step']}, "
        f"stride {settings['window_stride']} (span {counted(settings['span'], 'frame')})",
        f"too short for a window: {counted(short['clips'], 'clip')} with {counted(short['frames'], 'frame')}"
        + named_list([f"{item['clip']} ({item['frames']})" for item in short["examples"]], short["clips"]),
        f"frames that repeat the one before: {repeats['pairs']:,}, in {counted(repeats['clips'], 'clip')}"
        + named_list([f"{item['clip']} ({item['pairs']})" for item in repeats["most"]], repeats["clips"]),
        *_table_lines(stats["windows_at"]),
        *_group_lines("split", stats["splits"]),
        *_group_lines("label", stats["labels"]),
        *(f"odd: {line}" for line in stats["odd"]),
    ]
    return "\n".join(lines)


def named_list(names: list[str], total: int) -> str:
    if not names:
        return ""
    return ": " + ", ".join(names) + (" ..." if total > len(names) else "")


def sizes_text(sizes: list[dict[str, int]]) -> str:
    shown = [f"{size_name(size)} ({size['frames']:,})" for size in sizes[:EXAMPLES]]
    rest = len(sizes) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def size_name(size: dict[str, int]) -> str:
    """``WIDTHxHEIGHT`` of an entry of ``frame_sizes``.

    ``no picture`` for files that are not images.
    """
    return f"{size['width']}x{size['height']}" if size["width"] else "no picture"


def _table_lines(table: dict[str, Any]) -> list[str]:
    """Windows at other settings as an aligned table, one line per frame step."""
    wide = max(10, *(len(f"{count:,}") + 2 for row in table["windows"] for count in row))
    head = "step \\ stride".ljust(14) + "".join(f"{stride:>{wide}}" for stride in table["window_strides"])
    rows = zip(table["frame_steps"], table["windows"], strict=True)
    body = [f"{step:>13} " + "".join(f"{count:>{wide},}" for count in row) for step, row in rows]
    return ["windows at other frame steps and window strides:", head, *body]


def _group_lines(kind: str, groups: list[dict[str, Any]]) -> list[str]:
    return [
        f"{kind} {group['name']}: {counted(group['clips'], 'clip')}, {counted(group['frames'], 'frame')}, "
        f"{counted(group['windows'], 'window')}"
        for group in groups
    ]
