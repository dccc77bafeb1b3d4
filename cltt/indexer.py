"""Build shards from clip folders: plan, pack, merge; each step can be killed and started again.

``build_shards`` does all of it on one machine. On many, each task of a job array packs its share of the shards of one
common plan (``task="2/8"``), and a last call (``finalize=True``) merges and publishes. What lies in ``out_dir/.build``
meanwhile is the plan, one part of the index per finished shard, and locks; it goes when ``index.json`` has been written.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltt import format
from cltt._merge import labeller, merge, parse_splits
from cltt._pack import pack_shards
from cltt._plan import PLAN, Plan, make_plan
from cltt.config import BuildSettings
from cltt.errors import SettingsError

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class BuildReport:
    """What a build gave: counts over the whole set, ``skipped`` and ``reencoded_for`` by reason, ``bytes`` of all shards."""

    path: Path
    clips: int
    frames: int
    bytes: int
    shards: int
    reencoded: int
    skipped: dict[str, int]


def _report(out: Path, index: dict[str, Any]) -> BuildReport:
    counts = index["counts"]
    return BuildReport(
        path=out,
        clips=counts["clips"],
        frames=counts["frames"],
        bytes=counts["bytes"],
        shards=len(index["shards"]),
        reencoded=sum(counts["reencoded"].values()),
        skipped=counts["skipped"],
    )


def _splits_text(splits: str | Mapping[str, float] | None) -> str | None:
    if splits is None or isinstance(splits, str):
        return splits
    return ",".join(f"{name}={share}" for name, share in splits.items())


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
    task: str | None = None,
    finalize: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> BuildReport:
    settings = BuildSettings(
        verify=verify,
        resize_short=resize_short,
        quality=quality,
        shard_size=shard_size,
        splits=_splits_text(splits),
        split_by=split_by,
        split_seed=split_seed,
        label_from=label_from,
        split_gaps=split_gaps,
    )
    parse_splits(settings.splits)
    labeller(settings.label_from)
    out = Path(out_dir)
    root = os.path.realpath(root_dir)
    if overwrite:
        remove_shards(out)
    if (out / format.INDEX).exists():
        index = format.read_index(out)
        if index["root_dir"] != root or index["settings"] != dataclasses.asdict(settings):
            raise SettingsError(
                f"{out} holds shards of another source or other settings; use overwrite to replace them"
            )
        return _report(out, index)
    build = out / format.BUILD
    build.mkdir(parents=True, exist_ok=True)
    if not (build / PLAN).exists():
        make_plan(root, build / PLAN, dataclasses.asdict(settings))
    plan = Plan(build / PLAN)
    pack_shards(out, list(range(plan.num_shards)), lambda frames, bytes: None)
    index = merge(plan, out)
    shutil.rmtree(build)
    return _report(out, index)


def remove_shards(out: Path) -> None:
    """Remove what a build wrote into ``out``, ``index.json`` first, and nothing else."""
    (out / format.INDEX).unlink(missing_ok=True)
    if out.is_dir():
        for path in out.iterdir():
            if format.is_our_file(path.name):
                path.unlink()
    shutil.rmtree(out / format.BUILD, ignore_errors=True)
