"""Removing sets of shards that a newer set has replaced and that no running or unfinished run needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cltt.checkpoint import SETTINGS_FILE, checkpoint_name
from cltt.errors import SettingsError
from cltt.files import owned
from cltt.files.regular import is_regular
from cltt.sets.locate import complete_sets, record_path
from cltt.sets.use import others_may_use, runs_of, runs_path, unused
from cltt.shards import checks, layout


@dataclass(frozen=True)
class KeptSet:
    """A complete set of shards that was built on first use.

    Attributes:
        needed: why it must stay; "" if it may be removed.
    """

    path: Path
    bytes: int
    frames: int
    needed: str


def list_sets(home: Path) -> list[KeptSet]:
    """The sets in ``home`` that were built on first use, grouped by their source folder, the newest of each last."""
    names = {record.name.removesuffix(".source.json").partition("@")[0] for record in home.glob("*.source.json")}
    groups = [complete_sets(home / name) for name in sorted(names)]
    return [_describe(path, newest=path == sets[-1]) for sets in groups for path in sets]


def _describe(path: Path, *, newest: bool) -> KeptSet:
    index = checks.read_index(path)
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    return KeptSet(path, size, index["counts"]["frames"], _why_needed(path, newest))


def _why_needed(path: Path, newest: bool) -> str:
    with unused(path) as free:
        if not free:
            return "a run uses it"
    if newest:
        return "the newest of its folder"
    waiting = [str(run) for run in runs_of(path) if _is_unfinished(run)]
    if waiting:
        return f"unfinished: {', '.join(waiting)}"
    return "other users may read it, and their runs are not listed: name it" if others_may_use(path) else ""


def _is_unfinished(run_dir: Path) -> bool:
    """Whether ``run_dir`` holds a run before its last epoch; True also if it may not be read."""
    try:
        epochs = int(json.loads((run_dir / SETTINGS_FILE).read_bytes())["optim"]["epochs"])
    except PermissionError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return not (run_dir / checkpoint_name(epochs)).is_file()


def remove_sets(sets: list[KeptSet]) -> Iterator[KeptSet]:
    """Remove each of ``sets`` that no run uses now; yields those that were removed."""
    for kept in sets:
        with unused(kept.path) as free:
            if free:
                _remove(kept.path)
                yield kept


def _remove(path: Path) -> None:
    """Remove the files that a build wrote, the index first: without it the folder is no set. Other files stay."""
    (path / layout.INDEX).unlink(missing_ok=True)
    for file in list(path.iterdir()):
        if layout.is_our_file(file.name) and is_regular(file):
            file.unlink()
    if owned.is_owned(path / layout.BUILD):
        owned.remove(path / layout.BUILD)
    owned.remove_leftovers(path / layout.BUILD)
    with contextlib.suppress(OSError):
        path.rmdir()
    for beside in (record_path(path), runs_path(path)):
        beside.unlink(missing_ok=True)


def chosen(sets: list[KeptSet], names: list[str]) -> list[KeptSet]:
    """Those of ``sets`` that have one of ``names``. SettingsError for an unknown name, or a set that a run uses."""
    by_name = {kept.path.name: kept for kept in sets}
    for name in names:
        if name not in by_name:
            raise SettingsError(f"there is no set {name!r}; there are: {', '.join(by_name) or 'none'}")
        if by_name[name].needed == "a run uses it":
            raise SettingsError(f"{by_name[name].path} cannot be removed: a run uses it now; wait for the run to end")
    return [by_name[name] for name in names]
