"""Building shards from clip folders and videos, in three steps: plan, pack, merge.

A killed build continues when it is started again. ``build_shards`` does all steps on one machine. On a cluster, each
task of a job array packs its share of the shards of one common plan (``task="2/8"``), and a last call
(``finalize=True``) merges and publishes. ``out_dir/.build`` holds the plan, a part of the index per finished shard, and
locks; it is removed when ``index.json`` has been written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cltt.config import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE, require_within
from cltt.errors import CLTTError, DataError, SettingsError
from cltt.files import atomic, owned
from cltt.files.locks import locked_in
from cltt.files.regular import check_path, is_regular
from cltt.files.retry import IO_PATIENCE, set_policy
from cltt.packing import labels
from cltt.packing.merge import merge
from cltt.packing.pack import is_done
from cltt.packing.plan import PLAN, Plan
from cltt.packing.plan_writer import make_plan, regroup
from cltt.packing.report import BuildReport, built_report, planned_report, progress_bar, suggest_resize, task_report
from cltt.packing.settings import BuildSettings, with_defaults
from cltt.packing.workers import pack_shards
from cltt.shards import checks, layout
from cltt.source.image import MAX_PIXELS
from cltt.text import changes, shorten

PathLike = str | os.PathLike[str]
LOCK = "build.lock"
MAX_WORKERS = 1024


def build_shards(
    root_dir: PathLike,
    out_dir: PathLike,
    *,
    workers: int | None = None,
    verify: str = "decode",
    resize_short: int | None = None,
    quality: int = 90,
    shard_size: int = 1 << 30,
    splits: str | Mapping[str, float] | None = None,
    split_by: str = "clip",
    split_seed: int = 0,
    label_from: str | None = None,
    split_gaps: bool = False,
    fps: float | None = None,
    max_gap: float | None = None,
    boxes: str | None = None,
    max_pixels: int = MAX_PIXELS,
    io_patience: float = IO_PATIENCE,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    stream: int | None = None,
    boxes_unit: str = "pixel",
    image_size: int = 224,
    task: str | None = None,
    finalize: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> BuildReport:
    """Pack frames of image folders and videos under ``root_dir`` into shards in ``out_dir``.

    An unfinished build of the same settings continues.

    Args:
        workers: packing processes; None: one per core that this process may use. At most one per shard.
        verify: of JPEGs that are stored as they are, "decode" checks every bit, "header" only the header and the end.
        resize_short: the short side of a stored frame has at most this many pixels: larger frames are reduced, and all
            are stored as JPEG of ``quality``. None: JPEGs are stored as they are; those that a hardware decoder could
            not show upright, and other formats, become JPEGs of quality 95. Frames of videos are stored as JPEG of
            ``quality`` in any case.
        shard_size: bytes of a shard as if its source files were stored as they are, even if frames are stored smaller.
            A frame of a video counts with the estimated size of its JPEG.
        splits: shares of the clips, ``{"train": 0.9, "val": 0.1}`` or ``"train=0.9,val=0.1"``; ``split_by`` "parent"
            keeps the clips of one parent folder together; another ``split_seed`` gives another split. Or "csv:FILE"
            with two columns, a clip key (the path of its folder or video below ``root_dir``) or a folder above it, and
            its split; clips that the file does not name are in no split.
        label_from: "parent" (the path of the folder that holds the clip, or of the clip if it is directly in
            ``root_dir``), "regex:PATTERN" (searched in the clip's key: its first group, or the whole match) or
            "csv:FILE" (columns clip key and label).
        split_gaps: a frame number (the last digits of the name) that is not one usual step more than the one before
            starts a new clip. The usual step is that of at least half of the folder's frames, else 1. A number that
            comes twice, as in frame_5.jpg and frame_000005.jpg, starts none.
        fps: frames per second taken of videos; None: every frame. Sample k of a part (what lies between two cuts,
            see ``max_gap``) is the last frame shown at or before k/fps seconds after the part's first frame. So a frame
            step is the same time in all videos of at least this rate; of slower ones every frame is taken.
        max_gap: cut the clip of a video where no frame comes for longer than this, in seconds; None: the larger of 0.5
            and 2/fps or, without ``fps`` or in a video slower than it, the larger of 0.5 and twice the median
            distance of its frames.
        boxes: "csv:FILE" (columns frame,x1,y1,x2,y2, or frame,x,y for a point). frame is as
            ``ShardDataset.frame_name`` returns it; the numbers are pixels of the upright source or, with ``boxes_unit``
            "share", shares of its width and height. The boxes are stored in the index, relative to the size of the
            frame (``ShardDataset.frame_boxes``). A row is no box if all its numbers are -1, if one is NaN or empty, or
            if the box or point lies wholly outside the frame.
        max_pixels: an image with more pixels by its header is left out, before it takes memory.
        include, exclude: patterns of paths below ``root_dir`` (fnmatch; ``*`` also matches ``/``), as in
            ``["cam0/*"]``: only files that fit one of ``include`` (None: all) and none of ``exclude`` are taken.
        stream: number of the video stream to take of each video, from 0; None: the largest that is no thumbnail.
        io_patience: seconds for which this process retries reads that fail with a transient error (EIO, ESTALE ...).
            The last call that sets it holds for the whole process.
        image_size: side in pixels at which a network will see the frames. If the short side of most is at least 1.5
            times this, a printed line says what ``resize_short`` would save; the shards do not depend on it.
        task: "I/N" with I from 0 packs only the shards I, I+N, I+2N ... and publishes nothing.
        finalize: packs nothing; merges and publishes what the tasks have packed.
        overwrite: build anew. A complete set in ``out_dir`` is removed once the new one is planned, an unfinished build
            at once.
        dry_run: only scan, write nothing. Files that packing would find invalid still count.

    A complete set of the same ``root_dir`` and settings is left as it is, without a look at its source;
    ``verify_shards`` with ``source_dir`` compares it with the source. An unfinished build may continue with other
    labels, splits and boxes, as they change no shard; tasks and ``finalize`` must agree on all settings.

    Raises SettingsError for settings that cannot work (such as a ``label_from`` that fits no clip), for settings that
    differ from those of the shards in ``out_dir``, and for an ``out_dir`` that holds files that no build wrote: these
    are never deleted or replaced. Raises DataError, naming the file, for a source that cannot be read or has changed
    since the plan was made, for a disk that is full or cannot be written, and for an ``out_dir`` that another process
    is building. A build that is refused before packing removes what it has written.
    """
    given = locals()
    settings = _settings({field.name: given[field.name] for field in dataclasses.fields(BuildSettings)})
    share = _parse_task(task)
    _check_mode(share, finalize, overwrite, dry_run)
    require_within("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    if workers is not None:
        require_within("workers", workers, 1, MAX_WORKERS)
    set_policy(io_patience)
    check_path(root_dir, "root_dir")
    check_path(out_dir, "out_dir")
    root, out = os.path.realpath(root_dir), Path(out_dir)
    if dry_run:
        return _dry_run(root, out, settings, image_size)
    if not overwrite and (finished := _finished(root, out, settings)):
        _remove_leftovers(out)
        return finished
    _check_out(out)
    with _nothing_left_if_refused(out), _locked(out, LOCK, shared=share is not None), _task_lock(out, share):
        if overwrite:
            if not (out / layout.INDEX).exists():  # shards of a build that did not end
                _remove_set(out)
            _remove_work(out)
        elif finished := _finished(root, out, settings):  # another process may have finished it meanwhile
            owned.remove(out / layout.BUILD)
            return finished
        if finalize and not (out / layout.BUILD / PLAN).exists():
            raise DataError(f"{out} holds no plan, so nothing to finalize; run the tasks first")
        plan = _open_plan(root, out, settings, image_size, alone=not (share or finalize))
        if overwrite:  # not earlier: if the source or a setting is refused, a complete set stays
            _remove_set(out)
        if finalize:
            return _publish(plan, out)
        shards = _pack(plan, out, share or slice(None), workers or _cores())
        return task_report(plan, out, shards) if share else _publish(plan, out)


# ---- settings


def _check_mode(share: slice | None, finalize: bool, overwrite: bool, dry_run: bool) -> None:
    """Raise SettingsError for modes that exclude each other; ``share``: the shards of one task, None: all."""
    if (share is not None) + finalize + dry_run > 1:
        raise SettingsError("task, finalize and dry_run exclude each other; give one of them")
    if overwrite and (share is not None or finalize):
        raise SettingsError(
            "overwrite would remove what the other tasks build; remove the old shards before the tasks start"
        )


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The checked settings as index.json stores them, with a hash of each CSV file that a setting names."""
    if isinstance(given["splits"], Mapping):
        given["splits"] = ",".join(f"{name}={share}" for name, share in given["splits"].items())
    settings = BuildSettings(**given).kept()
    for name in ("fps", "max_gap"):
        settings[name] = None if settings[name] is None else float(settings[name])  # 5 and 5.0 are the same setting
    labels.check_rules(settings)
    for name, hash_name in labels.TABLES.items():
        file = labels.table_of(settings[name])
        settings[hash_name] = None if file is None else atomic.file_sha256(Path(file))
    return settings


def _parse_task(task: str | None) -> slice | None:
    """The slice I, I+N, ... of the shards for ``"I/N"``."""
    if task is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", task)
    if match is None or not int(match[1]) < int(match[2]):
        raise SettingsError(f"task is {shorten(task, 40)!r}; it must be I/N with I from 0 to N-1, as in 0/8")
    return slice(int(match[1]), None, int(match[2]))


def _changes(settings: dict[str, Any], root: str, theirs: dict[str, Any], their_root: str) -> str:
    """A phrase that names the settings that differ from those in ``out_dir``; empty if none."""
    before, now = with_defaults(theirs), with_defaults(settings)
    return "; ".join(changes({"root_dir": their_root, **before}, {"root_dir": root, **now}))


# ---- the contents of out_dir


def _finished(root: str, out: Path, settings: dict[str, Any]) -> BuildReport | None:
    """The report of the complete set in ``out``, or None. SettingsError if its settings differ."""
    if not (out / layout.INDEX).exists():
        return None
    index = checks.read_index(out)
    if changed := _changes(settings, root, index["settings"], index["root_dir"]):
        raise SettingsError(f"{out} holds other shards ({changed}); use --overwrite or another folder")
    return dataclasses.replace(built_report(out, index), already_complete=True)


def _remove_leftovers(out: Path) -> None:
    """Remove the working files that a killed build left in a complete set.

    The build was killed after it had published this set or, with ``overwrite``, before it had removed it.
    """
    working = out / layout.BUILD
    if not os.access(out, os.W_OK):
        return  # a read-only set can be used, too
    if owned.is_owned(working) or owned.is_empty(working):
        with _locked(out, LOCK):
            owned.remove(working)
    with contextlib.suppress(OSError):
        owned.remove_leftovers(working)


def discard_unfinished(out: Path) -> None:
    """Remove an unfinished build in ``out``. Raises BusyError if a process is building there."""
    _check_out(out)
    with _locked(out, LOCK):
        if not (out / layout.INDEX).exists():
            _remove_set(out)
            _remove_work(out)


def _check_out(out: Path) -> None:
    """Raise SettingsError if ``out`` holds anything that is not certainly written by a build."""
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is not a folder; give a folder for the shards")
    if not out.is_dir():
        return
    working = out / layout.BUILD
    names = [name for name in os.listdir(out) if name != working.name and not owned.is_leftover(working, name)]
    strange = sorted(name for name in names if not (layout.is_our_file(name) and is_regular(out / name)))
    if strange:
        raise SettingsError(f"{out} holds other files ({', '.join(strange[:3])}); give a folder for the shards alone")
    if names and not owned.is_owned(working) and not layout.is_set_of_ours(out):
        raise SettingsError(
            f"{out} holds files named like shards ({min(names)}), but neither index.json nor a .build folder of "
            "cltt; remove them yourself or give another folder"
        )


def _remove_set(out: Path) -> None:
    """Remove the shards and the index in ``out``.

    ``index.json`` goes first, as it lists the other files.
    """
    (out / layout.INDEX).unlink(missing_ok=True)
    for path in out.iterdir():
        if layout.is_our_file(path.name):
            path.unlink()


def _remove_work(out: Path) -> None:
    """Remove the plan and the parts of an unfinished build in ``out``; locks and the marker stay."""
    for path in (out / layout.BUILD).iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != ".lock" and path.name != owned.MARKER:
            path.unlink()


@contextlib.contextmanager
def _nothing_left_if_refused(out: Path) -> Iterator[None]:
    """On an error before there is a plan, remove the working files, and ``out`` if it is new."""
    was_there = out.exists()
    try:
        yield
    except BaseException:
        if not (out / layout.BUILD / PLAN).exists():
            with contextlib.suppress(CLTTError, OSError), _locked(out, LOCK):  # unless another process is building
                if not (out / layout.BUILD / PLAN).exists():
                    owned.remove(out / layout.BUILD)
        if not was_there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _open_plan(root: str, out: Path, settings: dict[str, Any], image_size: int, *, alone: bool) -> Plan:
    """The plan in ``out``; if there is none, one task makes it while the others wait.

    Only a build ``alone`` (without ``task`` and ``finalize``) may change the labels, splits and boxes of a plan.
    """
    folder = out / layout.BUILD / PLAN
    with _locked(out, "plan.lock", wait=True):
        if not folder.exists():
            make_plan(root, folder, settings)
            suggest_resize(Plan(folder), image_size)
    plan = Plan(folder)
    asked = with_defaults(settings)
    alike = {name: asked[name] for name in labels.SETTINGS} if alone else {}  # these may differ from the plan's
    if changed := _changes(settings, root, plan.settings | alike, plan.root_dir):
        hint = "use --overwrite" if alone else "give the settings of the plan, or remove the folder and plan again"
        raise SettingsError(f"{out} holds an unfinished build with other settings ({changed}); {hint}")
    return plan if plan.settings == settings else regroup(plan, settings)


# ---- the steps


def _pack(plan: Plan, out: Path, share: slice, workers: int) -> list[int]:
    """Pack a share of the shards; returns their numbers."""
    shards = list(range(plan.num_shards)[share])
    with progress_bar(sum(len(plan.shard_frames(shard)) for shard in shards)) as progress:
        pack_shards(plan, out, shards, workers, progress)
    return shards


def _dry_run(root: str, out: Path, settings: dict[str, Any], image_size: int) -> BuildReport:
    with tempfile.TemporaryDirectory() as folder:
        make_plan(root, Path(folder) / PLAN, settings)
        plan = Plan(Path(folder) / PLAN)
        suggest_resize(plan, image_size)
        return planned_report(plan, out)


def _task_lock(out: Path, share: slice | None) -> contextlib.AbstractContextManager[None]:
    """A lock that keeps a task of a job array from running twice at the same time."""
    return _locked(out, f"task-{share.start}-of-{share.step}.lock") if share else contextlib.nullcontext()


def _locked(out: Path, name: str, **options: bool) -> contextlib.AbstractContextManager[None]:
    return locked_in(out / layout.BUILD, name, held=f"{out} is being built", **options)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _publish(plan: Plan, out: Path) -> BuildReport:
    missing = [layout.shard_name(shard) for shard in range(plan.num_shards) if not is_done(out, shard)]
    if missing:
        raise DataError(
            f"{len(missing)} of {plan.num_shards} shards are missing ({missing[0]} ...); run their tasks again"
        )
    index = merge(plan, out)
    owned.remove(out / layout.BUILD)
    return built_report(out, index)
