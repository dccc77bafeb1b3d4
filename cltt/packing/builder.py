"""Build shards from clip folders: plan, pack, merge; each step can be killed and started again.

``build_shards`` does all of it on one machine. On many, each task of a job array packs its share of the shards of one
common plan (``task="2/8"``), and a last call (``finalize=True``) merges and publishes. What lies in ``out_dir/.build``
meanwhile is the plan, a part of the index for each finished shard, and locks; it goes when ``index.json`` is written.
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
from cltt.packing.report import BuildReport, built_report, planned_report, progress_bar, resize_line, task_report
from cltt.packing.settings import BuildSettings, with_defaults
from cltt.packing.workers import Worker, pack_shards, started_workers
from cltt.shards import checks, layout
from cltt.source.image import MAX_PIXELS
from cltt.text import changes, say, shorten

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
    """Pack the frames under ``root_dir``, of folders of pictures and of videos, into shards in ``out_dir``.

    A build that was broken off goes on.

    Args:
        workers: packing processes; None: as many as there are cores for this process. There are never more than shards.
        verify: "decode" reads every bit of each frame, "header" only its markers and its end.
        resize_short: store frames with this short side (pixels), as JPEG of ``quality``; None: store them as they are.
            Frames of videos are stored as JPEG of ``quality`` in any case.
        shard_size: bytes of source files in a shard; it is cut by these, whatever the frames become. A frame of a video
            counts as many as its JPEG is likely to have.
        splits: shares of the clips, ``{"train": 0.9, "val": 0.1}`` or ``"train=0.9,val=0.1"``; ``split_by`` "parent"
            keeps the clips of one parent folder together; another ``split_seed`` gives another split. Or "csv:FILE"
            (columns clip key, or a folder of clips, and split); what it does not name is in no split.
        label_from: "parent" (the folder that holds the clip; the clip itself if that is the root),
            "regex:PATTERN" (its first group, searched in the clip's key) or "csv:FILE" (columns clip key and label).
        split_gaps: a jump in the frame numbers (the last digits of the names) starts a new clip; a number that comes
            twice, as in frame_5.jpg and frame_000005.jpg, is no jump.
        fps: frames a second taken of videos; None: every frame. Frame k of a part is the last one shown at or before
            k/fps seconds from the part's first, so a step of frames is the same time everywhere.
        max_gap: seconds without a frame at which the clip of a video is cut; None: the larger of 0.5 and 2/fps, or
            without ``fps`` of 0.5 and twice the usual distance of its frames.
        boxes: "csv:FILE" (columns frame,x1,y1,x2,y2, or frame,x,y for a point; frame as ``frame_name`` gives it; pixels
            of the upright source, or with ``boxes_unit`` "share" shares of its width and height) is kept with the
            frames, relative to their size (``ds.frame_boxes``). -1, NaN, nothing, or a place outside is no box.
        max_pixels: a picture of more pixels is left out, by its header, before memory is taken for it.
        include, exclude: patterns of paths below ``root_dir`` (fnmatch; ``*`` stands for ``/`` too), as in
            ``["cam0/*"]``: only files that fit one of ``include`` (None: all) and none of ``exclude`` are taken.
        stream: number of the video stream to take of each video, from 0; None: the largest that is no thumbnail.
        io_patience: seconds for which all reads of this process that fail with a transient error (EIO, ESTALE ...) are
            tried again, from now on. Whatever sets it last in a process holds.
        image_size: side of the frames that a network will see: where frames are at least 1.5 times as large, a line
            says what ``resize_short`` would save. It changes nothing that is built.
        task: "I/N" with I from 0 packs only the shards I, I+N, I+2N ... and publishes nothing.
        finalize: packs nothing; merges and publishes what the tasks have packed.
        overwrite: replace what an earlier build left in ``out_dir``.
        dry_run: only scan; write nothing. What is found invalid when packed is not known yet.

    A complete set of the same ``root_dir`` and settings is left as it is (``verify_shards`` compares it file by file).
    A build that was broken off goes on with other labels, splits and boxes, as they change nothing that is packed;
    tasks and ``finalize`` must agree on all.

    Raises SettingsError for settings that cannot work, among them a ``label_from`` that fits no clip, or are not those
    of what lies in ``out_dir``; DataError, naming the file, for a source that cannot be read or has changed since the
    plan was made, for a disk that is full or may not be written, and for an ``out_dir`` that another process is
    building. A build refused before anything is packed leaves nothing behind. Nothing in ``out_dir`` is deleted or
    replaced but what a build wrote there: SettingsError, with nothing touched, if it holds anything else.
    """
    settings = _settings(
        verify=verify,
        resize_short=resize_short,
        quality=quality,
        shard_size=shard_size,
        splits=_splits_text(splits),
        split_by=split_by,
        split_seed=split_seed,
        label_from=label_from,
        split_gaps=split_gaps,
        fps=fps,
        max_gap=max_gap,
        boxes=boxes,
        max_pixels=max_pixels,
        include=include,
        exclude=exclude,
        stream=stream,
        boxes_unit=boxes_unit,
    )
    mode = _Mode(_parse_task(task), finalize, overwrite, dry_run, image_size)
    require_within("image_size", image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
    if workers is not None:
        require_within("workers", workers, 1, MAX_WORKERS)
    set_policy(io_patience)
    check_path(root_dir, "root_dir")
    check_path(out_dir, "out_dir")
    root, out = os.path.realpath(root_dir), Path(out_dir)
    return _carry_out(mode, root, out, settings, workers or _cores())


def _carry_out(mode: _Mode, root: str, out: Path, settings: dict[str, Any], workers: int) -> BuildReport:
    if mode.dry_run:
        return _dry_run(root, out, settings, mode.image_size)
    if not mode.overwrite and (finished := _finished(root, out, settings)):
        _tidy_up(out)
        return finished
    _check_out(out)
    with _no_traces_of_refusal(out), _locked(out, LOCK, shared=mode.part is not None):
        if mode.overwrite:
            _remove_shards(out)
        elif finished := _finished(root, out, settings):  # by another process, since we looked
            owned.remove(out / layout.BUILD)
            return finished
        if mode.finalize:
            return _publish(_open_plan(root, out, settings, may_make=False), out)
        return _build(root, out, settings, workers, mode)


# ---- settings


@dataclasses.dataclass(frozen=True)
class _Mode:
    """What of a build is asked for; ``part``: the shards of one task."""

    part: slice | None
    finalize: bool
    overwrite: bool
    dry_run: bool
    image_size: int

    def __post_init__(self) -> None:
        if (self.part is not None) + self.finalize + self.dry_run > 1:
            raise SettingsError("task, finalize and dry_run exclude each other")
        if self.overwrite and (self.part is not None or self.finalize):
            raise SettingsError(
                "overwrite would remove what the other tasks build; remove the old shards before the tasks start"
            )


def _splits_text(splits: str | Mapping[str, float] | None) -> str | None:
    if splits is None or isinstance(splits, str):
        return splits
    return ",".join(f"{name}={share}" for name, share in splits.items())


def _settings(**given: Any) -> dict[str, Any]:
    """The checked settings as they are kept with the shards; tables count by their contents."""
    settings = BuildSettings(**given).kept()
    for name in ("fps", "max_gap"):
        settings[name] = None if settings[name] is None else float(settings[name])  # 5 and 5.0 are one setting
    labels.check_rules(settings)
    for name, digest in labels.TABLES.items():
        kind, _, file = (settings[name] or "").partition(":")
        settings[digest] = atomic.file_sha256(Path(file)) if kind == "csv" else None
    return settings


def _parse_task(task: str | None) -> slice | None:
    """``"I/N"`` as the slice I, I+N, ... of the shards."""
    if task is None:
        return None
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", task)
    if match is None or not int(match[1]) < int(match[2]):
        raise SettingsError(f"task is {shorten(task, 40)!r}; it must be I/N with I from 0 to N-1, as in 0/8")
    return slice(int(match[1]), None, int(match[2]))


def _changes(settings: dict[str, Any], root: str, theirs: dict[str, Any], their_root: str) -> str:
    """What this build has otherwise than the one that lies there, in words; empty if nothing."""
    before, now = with_defaults(theirs), with_defaults(settings)
    return "; ".join(changes({"root_dir": their_root, **before}, {"root_dir": root, **now}))


# ---- what lies in out_dir


def _finished(root: str, out: Path, settings: dict[str, Any]) -> BuildReport | None:
    """The report of the complete set in ``out``, None if there is none; SettingsError if it is of another kind."""
    if not (out / layout.INDEX).exists():
        return None
    index = checks.read_index(out)
    if changed := _changes(settings, root, index["settings"], index["root_dir"]):
        raise SettingsError(f"{out} holds other shards ({changed}); use --overwrite or another folder")
    return dataclasses.replace(built_report(out, index), already_complete=True)


def _tidy_up(out: Path) -> None:
    """Remove what a build leaves that was killed after it had published, or before it replaced what lies there."""
    working = out / layout.BUILD
    if owned.is_owned(working) or owned.is_empty(working):
        with _locked(out, LOCK):
            owned.remove(working)
    with contextlib.suppress(OSError):  # a set that may only be read can be used as well
        owned.remove_leftovers(working)


def discard_unfinished(out: Path) -> None:
    """Remove what a build left in ``out`` that never came to its end. BusyError if one is at it now."""
    _check_out(out)
    with _locked(out, LOCK):
        if not (out / layout.INDEX).exists():
            _remove_shards(out)


def _check_out(out: Path) -> None:
    """SettingsError if ``out`` holds anything that no build wrote, or that cannot be told to be of one."""
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
            f"{out} holds files named like shards ({min(names)}), but nothing that says a build of ours wrote them; "
            "remove them yourself or give another folder"
        )


def _remove_shards(out: Path) -> None:
    """Remove what a build wrote into ``out``, but no locks; ``index.json`` first: it must not speak of what is gone."""
    (out / layout.INDEX).unlink(missing_ok=True)
    for path in out.iterdir():
        if layout.is_our_file(path.name):
            path.unlink()
    for path in (out / layout.BUILD).iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != ".lock" and path.name != owned.MARKER:
            path.unlink()


@contextlib.contextmanager
def _no_traces_of_refusal(out: Path) -> Iterator[None]:
    """A build that ends before there is a plan leaves nothing in ``out``, nor ``out`` itself if it was not there."""
    was_there = out.exists()
    try:
        yield
    except BaseException:
        if not (out / layout.BUILD / PLAN).exists():
            with contextlib.suppress(CLTTError, OSError), _locked(out, LOCK):  # unless another builds
                if not (out / layout.BUILD / PLAN).exists():
                    owned.remove(out / layout.BUILD)
        if not was_there:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _open_plan(
    root: str,
    out: Path,
    settings: dict[str, Any],
    *,
    may_make: bool = True,
    alone: bool = False,
    image_size: int = 0,
) -> Plan:
    """The plan in ``out``, made if it is not there: by one task, while the others wait for it.

    Who is ``alone`` there may give it other labels and splits.
    """
    folder = out / layout.BUILD / PLAN
    with _locked(out, "plan.lock", wait=True):
        if not folder.exists():
            if not may_make:
                raise DataError(f"{out} holds no plan, so nothing to finalize; run the tasks first")
            make_plan(root, folder, settings)
            _say_what_is_large(Plan(folder), image_size)
    plan = Plan(folder)
    asked = with_defaults(settings)
    theirs = plan.settings | ({name: asked[name] for name in labels.SETTINGS} if alone else {})
    if changed := _changes(settings, root, theirs, plan.root_dir):
        raise SettingsError(f"{out} holds an unfinished build of another kind ({changed}); use --overwrite")
    return plan if plan.settings == settings else regroup(plan, settings)


def _say_what_is_large(plan: Plan, image_size: int) -> None:
    if line := resize_line(plan, image_size):
        say(line)


# ---- the steps


def _build(root: str, out: Path, settings: dict[str, Any], workers: int, mode: _Mode) -> BuildReport:
    """Plan and pack; merge and publish too unless only a part of the shards is asked for."""
    part = mode.part
    with _task_lock(out, part):
        plan = _open_plan(root, out, settings, alone=part is None, image_size=mode.image_size)
        shards = list(range(plan.num_shards)[part or slice(None)])
        missing = sum(not is_done(out, shard) for shard in shards)
        with started_workers(out, min(workers, missing)) as packers:
            _pack(plan, out, shards, packers)
    return task_report(plan, out, shards) if part is not None else _publish(plan, out)


def _dry_run(root: str, out: Path, settings: dict[str, Any], image_size: int) -> BuildReport:
    with tempfile.TemporaryDirectory() as folder:
        make_plan(root, Path(folder) / PLAN, settings)
        plan = Plan(Path(folder) / PLAN)
        _say_what_is_large(plan, image_size)
        return planned_report(plan, out)


def _task_lock(out: Path, part: slice | None) -> contextlib.AbstractContextManager[None]:
    """No task of a job array runs twice at a time."""
    if part is None:
        return contextlib.nullcontext()
    return _locked(out, f"task-{part.start}-of-{part.step}.lock")


def _locked(out: Path, name: str, **options: bool) -> contextlib.AbstractContextManager[None]:
    return locked_in(out / layout.BUILD, name, held=f"{out} is being built", **options)


def _pack(plan: Plan, out: Path, shards: list[int], workers: list[Worker]) -> None:
    frames = sum(len(plan.shard_frames(shard)) for shard in shards)
    with progress_bar(frames) as progress:
        pack_shards(out, shards, workers, progress)


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
