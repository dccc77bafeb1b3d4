"""The set of shards that a run reads, built on first use by one process; the others wait.

shards/NAME             the shards of a folder of clips
shards/NAME@1a2b3c4d    the shards of that folder in another state, built when shards/NAME was there or being built; the
                        suffix begins the digest of its source's files. The newest has the newest index.json.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from cltt import distributed
from cltt.config import DataSettings
from cltt.errors import BusyError, CLTTError, SettingsError
from cltt.files.atomic import check_writable, replace_file
from cltt.files.locks import holder
from cltt.files.retry import retry
from cltt.packing.builder import LOCK, build_shards, discard_unfinished
from cltt.packing.plan import PLAN, Plan
from cltt.packing.report import BuildReport
from cltt.packing.settings import BuildSettings
from cltt.sets.record import Source, describe, differences, read_source, same, to_json
from cltt.shards import checks, layout
from cltt.source.scan import check_root
from cltt.source.videos import Sampling, guess_bytes, small_bytes
from cltt.text import byte_size, counted, say

SHARDS_HOME = Path("shards")
# These settings (all of 0.1.0) are always part of a set's name; others only if they are not at their default.
_NAMING = {"verify", "resize_short", "quality", "shard_size", "splits", "split_by", "split_seed"}
_NAMING |= {"label_from", "split_gaps"}
MEMBER_BYTES = 1024 + 24  # roughly a frame's tar header and padding, and its part of the index
POLL_SECONDS = 1.0
TELL_SECONDS = 60.0  # between two lines that say how long a run has waited


def locate_shards(data: DataSettings, *, fingerprint: str | None = None) -> Path:
    """The folder of shards that ``data`` asks for; they are built if there are none yet.

    All ranks must call it. Rank 0 finds or builds the shards, prints what it does, and tells all ranks the folder.

    Args:
        data: with ``root_dir``, the shards are looked for, and built, under ``shards/``.
        fingerprint: of the shards that the run began with (a hash of their frames, in their index); these are used if
            they still exist. None: a new run.

    Raises SettingsError if ``root_dir`` cannot be used, or if the disk has too little space; with ``no_wait``,
    BusyError if another process is building the shards.
    """
    if data.shards is not None:
        return Path(data.shards)
    return distributed.from_main(lambda: _shards_of_root(data, fingerprint))


def _shards_of_root(data: DataSettings, fingerprint: str | None) -> Path:
    """The set that the run began with, else a set built from the present state of the source, else a new set."""
    assert data.root_dir is not None
    root = os.path.realpath(os.fsdecode(check_root(data.root_dir)))
    first = SHARDS_HOME / shards_name(root, _build_settings(data))
    sets = complete_sets(first)
    for shards in sets:
        if fingerprint is not None and checks.read_index(shards)["fingerprint"] == fingerprint:
            return _kept(shards, root, describe(root, files=data.rescan))
    now = describe(root, files=data.rescan or not sets)
    unrecorded = [shards for shards in sets if _record_of(shards) is None]  # asked before _of_source records them
    found = _of_source(sets, now)
    if found is None and now.digest is None:
        now = describe(root, files=True)  # no set matches by the folders' times: compare every file
        found = _of_source(sets, now)
    if found is None and (data.fps, data.stream) != (None, None) and not _videos(root, now):
        say(f"no video is under {root}: --fps and --stream change nothing")
        return _shards_of_root(replace(data, fps=None, stream=None), fingerprint)
    if found is not None:
        known = f"{data.root_dir} shows no change since they were built"
        unknown = f"nothing is recorded of {data.root_dir} as it was then, so it is taken as unchanged"
        say(f"using the shards in {found}: {unknown if found in unrecorded else known}")
        return found
    return _build(first, sets, root, now, data)


def _build_settings(data: DataSettings) -> BuildSettings:
    return BuildSettings(fps=data.fps, stream=data.stream, resize_short=data.resize_short)


def shards_name(root: str, settings: BuildSettings) -> str:
    """The name of the set of ``root``: readable, unique per path and settings."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(root).name).strip("-").lower()[:40] or "root"
    defaults = asdict(BuildSettings())
    named = {name: value for name, value in asdict(settings).items() if name in _NAMING or value != defaults[name]}
    identity = json.dumps([root, named], sort_keys=True)
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def complete_sets(first: Path) -> list[Path]:
    """The complete sets of one source folder, the newest last: ``first`` and ``first@DIGEST``."""
    found = [path for path in (first, *first.parent.glob(f"{first.name}@????????")) if (path / layout.INDEX).is_file()]
    return sorted(found, key=lambda path: (path / layout.INDEX).stat().st_mtime_ns)


