"""Which images are train, val and test: whole groups of them, so that neighbouring frames never lie on both sides.

A group is a clip of shards, what ``--group-from`` makes of a path (a session, an object), or an image by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cltt.errors import SettingsError
from cltt.evaluation.images import Images, ShardSource, frame_checksums
from cltt.files.tables import PathTable, table_rows
from cltt.packing.labels import Rule, labeller
from cltt.shards.dataset import ShardDataset
from cltt.text import shorten

PARTS = ("train", "val", "test")
SPLIT_SHARES = (0.6, 0.2, 0.2)
VAL_SHARE = 0.1
SPLIT_SEED = 20
FRAMES_AT_ONCE = 1_000_000
PART_OF = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}
_COIL_NAME = re.compile(r"(obj\d+)__\d+", re.IGNORECASE)


# ---- parts and classes by folders


class Layout(NamedTuple):
    """How the folders of some images are understood.

    inside: each path below the wrapping folder and the part. part: int64 [n], place in PARTS, -1: in none; None: the
    data has no parts. wrapping: the folder that holds everything, empty if there is none.
    """

    inside: list[str]
    part: np.ndarray | None
    wrapping: str

    def classes(self) -> list[str | None]:
        """The class of each image; None for one outside of all parts, or without a class."""
        inside = np.ones(len(self.inside), bool) if self.part is None else self.part >= 0
        return [_class_of(path) if known else None for path, known in zip(self.inside, inside, strict=True)]

    def doubt(self) -> str:
        """What to say where the folders taken for classes may be parts, sessions or kinds of pictures; or empty.

        Each holds the same folders, as in ``train2017/cat``, ``fold_1/cat``, ``masks/cat``.
        """
        below: dict[str, set[str]] = {}
        for path, name in zip(self.inside, self.classes(), strict=True):
            if name is not None:
                below.setdefault(name, set()).add(path.rpartition("/")[0].partition("/")[2].rpartition("/")[2])
        shared = next(iter(below.values()), set())
        if len(below) < 2 or len(shared) < 2 or any(folders != shared for folders in below.values()):
            return ""
        shown = ", ".join(sorted(shared)[:2])
        return (
            f"all {len(below):,} folders taken for classes hold the same folders ({shown} ...); if those are the "
            f"classes: --label-from 'regex:([^/]+)/[^/]+$', and if {min(below)} is a part: --group-from "
            f"'regex:^{re.escape(self.wrapping)}([^/]+)/' with --test-groups"
        )


def layout_of(paths: Sequence[str]) -> Layout:
    """The layout of images by their paths.

    A folder that alone holds all of the others is looked into. Folders are parts if there are two parts by their names
    (``PART_OF``, in any case), and nothing else; or beside others, if the folder of the train part holds folders.
    """
    inside, wrapping = list(paths), ""
    while len(heads := {_head(path) for path in inside}) == 1 and (head := heads.pop()):
        below = [path[len(head) + 1 :] for path in inside]
        if not any(map(_class_of, below)):
            break
        inside, wrapping = below, f"{wrapping}{head}/"
    part = np.array([PART_OF.get(_head(path).lower(), -1) for path in inside], np.int64)
    there = set(part.tolist()) - {-1}
    others = any(_head(path) for path, number in zip(inside, part, strict=True) if number < 0)
    holds_images = any(path.count("/") == 1 for path, number in zip(inside, part, strict=True) if number == 0)
    if len(there) < 2 or (others and (holds_images or 0 not in there)):
        return Layout(inside, None, wrapping)
    below = [path.partition("/")[2] if number >= 0 else path for path, number in zip(inside, part, strict=True)]
    return Layout(below, part, wrapping)


def _head(path: str) -> str:
    """The first folder of a path; empty for a file without one."""
    return path.rpartition("/")[0].partition("/")[0]


def _class_of(path: str) -> str | None:
    """The first folder of a path, or the object in a flat COIL name."""
    match = _COIL_NAME.fullmatch(path.rpartition(".")[0])
    return _head(path) or (match[1].lower() if match else None)


# ---- labels and groups by path


def path_rule(rule: str, flag: str) -> Rule:
    """A function from a path to its label or group (None: none), by a rule as the build of shards takes it.

    ``csv:FILE`` may also be a table of tabs, hold more than two columns, and give file names without their folders.
    SettingsError, naming ``flag``, for a rule that cannot work.
    """
    return labeller(rule, flag, lambda table: _path_table(table, flag))


def first_of(rules: Sequence[Rule]) -> Rule:
    """What the first rule that fits a path makes of it."""
    return lambda path: next((found for rule in rules if (found := rule(path)) is not None), None)


def _path_table(table: str, flag: str) -> Rule:
    names: dict[str, str] = {}
    for line, row in table_rows(table, flag, [["path", "label"], ["path", "group"]], tabs=True):
        if len(row) < 2:
            raise SettingsError(f"{flag}: {table!r} must have two columns, path and name; line {line} has {len(row)}")
        if not row[1]:  # no label, no group
            continue
        if names.setdefault(row[0].strip("/"), row[1]) != row[1]:
            raise SettingsError(f"{flag}: {table!r}, line {line}: {shorten(row[0], 60)!r} has another name above")
    found = PathTable(names)
    return lambda path: found.find(path) or found.find(path.rpartition("/")[2])


# ---- parts


def split_all(images: Images) -> dict[str, Images]:
    """Train, val and test, 60, 20 and 20% of the groups of each class.

    Where groups hold images of several classes, of all groups. A class, or the whole, of fewer than three groups goes
    to train.
    """
    groups = _Groups(images)
    part = np.zeros(len(groups.strata), np.int64)
    for members in groups.shuffled():
        if len(members) >= len(PARTS):
            val, test = (max(round(share * len(members)), 1) for share in SPLIT_SHARES[1:])
            part[members[-val - test : -test]], part[members[-test:]] = 1, 2
    return by_part(images, part[groups.of_image])


def by_part(images: Images, part: np.ndarray) -> dict[str, Images]:
    """The images of each part that has any; ``part`` int64 [n] counts PARTS, -1: none."""
    found = {name: images.take(part == number) for number, name in enumerate(PARTS)}
    return {name: piece for name, piece in found.items() if len(piece)}


def held_out(train: Images) -> np.ndarray | None:
    """Which of ``train`` are to be its val part, bool [n]: a tenth of the groups, spread evenly over the classes.

    No class loses its last group; None if nothing can be held out.
    """
    groups = _Groups(train)
    classes = groups.shuffled()
    quota = np.array([VAL_SHARE * len(members) for members in classes])
    taken = np.minimum(quota.astype(int), [len(members) - 1 for members in classes])
    wanted = max(1, round(VAL_SHARE * len(groups.strata)))
    for place in np.argsort(taken - quota, kind="stable"):
        if taken.sum() < wanted and taken[place] < len(classes[place]) - 1:
            taken[place] += 1
    if not taken.any():
        return None
    chosen = np.concatenate([members[:count] for members, count in zip(classes, taken, strict=True)])
    return np.isin(groups.of_image, chosen)


class _Groups:
    """The groups of some images, in order of their numbers.

    Attributes:
        of_image: int64 [n], place of each image's group.
        strata: int64 [groups], the class of each group; 0 for all if a group holds images of several.
    """

    def __init__(self, images: Images) -> None:
        _, first, self.of_image = np.unique(images.groups, return_index=True, return_inverse=True)
        strata = images.labels[first]
        pure = (strata[self.of_image] == images.labels).all()
        self.strata = strata if pure else np.zeros_like(strata)

    def shuffled(self) -> list[np.ndarray]:
        """The groups of each stratum, by a fixed permutation."""
        found = []
        for stratum in np.unique(self.strata):
            members = np.flatnonzero(self.strata == stratum)
            state = np.random.SeedSequence([SPLIT_SEED, int(stratum)]).generate_state(len(members), np.uint64)
            found.append(members[np.argsort(state)])
        return found


def thin(images: Images, most: int) -> Images:
    """At most ``most`` of ``images``, evenly spread (0: all)."""
    if most == 0 or len(images) <= most:
        return images
    return images.take(np.linspace(0, len(images) - 1, most).astype(np.int64))


def seen_in_training(parts: dict[str, Images], trained: ShardDataset, clips: np.ndarray) -> str:
    """A warning if the encoder is trained on test images (else val), as ``clips`` (ids) of ``trained``; else empty.

    Of the same shards it counts images of these clips; of other data, images whose bytes have the length and CRC-32 of
    a frame in them.
    """
    asked = next((part for part in ("test", "val") if part in parts), None)
    if asked is None:
        return ""
    images = parts[asked]
    source, of_all = images.source, f"of the {len(images):,} {asked} images are"
    if isinstance(source, ShardSource) and source.dataset.fingerprint == trained.fingerprint:
        seen = int(np.isin(source.dataset.clip_of(images.ids), clips).sum())
        why = "of clips that the encoder is trained on, so this is no test of new clips; build the shards with "
        return f"{seen:,} {of_all} {why}--splits, and train on train" if seen else ""
    seen = _frames_among(source.checksums(images.ids), trained, clips)
    why = "frames that the encoder is trained on (same length and CRC-32), so this is no test of new images"
    return f"{seen:,} {of_all} {why}" if seen else ""


def _frames_among(checksums: np.ndarray, trained: ShardDataset, clips: np.ndarray) -> int:
    """How many of ``checksums`` are those of frames of ``clips``."""
    ranges = np.stack([trained.clip_offsets[clips], trained.clip_offsets[clips + 1]], 1)
    seen = np.zeros(len(checksums), bool)
    for some in np.array_split(ranges, 1 + int((ranges[:, 1] - ranges[:, 0]).sum()) // FRAMES_AT_ONCE):
        ids = np.concatenate([np.arange(*limits) for limits in some]) if len(some) else np.empty(0, np.int64)
        seen |= np.isin(checksums, frame_checksums(trained, ids))
    return int(seen.sum())
