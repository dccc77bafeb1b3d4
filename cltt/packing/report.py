"""What a build prints and returns: progress, a line about large frames, and reports of sets, plans and tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cltt.errors import CLTTError
from cltt.frames.geometry import Framing
from cltt.packing.labels import NONE, label_clips, odd_tables, split_clips, split_names
from cltt.packing.pack import PART_DTYPE, Progress, read_part
from cltt.packing.plan import Plan
from cltt.shards import layout
from cltt.source import image
from cltt.source.clips import FrameReader
from cltt.source.odd import odd_lines
from cltt.source.videos import READ
from cltt.text import byte_size, counted, say

Array = np.ndarray[Any, Any]
LINE_SECONDS = 60.0
LARGE = 1.5  # short side of a large frame, as a multiple of the size that a network will see
SAMPLE = 8  # frames measured to estimate what smaller ones would save


@dataclass(frozen=True)
class BuildReport:
    """The result of a build: of the whole set, after a task of its shards alone, after a dry run of the plan.

    Attributes:
        path: the folder of the shards.
        clips, frames, bytes, shards: counts; bytes is the size of all shards. After a dry run it is the size of all
            source files, and an estimate for the frames of videos. A task counts the clips of which it packed a frame,
            not cut at invalid frames.
        reencoded: frames whose bytes are not those of the source.
        skipped: files left out, counted by reason.
        clip_lengths: int64 [clips], frames per clip.
        splits, labels: clips per split and per label; empty without splits or labels, and after a task.
        boxes: (frames with a box, rows of the table that fit no frame); None without boxes.
        cut: (source clips that were cut, the clips made of them), at invalid frames or gaps.
        odd: what looks odd, one line per kind: how many, an example, what to do.
        read: videos, counted by how their frames were listed.
        already_complete: a set of the same settings was there, so nothing was built; the source was not compared.
    """

    path: Path
    clips: int
    frames: int
    bytes: int
    shards: int
    reencoded: int
    skipped: dict[str, int]
    clip_lengths: Array = dataclasses.field(repr=False, compare=False)
    splits: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    boxes: tuple[int, int] | None = None
    cut: tuple[int, int] = (0, 0)
    odd: list[str] = dataclasses.field(default_factory=list)
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    already_complete: bool = dataclasses.field(default=False, compare=False)

    def __str__(self) -> str:
        """``2 clips, 300 frames, 6.1 MB in 1 shard``."""
        return (
            f"{counted(self.clips, 'clip')}, {counted(self.frames, 'frame')}, {self.bytes / 1e6:,.1f} MB "
            f"in {counted(self.shards, 'shard')}"
        )


def _tally(numbers: Array, names: list[str]) -> dict[str, int]:
    """Counts by name of ``numbers``, which are positions in ``names`` or NONE."""
    counts = np.bincount(numbers[numbers != NONE], minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _cut(folders: Array) -> tuple[int, int]:
    """(folders cut, parts they gave), from the folder of each clip."""
    parts = np.bincount(folders)
    return int((parts > 1).sum()), int(parts[parts > 1].sum())


def _count(plan: Plan, wanted: str) -> dict[str, int]:
    """Reasons of one kind of note, counted."""
    return dict(sorted(Counter(reason for _, what, reason in plan.notes() if what == wanted).items()))


def built_report(out: Path, index: dict[str, Any]) -> BuildReport:
    """The report of the complete set in ``out``."""
    counts, clips = index["counts"], np.load(out / layout.CLIPS)
    return BuildReport(
        path=out,
        clips=counts["clips"],
        frames=counts["frames"],
        bytes=counts["bytes"],
        shards=len(index["shards"]),
        reencoded=sum(counts["reencoded"].values()),
        skipped=counts["skipped"],
        clip_lengths=clips[layout.CLIP_LENGTH],
        splits=_tally(clips[layout.CLIP_SPLIT], index["split_names"]),
        labels=_tally(clips[layout.CLIP_LABEL], index["label_names"]),
        boxes=(counts["boxes"]["used"], counts["boxes"]["unused"]) if "boxes" in counts else None,
        cut=_cut(clips[layout.CLIP_KEY]),
        odd=index.get("odd", []),
        read=counts.get(READ, {}),
    )


def planned_report(plan: Plan, out: Path) -> BuildReport:
    """The report of a plan, as if every file were a valid image."""
    folders = plan.frames["clip"][:-1]
    starts = np.flatnonzero(plan.frames["gap"][:-1] | (np.diff(folders, prepend=-1) != 0))
    clips = folders[starts].astype(np.int64)
    keys = [key.decode(errors="surrogateescape") for key in plan.keys(0, plan.num_clips)]
    labels, label_names = label_clips(keys, plan.settings)
    return BuildReport(
        path=out,
        clips=len(clips),
        frames=plan.num_frames,
        bytes=plan.num_bytes,
        shards=plan.num_shards,
        reencoded=0,
        skipped=_count(plan, "skipped"),
        clip_lengths=np.diff(starts, append=plan.num_frames).astype(np.int64),
        splits=_tally(split_clips(keys, plan.settings)[clips], split_names(plan.settings["splits"])),
        labels=_tally(labels[clips], label_names),
        cut=_cut(clips),
        odd=odd_lines([*plan.odd, *odd_tables(keys, plan.settings)]),
        read=_count(plan, READ),
    )


def task_report(plan: Plan, out: Path, shards: list[int]) -> BuildReport:
    """The report of the packed ``shards`` alone."""
    frames: Counter[int] = Counter()
    notes: dict[str, Counter[str]] = {"skipped": Counter(), "reencoded": Counter()}
    size = 0
    for shard in shards:
        summary, rows = read_part(out, shard)
        planned = plan.shard_frames(shard)
        good = np.frombuffer(rows, PART_DTYPE)["good"]
        frames.update(plan.frames["clip"][planned.start : planned.stop][good].tolist())
        for _, what, reason in summary["notes"]:
            notes[what][reason] += 1
        size += summary["size"]
    return BuildReport(
        path=out,
        clips=len(frames),
        frames=frames.total(),
        bytes=size,
        shards=len(shards),
        reencoded=notes["reencoded"].total(),
        skipped=dict(sorted(notes["skipped"].items())),
        clip_lengths=np.array([frames[clip] for clip in sorted(frames)], np.int64),
    )


# ---- large frames


def suggest_resize(plan: Plan, image_size: int) -> None:
    """Print what ``--resize-short`` would save, if most frames are large for a network that sees ``image_size`` pixels.

    A frame is large if its short side is at least LARGE times ``image_size``. A few frames are read, decoded and
    encoded to estimate it; frames that cannot be read do not count, as packing will report them.
    """
    if plan.settings["resize_short"] is not None:
        return
    frames = _sample(plan)
    large = [frame for frame in frames if min(frame.width, frame.height) >= LARGE * image_size]
    if 2 * len(large) <= len(frames):
        return
    framing = Framing(image_size=image_size, margin=True)
    smaller = [image.as_stored(frame.data, verify="header", resize_short=framing.short) for frame in frames]
    (size, seconds), (less, faster) = (_cost(some, image_size) for some in (frames, smaller))
    kinds = Counter(f"{frame.width}x{frame.height}" for frame in large)
    say(
        f"frames are large for --image-size {image_size} ({kinds.most_common(1)[0][0]}): --resize-short "
        f"{framing.short} would store {byte_size(less * plan.num_frames)} instead of "
        f"{byte_size(size * plan.num_frames)} and decode a frame in {faster / seconds:.0%} of the time, by a sample of "
        f"{counted(len(frames), 'frame')}; another set would be built for it, so stop this build (Ctrl-C) first"
    )


def _sample(plan: Plan) -> list[image.Stored]:
    """A few evenly spread frames, as shards would store them."""
    options = {name: plan.settings[name] for name in ("resize_short", "quality", "max_pixels")}
    reader = FrameReader(plan.root, plan.largest, verify="header", **options)
    found = []
    try:
        for frame in plan.sample(SAMPLE):
            with contextlib.suppress(CLTTError):
                found += [stored for _, stored in reader.read([frame]) if isinstance(stored, image.Stored)]
    finally:
        reader.close()
    return found


def _cost(frames: list[image.Stored], image_size: int) -> tuple[float, float]:
    """Median (bytes per frame, seconds of CPU time to decode a frame at ``image_size``): one frame may be huge."""
    from cltt.frames.decode_cpu import FrameDecoder  # not at the top: it imports OpenCV, which few builds need

    decoder = FrameDecoder(Framing(image_size=image_size))
    decoder.frame(frames[0].data)  # not timed: the first call also sets up the decoder
    seconds = []
    for frame in frames:
        start = time.thread_time()
        decoder.frame(frame.data)
        seconds.append(time.thread_time() - start)
    return statistics.median(len(frame.data) for frame in frames), statistics.median(seconds)


# ---- progress


@contextlib.contextmanager
def progress_bar(frames: int) -> Iterator[Progress]:
    """A function that adds progress to a bar on a terminal, or to one line per minute in a log file."""
    with tqdm(total=frames, desc="pack", unit=" frames", disable=None, smoothing=0.05) as bar:
        done, packed, watched = 0, 0, 0.0
        began = told = time.monotonic()

        def progress(count: int, size: int, video: float) -> None:
            nonlocal done, packed, watched, told
            done, packed, watched = done + count, packed + size, watched + video
            seconds = max(1e-3, time.monotonic() - began)
            rate = f"{watched / 3600:.2f} h of video" if watched else f"{packed / 1e6 / seconds:.0f} MB/s"
            bar.set_postfix_str(rate, refresh=False)
            bar.update(count)
            if bar.disable and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                left = seconds / max(done, 1) * (frames - done) / 60
                say(f"packed {done:,} of {counted(frames, 'frame')}, {rate}, {left:.0f} min left")

        yield progress