def record_path(shards: Path) -> Path:
    """The record of the source folder (:mod:`cltt.sets.record`) of the set ``shards``."""
    return shards.with_name(f"{shards.name}.source.json")


def _building_path(shards: Path) -> Path:
    return shards.with_name(f"{shards.name}.building.json")


def _record_of(shards: Path) -> Source | None:
    """The record of a complete set; renamed here if the build was killed after it had published the set."""
    if not record_path(shards).is_file():
        _publish_record(shards)
    return read_source(record_path(shards))


def _publish_record(shards: Path) -> None:
    """Give the record of a built set its name, unless another process, which may have waited for the set, does so."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(_building_path(shards), record_path(shards))


def _of_source(sets: list[Path], now: Source) -> Path | None:
    """The newest of ``sets`` that was built from the state ``now``, or None.

    Where a state lists only folders, their modification times decide. Shards that `cltt build` made have no record.
    They count as built from the present state, which is then recorded.
    """
    for shards in reversed(sets):
        before = _record_of(shards)
        if before is not None and not same(before, now):
            continue
        if before is not None and before.rules != now.rules and before.digest != now.digest:
            say(
                f"note: {shards} was built by an earlier version, which skipped fewer files because of their names; "
                "`cltt build` makes new shards by today's rules"
            )
        elif before is None or before.folders != now.folders:
            _remember(shards, now)
        return shards
    return None


def _remember(shards: Path, now: Source) -> None:
    with contextlib.suppress(OSError):  # if shards/ is read-only, the next run has to compare again
        replace_file(record_path(shards), to_json(now))


def _kept(shards: Path, root: str, now: Source) -> Path:
    """``shards``, which the run began with; prints what has changed in the source folder since."""
    before = _record_of(shards)
    changed = differences(shards, root, before, now) if before is not None else ""
    if changed:
        say(f"going on with the shards in {shards}, which this run began with; since then in {root}: {changed}")
    else:
        say(f"using the shards in {shards}, which this run began with")
    return shards


# ---- building


def _build(first: Path, sets: list[Path], root: str, now: Source, data: DataSettings) -> Path:
    """Build a set of the folder's present state; older sets stay, as runs may be reading them."""
    assert now.digest is not None
    out = first
    if first in sets or _is_being_built_from_another_state(first, now):
        out = first.with_name(f"{first.name}@{now.digest[:8]}")
    check_writable(
        SHARDS_HOME,
        "build the shards elsewhere (`cltt build`) and give --shards, or start in another working folder",
    )
    SHARDS_HOME.mkdir(parents=True, exist_ok=True)
    beside = ""
    if sets:
        before = _record_of(sets[-1])
        changed = differences(sets[-1], root, before, now) if before is not None else ""
        stays = (
            f"{sets[-1]}, which stays for the runs that use it (`cltt prune --remove` removes it once no run needs it)"
        )
        beside = f", beside {stays}. Changed since that was built: {changed}"
    say(f"shards of {data.root_dir}: {out}{beside}")
    for line in _sets_of_same_files(root, now, data):
        say(line)
    try:
        report = _build_or_wait(out, root, now, data)
    except BaseException:
        if not (out / layout.BUILD).exists() and not (out / layout.INDEX).exists():  # neither begun nor ended
            _building_path(out).unlink(missing_ok=True)
        raise
    _publish_record(out)
    say(f"built {report}{_skipped_or_reencoded(out)}")
    for line in report.odd:
        say(f"odd: {line}")
    if report.odd:
        given = {"--fps": data.fps, "--stream": data.stream, "--resize-short": data.resize_short}
        flags = [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
        again = shlex.join(["cltt", "build", "--root-dir", root, "--out", f"{out}-chosen", *flags])
        say(f"to choose files or change settings: {again} --include GLOB --exclude GLOB; then train with --shards")
    return out


def _skipped_or_reencoded(shards: Path) -> str:
    """The end of a line: how many files were skipped or re-encoded, by reason; "" if none were."""
    counts = checks.read_index(shards)["counts"]
    kinds = {"skipped": counts["skipped"], "re-encoded as JPEG": counts["reencoded"]}
    parts = [
        f"; {what}: " + ", ".join(f"{number:,} x {reason}" for reason, number in sorted(reasons.items()))
        for what, reasons in kinds.items()
        if reasons
    ]
    return "".join(parts) + (f" ({shards / layout.REPORT} names each)" if parts else "")


def _sets_of_same_files(root: str, now: Source, data: DataSettings) -> Iterator[str]:
    """One line per set that holds some of these clips: same settings, but another root folder."""
    wanted, files = asdict(_build_settings(data)), _files_of(root, now)
    for path in sorted(SHARDS_HOME.glob("*.source.json")):
        shards, record = path.with_name(path.name.removesuffix(".source.json")), read_source(path)
        with contextlib.suppress(CLTTError):
            index = checks.read_index(shards)
            alike = all(index["settings"].get(name) == wanted[name] for name in ("fps", "stream", "resize_short"))
            there = _files_of(index["root_dir"], record) if record is not None and index["root_dir"] != root else {}
            if alike and (shared := len(there.items() & files.items())):
                yield (
                    f"note: {shards} already holds {shared:,} of {counted(len(files), 'clip')}: "
                    f"--root-dir {index['root_dir']} would use it, without a second copy"
                )


def _files_of(root: str, source: Source) -> dict[str, tuple[int, int]]:
    """(files, bytes) of each clip, by its full path."""
    clips = (source.clips or {}).items()
    return {os.path.normpath(os.path.join(root, key)): (clip.files, clip.size) for key, clip in clips}


def _is_being_built_from_another_state(out: Path, now: Source) -> bool:
    """Whether another process is building ``out`` at this moment, from another state of the folder."""
    building = read_source(_building_path(out))
    return building is not None and building.digest != now.digest and holder(out / layout.BUILD / LOCK) is not None


def _build_or_wait(out: Path, root: str, now: Source, data: DataSettings) -> BuildReport:
    """Build ``out``, or wait for the process that builds it; finish its build if it dies."""
    began = last_told = time.monotonic()
    waited = False
    while True:
        try:
            # build_shards returns the report of a complete set, and refuses one that is being built elsewhere.
            if not (out / layout.INDEX).is_file() and holder(out / layout.BUILD / LOCK) is None:
                if waited:
                    say(f"{out}: the process that built it has ended before it was complete; going on with its build")
                _prepare(out, root, now, data)
            settings = asdict(_build_settings(data))
            return build_shards(root, out, io_patience=data.io_patience, image_size=data.image_size, **settings)
        except BusyError as error:
            if data.no_wait:
                raise
            if not waited:
                say(f"waiting: {str(error).partition(';')[0]} ({_progress(out)})")
            elif time.monotonic() - last_told >= TELL_SECONDS:
                last_told = time.monotonic()
                say(f"still waiting for {out}, for {(last_told - began) / 60:.0f} min so far ({_progress(out)})")
            waited = True
        time.sleep(POLL_SECONDS)


def _prepare(out: Path, root: str, now: Source, data: DataSettings) -> None:
    """Discard an unfinished build of another state, record the present one, and check the space."""
    before = read_source(_building_path(out))
    if before is None or before.digest != now.digest:
        if out.exists():
            discard_unfinished(out)  # its plan may list other files
        replace_file(_building_path(out), to_json(now))
    _check_space(out, root, now, data)


def _videos(root: str, source: Source) -> dict[str, int]:
    """Bytes of each video, by its path: a clip that is a file. Its name need not be that of a video."""
    clips = (source.clips or {}).items()
    return {key: clip.size for key, clip in clips if clip.files == 1 and _is_file(os.path.join(root, key))}


def _is_file(path: str) -> bool:
    return retry(path, lambda: stat.S_ISREG(os.stat(path).st_mode))


def _check_space(out: Path, root: str, now: Source, data: DataSettings) -> None:
    """Print how many bytes the build still needs. SettingsError if the disk has fewer."""
    videos = _videos(root, now)
    images = now.files - len(videos)
    sampling = Sampling(fps=data.fps, stream=data.stream, resize_short=data.resize_short)
    needed = now.size - sum(videos.values())
    if data.resize_short is not None:
        needed = min(needed, images * small_bytes(sampling))
    needed += images * MEMBER_BYTES + guess_bytes(root, videos, sampling, MEMBER_BYTES)
    needed = max(0, needed - sum(path.stat().st_size for path in out.glob("shard-*.tar")))
    free = shutil.disk_usage(SHARDS_HOME).free
    if needed > free:
        raise SettingsError(
            f"{out} needs about {byte_size(needed)}, and {SHARDS_HOME.resolve()} has {byte_size(free)} free: make "
            "room (`cltt prune --remove` removes old shards), or build them elsewhere (`cltt build`) and give --shards"
        )
    say(f"building {counted(now.files, 'file')}, about {byte_size(needed)} ({byte_size(free)} are free)")


def _progress(out: Path) -> str:
    """The progress of a build, in words."""
    building = out / layout.BUILD
    try:
        done = len(list(building.glob("part-*")))
        return f"{done} of {counted(Plan(building / PLAN).num_shards, 'shard')} done"
    except (OSError, ValueError, KeyError):
        return "it is being planned"
