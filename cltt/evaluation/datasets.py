"""Labelled images to evaluate an encoder on: folders of images, CIFAR archives, or labelled shards, in parts.

Labels come from the folders' names, from the data, or by a rule on the paths. Parts come from the data, or are made of
whole groups: 60%, 20% and 20%. With a test part but no val part, val is a tenth of train, cut by group as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cltt.config import LabelRules, require, setting
from cltt.errors import SettingsError
from cltt.evaluation import cifar
from cltt.evaluation.images import ArraySource, FileSource, Images, ShardSource, Source, image_files
from cltt.evaluation.parts import PART_OF, PARTS, by_part, first_of, held_out, layout_of, path_rule, split_all, thin
from cltt.packing.labels import Rule
from cltt.shards import layout
from cltt.shards.dataset import ShardDataset
from cltt.source.video.kinds import has_video_name
from cltt.text import counted, printable, shorten

BY_IMAGE = (
    "train, val and test are drawn image by image: if images of one video or object are in several of them, the "
    "accuracy is too good; --group-from keeps them together"
)
_NAMED = 3  # classes that the layout names

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledSettings(LabelRules):
    """Which labels the images have, and which of them are train, val and test."""

    clips: str | None = setting(
        None, "of labelled shards: file that picks clips, a key or a folder of clips a line (default: all)"
    )


@dataclass(frozen=True)
class LabelledData:
    """Labelled images in parts.

    Attributes:
        parts: ``train``, ``val`` and ``test``, those there are; images without any labels are all in ``all``.
        label_names: of the classes.
        split_by: how the parts came about, in a word.
        notes: what a reader of the results should know, a sentence each.
    """

    parts: dict[str, Images]
    label_names: list[str]
    split_by: str
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        return next(iter(self.parts.values())).source

    @property
    def layout(self) -> str:
        """``train: 4 classes, 48 images; val: ... (ball, car, crib and 1 more)``: how the data are understood."""
        parts = [
            f"{name}: {counted(len(np.unique(images.labels[images.labels >= 0])), 'class', 'classes')}, "
            f"{counted(len(images), 'image')}"
            for name, images in self.parts.items()
        ]
        more = len(self.label_names) - _NAMED
        names = ", ".join(map(printable, self.label_names[:_NAMED])) + (f" and {more:,} more" if more > 0 else "")
        return "; ".join(parts) + (f" ({shorten(names, 120)})" if names else "")


@dataclass(frozen=True)
class _Found:
    """All images of some data before they are split. Labels, parts and groups are those of units: files, or clips.

    Attributes:
        source: where they are read from.
        unit: int64 [n], the unit of each image.
        unit_name: what a unit is called.
        keys: the path of each unit, to which rules are applied.
        labels: of each unit; None: none.
        part: int64 [units], place in PARTS as the data has it, -1: in none; None: the data has no parts.
        groups: the group of each unit by ``--group-from``; None: each unit is one.
        label_names: of the classes, where the data has them in order.
        notes: what a reader should know of how the data were found.
    """

    source: Source
    unit: np.ndarray
    unit_name: str
    keys: Sequence[str]
    labels: Sequence[str | None]
    part: np.ndarray | None
    groups: Sequence[str] | None
    label_names: list[str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def group_name(self) -> str:
        return self.unit_name if self.groups is None else "group"

    def images(self, labels: np.ndarray) -> Images:
        """All of them, with ``labels`` int64 [units]."""
        numbers = np.arange(len(self.keys)) if self.groups is None else _numbered(self.groups)
        return Images(np.arange(len(self.unit)), labels[self.unit], numbers[self.unit], self.source)


def open_labelled(
    path: str | Path, settings: LabelledSettings | None = None, *, unlabelled: bool = False
) -> LabelledData:
    """Find out what ``path`` is and open it; ``unlabelled``: shards and image files without labels will do.

    Raises SettingsError if it is of no known kind, or has no labels, or the settings do not fit it. Warns, on the log,
    of classes that are in val or test but not in train.
    """
    settings = settings or LabelledSettings()
    path = Path(path)
    if not path.is_dir():
        raise SettingsError(f"evaluation data {str(path)!r} is not a folder")
    found = _find(path, settings, unlabelled)
    classes = {label for label in found.labels if label is not None}
    if unlabelled and len(classes) < 2:
        why = f"one class alone, {classes.pop()!r}" if classes else "without labels"
        everything = {"all": found.images(np.full(len(found.keys), -1))}
        return _finished(everything, [], "none", [*found.notes, f"{why}: no accuracies"], settings)
    data = _split(path, found, settings)
    if "train" in data.parts:
        _warn_of_unknown_classes(data)
    return data


def _find(path: Path, settings: LabelledSettings, unlabelled: bool) -> _Found:
    if (path / layout.INDEX).is_file():
        return _find_in_shards(path, settings)
    if settings.clips is not None:
        raise SettingsError(f"--clips picks clips of shards, but {str(path)!r} holds none; leave it out")
    below = [folder for folder in path.iterdir() if folder.is_dir()]
    usual = [path / "cifar-10-batches-py", path / "cifar-100-python"]
    for folder in (path, *usual, *(below if len(below) == 1 else ())):
        if (folder / "data_batch_1").is_file() or ((folder / "meta").is_file() and (folder / "train").is_file()):
            if settings.label_from or settings.group_from:
                raise SettingsError(f"{folder} is an archive without paths; leave out --label-from and --group-from")
            return _find_in_cifar(folder)
    return _find_files(path, settings, unlabelled)


# ---- files


def _find_files(root: Path, settings: LabelledSettings, unlabelled: bool) -> _Found:
    """Image files at any depth, in natural order."""
    paths, left_out = image_files(root)
    if not paths and any(has_video_name(os.fsencode(path)) for path in root.rglob("*")):
        raise SettingsError(
            f"{str(root)!r} holds videos and no images; build shards of them first (`cltt build --root-dir {root} "
            "--out shards/labelled --fps 5`), and give those"
        )
    layout = layout_of(paths)
    rule = _label_rule(settings.label_from, dict(zip(paths, layout.inside, strict=True)))
    labels = layout.classes() if rule is None else list(map(rule, paths))
    if rule is None and not any(labels) and not (unlabelled and paths):
        raise SettingsError(
            f"no labelled images in {str(root)!r}: expected one folder per class, COIL files (obj3__45.png), CIFAR's "
            "python archives, or labelled shards; for other names give --label-from"
        )
    groups = _named_groups(paths, settings.group_from)
    notes = [f"left out {line}" for line in left_out]
    if layout.wrapping:
        notes.append(f"all images are in {layout.wrapping}: the folders there are taken")
    notes += [layout.doubt()] if rule is None and layout.doubt() else []
    source = FileSource(root, paths, groups)
    return _Found(source, np.arange(len(paths)), "image", paths, labels, layout.part, groups, notes=tuple(notes))


def _label_rule(rules: Sequence[str] | None, inside: dict[str, str]) -> Rule | None:
    """``--label-from`` as one rule; ``parent`` is asked about the path inside its part."""
    if rules is None:
        return None
    made = [(rule, path_rule(rule, "--label-from")) for rule in rules]
    return first_of([_about(inside, asked) if rule == "parent" else asked for rule, asked in made])


def _about(inside: dict[str, str], rule: Rule) -> Rule:
    return lambda path: rule(inside[path])


def _named_groups(keys: Sequence[str], rule: str | None) -> list[str] | None:
    """The group of each key by ``--group-from``; a key without one is a group of its own."""
    if rule is None:
        return None
    asked = path_rule(rule, "--group-from")
    found = list(map(asked, keys))
    if not any(group is not None for group in found):
        raise SettingsError(f"--group-from {rule!r} gives nothing a group; it must fit paths such as {keys[0]!r}")
    return [key if group is None else group for key, group in zip(keys, found, strict=True)]


def _numbered(names: Sequence[str]) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)


# ---- archives and shards


def _find_in_cifar(folder: Path) -> _Found:
    """CIFAR-10 (``data_batch_1..5``, ``test_batch``) or CIFAR-100 (``train``, ``test``; fine labels)."""
    ten = (folder / "data_batch_1").is_file()
    train = sorted(folder.glob("data_batch_?")) if ten else [folder / "train"]
    test = folder / ("test_batch" if ten else "test")
    label_key, name_key = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    names = cifar.read_names(folder / ("batches.meta" if ten else "meta"), name_key)
    paths = [*train, *([test] if test.is_file() else [])]
    archives = [cifar.read_archive(path, label_key, len(names)) for path in paths]
    pictures = np.concatenate([archive.pixels for archive in archives])
    labels = np.concatenate([archive.labels for archive in archives])
    part = None
    if test.is_file():
        part = np.where(np.arange(len(labels)) < len(labels) - len(archives[-1].labels), 0, 2)
    images = np.arange(len(labels))
    named = [names[label] for label in labels.tolist()]
    keys = list(map(str, images))
    return _Found(ArraySource(folder.name, pictures), images, "image", keys, named, part, None, names)


def _find_in_shards(path: Path, settings: LabelledSettings) -> _Found:
    """All frames, each with its clip's label; rules are asked about the clip's key."""
    dataset = ShardDataset(path)
    keys = [dataset.clip_key(clip) for clip in range(dataset.num_clips)]
    rule = _label_rule(settings.label_from, {key: key for key in keys})
    own = [dataset.label_names[label] if label >= 0 else None for label in dataset.labels.tolist()]
    labels = own if rule is None else list(map(rule, keys))
    if settings.clips is not None:
        picked = set(dataset.listed_clips(settings.clips).tolist())
        labels = [label if clip in picked else None for clip, label in enumerate(labels)]
    part = None
    if dataset.split_names:
        part = np.full(dataset.num_clips, -1)
        for name in dataset.split_names:
            part[dataset.split_clips(name)] = PART_OF.get(name.lower(), -1)
    return _Found(
        ShardSource(dataset),
        np.repeat(np.arange(dataset.num_clips), dataset.clip_lengths),
        "clip",
        keys,
        labels,
        part,
        _named_groups(keys, settings.group_from),
        dataset.label_names if rule is None else None,
    )


# ---- parts


def _split(path: Path, found: _Found, settings: LabelledSettings) -> LabelledData:
    labels, names = _label_numbers(path, found, settings)
    images = found.images(labels)
    labelled = images.labels >= 0
    notes = [*found.notes]
    if not labelled.all():
        first = printable(shorten(found.keys[int(np.argmin(labels))], 80))
        notes.append(f"{counted(int((~labelled).sum()), 'image')} without a label left out ({first} is the first)")
    images, group = images.take(labelled), found.group_name
    part = found.part if settings.test_groups is None else _parts_by_group(found, settings)
    if part is not None and part is found.part and group != "clip" and not part[found.unit][labelled].any():
        notes.append("all images with labels are in the train part, which is split")
        part = None
    if part is not None:
        placed = part[found.unit][labelled]
        parts = by_part(images, placed)
        if (outside := int((placed < 0).sum())) and found.unit_name == "image":
            first = printable(shorten(found.keys[int(images.ids[np.argmin(placed)])], 80))
            notes.append(f"{counted(outside, 'image')} in no part left out ({first} is the first)")
        where = f"split of the shards in {path}" if found.unit_name == "clip" else f"part of {path}"
        none = f"the train {where} has no labelled {found.unit_name}s; give labels for some, or --test-groups"
        require("train" in parts, none)
    else:
        if group == "clip" and _few_clips(images):
            notes.append("a class has fewer than three clips: parts are cut through clips, which flatters the result")
            images, group = replace(images, groups=np.arange(len(images))), "image"
        parts = split_all(images)
        if "test" not in parts and found.groups is not None:
            few = counted(len(set(found.groups)), "group")
            raise SettingsError(f"{few} are too few; give --test-groups, or a --group-from with three groups per class")
    if settings.test_groups is not None and found.part is not None:
        notes.append("the data's own train, val and test are not used: --test-groups says what is tested")
    if "test" in parts and "val" not in parts and (in_val := held_out(parts["train"])) is not None:
        train = parts["train"]
        parts = {"train": train.take(~in_val), "val": train.take(in_val), "test": parts["test"]}
        notes.append(f"val is a tenth of train, cut by {group}")
    if part is None and group == "image":
        notes.append(BY_IMAGE)
    return _finished(parts, names, "data" if part is found.part and part is not None else group, notes, settings)


def _finished(
    parts: dict[str, Images], names: list[str], split_by: str, notes: list[str], settings: LabelledSettings
) -> LabelledData:
    """The data with no part larger than ``--max-images``, and notes on what the parts lack."""
    most = settings.max_images
    for name, images in parts.items():
        classes = len(np.unique(images.labels[images.labels >= 0]))
        if classes < len(names):
            notes.append(f"{name} has images of {classes:,} of the {len(names):,} classes")
        if most and len(images) > most:
            notes.append(f"of the {len(images):,} {name} images {most:,} are used, evenly spread (--max-images)")
    return LabelledData({name: thin(images, most) for name, images in parts.items()}, names, split_by, tuple(notes))


def _label_numbers(path: Path, found: _Found, settings: LabelledSettings) -> tuple[np.ndarray, list[str]]:
    """The class of each unit (-1: none), and the names of the classes."""
    named = {label for label in found.labels if label is not None}
    if not named and settings.label_from is None:
        raise SettingsError(f"the shards in {path} have no labels; build them with --label-from, or give it here")
    if not named:
        given, shown = " ".join(settings.label_from or ()), found.keys[0] if found.keys else "none: there are no images"
        raise SettingsError(f"--label-from {given!r} gives nothing a label; it must fit paths such as {shown!r}")
    if len(named) == 1:
        raise SettingsError(
            f"all labelled images in {path} are of one class, {named.pop()!r}, and an accuracy needs two: give the "
            "folder that holds one folder per class, or --label-from"
        )
    names = found.label_names or sorted(named)
    number = {name: k for k, name in enumerate(names)}
    return np.array([-1 if label is None else number[label] for label in found.labels], np.int64), names


def _parts_by_group(found: _Found, settings: LabelledSettings) -> np.ndarray:
    """int64 [units]: place in PARTS as ``--test-groups`` and ``--val-groups`` have it."""
    assert found.groups is not None  # LabelledSettings wants --group-from with them
    there = dict.fromkeys(found.groups)
    part_of = {}
    for number, flag, given in ((1, "--val-groups", settings.val_groups), (2, "--test-groups", settings.test_groups)):
        for name in filter(None, (given or "").split(",")):
            if name not in there:
                groups = shorten(", ".join(there), 120)
                raise SettingsError(f"{flag} names {name!r}, which is no group; the groups are {groups}")
            part_of[name] = number
    return np.array([part_of.get(group, 0) for group in found.groups], np.int64)


def _few_clips(images: Images) -> bool:
    """Whether a class has fewer clips than there are parts."""
    clips, first = np.unique(images.groups, return_index=True)
    return len(clips) > 0 and np.unique(images.labels[first], return_counts=True)[1].min() < len(PARTS)


def _warn_of_unknown_classes(data: LabelledData) -> None:
    """Name the classes of val and test that train lacks: no classifier learnt on train can get them right."""
    known = data.parts["train"].labels
    for part in ("val", "test"):
        labels = data.parts[part].labels if part in data.parts else np.empty(0, np.int64)
        lost = ~np.isin(labels, known)
        if lost.any():
            unknown = [data.label_names[label] for label in np.unique(labels[lost])]
            named = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            log.warning(
                "%d of the %d classes in the %s part are not in the train part (%s): their %d of its %d images count "
                "as wrong whatever the encoder; split so that every class is in train (shards: not --split-by parent)",
                *(len(unknown), len(np.unique(labels)), part, named, lost.sum(), len(labels)),
            )
