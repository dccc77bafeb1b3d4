"""What a build reports: of a complete set, of a plan, or of the share of one task."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cltt.packing.labels import NONE, label_clips, odd_tables, split_clips, split_names
from cltt.packing.pack import PART_DTYPE, read_part
from cltt.packing.plan import Plan
from cltt.shards import layout
from cltt.source.odd import odd_lines
from cltt.source.videos import READ
from cltt.text import counted

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BuildReport:
    """What a build gave, over the whole set; after a task its share of it; after a dry run what is planned.

    Attributes:
        path: the folder of the shards.
        clips, frames, bytes, shards: counts; bytes is the size of all shards; if only planned, of all source files,
            of videos what their frames are likely to have. A task counts the clips of which it packed a frame, before
            any is cut.
        reencoded: frames that are not the source's bytes.
        skipped: files left out, counted by reason; read: videos, counted by the way in which their frames were listed.
        clip_lengths: int64 [clips], frames of each clip.
        splits, labels: clips by split and by label; empty without splits or labels, and after a task.
        boxes: (frames that have one, rows of the table that fit no frame); None without boxes.
        cut: (clips as they lie in the source that were cut, the parts they gave), at invalid frames or gaps.
        odd: what looks odd, a line each: how many, an example, what to do.
        already_complete: nothing was built, as a set of the same settings was there; the source was not compared.
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
    """How often each of ``names`` is meant by ``numbers``, NONE left out."""
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
    """Of the complete set in ``out``."""
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
    """Of all that is planned, as if every file were a whole picture."""
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
    """Of the packed ``shards`` alone."""
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
