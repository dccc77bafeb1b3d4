"""Which shards a run reads: built on first use, reused while the source is unchanged, copied to a node's disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cltt import distributed
from cltt.build.builder import build_shards
from cltt.build.settings import BuildSettings
from cltt.config import DataSettings
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.files.atomic import check_writable, replace_file
from cltt.files.regular import read_regular
from cltt.shards import format
from cltt.shards.stage import stage
from cltt.source.scan import check_root, scan_clips, scan_folders
from cltt.text import counted

SHARDS_HOME = Path("shards")
_THREADS = 16
_MAX_RECORD = 1 << 32  # bytes: a line a folder


def locate_shards(data: DataSettings, info: RankInfo) -> Path:
    """The folder of shards that ``data`` asks for, built or staged if need be; says what it does. A collective.

    Rank 0 looks, and all take what it found: to one node alone a folder may look changed. Raises SettingsError if there
    are several ranks and nothing built, or if the folder of frames cannot be used.
    """
    path = distributed.from_main(lambda: Path(data.shards) if data.shards is not None else _shards_of_root(data, info))
    return path if data.stage_to is None else stage(path, Path(data.stage_to), info)


def _shards_of_root(data: DataSettings, info: RankInfo) -> Path:
    """Shards of ``--root-dir``: those of an earlier run if the folder is as it was, else built now."""
    assert data.root_dir is not None
    settings = BuildSettings()
    root = os.path.realpath(os.fsdecode(check_root(data.root_dir)))
    out = SHARDS_HOME / shards_name(root, settings)
    record = out.with_name(f"{out.name}.source.json")
    built = (out / format.INDEX).is_file()
    if info.world_size > 1 and not built:
        command = ["python", "tools/build_shards.py", "--root-dir", data.root_dir, "--out", str(out)]
        raise SettingsError(
            f"{info.world_size} ranks, but no shards of {root!r} yet; build them: {shlex.join(command)}"
        )
    now = describe_root(root, files=data.rescan or not built or not record.is_file())
    change = _change(record, now) if built else None
    if built and change is None:
        _say(f"using the shards in {out}: {root} is as it was when they were built")
        return out
    if info.world_size > 1:
        command = ["python", "tools/build_shards.py", "--root-dir", data.root_dir, "--out", str(out), "--overwrite"]
        raise SettingsError(f"{root!r} {change} since its shards were built; build them anew: {shlex.join(command)}")
    check_writable(
        SHARDS_HOME,
        "build the shards elsewhere (tools/build_shards.py) and give --shards, or start in another working folder",
    )
    _say(f"building shards of {root} in {out}" + (f" again: the folder {change}" if built else ""))
    record.unlink(missing_ok=True)
    if "digest" not in now:
        now = describe_root(root, files=True)
    report = build_shards(root, out, overwrite=built, **asdict(settings))
    replace_file(record, json.dumps(now).encode())
    _say(f"built {report}; left out: {counted(sum(report.skipped.values()), 'file')}")
    return out


def shards_name(root: str, settings: BuildSettings) -> str:
    """Folder name for the shards of ``root``: readable, and another one for another path or other build settings."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", Path(root).name).strip("-").lower()[:40] or "root"
    identity = json.dumps([root, asdict(settings)], sort_keys=True)
    return f"{slug}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def describe_root(root: str, *, files: bool) -> dict[str, Any]:
    """Folders under ``root`` with their modification times; with ``files`` a digest of all names, sizes and times."""
    with ThreadPoolExecutor(_THREADS) as pool:
        scan = scan_folders(os.fsencode(root), pool)
        paths = [os.fsdecode(key) for key in scan.keys]
        times = pool.map(lambda path: os.stat(os.path.join(root, path)).st_mtime_ns, paths)
        found: dict[str, Any] = {"folders": dict(zip(paths, times, strict=True))}
        if files:
            digest = hashlib.sha256()
            for clip in scan_clips(scan, pool):
                digest.update(repr([clip.key, *((f.name, f.size, f.mtime_ns) for f in clip.frames)]).encode())
            found["digest"] = digest.hexdigest()
    return found


def _change(record: Path, now: dict[str, Any]) -> str | None:
    """What differs between the folder now and the ``record`` of when it was built; None: nothing that was compared.

    Shards built by hand have no record: the folder as it is now becomes theirs, if it may be written.
    """
    if not record.is_file():
        with contextlib.suppress(OSError):
            replace_file(record, json.dumps(now).encode())
        return None
    try:
        before = json.loads(read_regular(record, _MAX_RECORD))
        folders = dict(before["folders"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):  # not what this program writes
        return f"cannot be compared with the record of it ({record})"
    if set(folders) != set(now["folders"]):
        return "has gained or lost clips"
    if folders != now["folders"]:
        return "has changed"
    if "digest" in now and before.get("digest") != now["digest"]:
        return "has changed files"
    return None


def _say(line: str) -> None:
    print(line, flush=True)
