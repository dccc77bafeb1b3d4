"""Labels and splits of clips, from the clip's key alone; boxes of frames (``packing.boxes``), from the frame's name.

They are added when the shards are merged, so they do not change the shards. A rule that fits no clip is refused after
the scan of the source, before hours of packing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cltt.errors import SettingsError
from cltt.files.tables import PathTable, table_rows
from cltt.packing.boxes import Boxes
from cltt.packing.plan import Plan
from cltt.shards.clip_table import heads
from cltt.source import scan
from cltt.source.odd import Odd
from cltt.text import shorten

Rule = Callable[[str], str | None]
NONE = -1  # no label, no split
# Settings that may name a table -> the setting with the hash of its contents.
TABLES = {"label_from": "label_table_sha256", "splits": "split_table_sha256", "boxes": "box_table_sha256"}
SETTINGS = ("split_by", "split_seed", "boxes_unit", *TABLES, *TABLES.values())  # all that this module reads


def parent_of(key: str) -> str:
    """The folder that holds the clip; the clip itself if that is the root."""
    return key.rpartition("/")[0] or key


def split_fraction(name: str, seed: int) -> float:
    """A uniform number in [0, 1), a hash of ``name`` and ``seed``."""
    digest = hashlib.sha256(f"{seed}\0".encode() + os.fsencode(name)).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def split_names(splits: str | None) -> list[str]:
    """The names of the splits in the order given; SettingsError if ``splits`` is invalid."""
    if (file := table_of(splits)) is not None:
        return list(dict.fromkeys(read_table(file, "splits", "split").values()))
    return list(parse_splits(splits))


def parse_splits(splits: str | None) -> dict[str, float]:
    """``"train=0.8,val=0.2"`` as a dict; SettingsError if it is invalid or does not add up to 1."""
    if not splits:
        return {}
    try:
        pairs = [part.split("=") for part in splits.split(",")]
        parsed = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise SettingsError(
            f"splits is {shorten(splits, 60)!r}; it must look like train=0.8,val=0.1,test=0.1, or be csv:FILE"
        ) from None
    shares_fit = min(parsed.values()) >= 0 and abs(sum(parsed.values()) - 1) <= 1e-6  # neither holds for a NaN
    if len(parsed) != len(pairs) or "" in parsed or not shares_fit:
        raise SettingsError(
            f"splits is {shorten(splits, 60)!r}; names must differ, shares must be 0 or more and add up to 1"
        )
    return parsed


def splitter(settings: dict[str, Any]) -> Callable[[str], int]:
    """A function from clip key to the number of its split."""
    if (file := table_of(settings["splits"])) is not None:
        return _table_splitter(read_table(file, "splits", "split"))
    ends = np.cumsum(list(parse_splits(settings["splits"]).values()))
    by_parent = settings["split_by"] == "parent"

    def split_of(key: str) -> int:
        fraction = split_fraction(parent_of(key) if by_parent else key, settings["split_seed"])
        return min(int(np.searchsorted(ends, fraction, side="right")), len(ends) - 1)

    return split_of if len(ends) else lambda key: NONE


def _table_splitter(rows: dict[str, str]) -> Callable[[str], int]:
    """A function from clip key to the number of its split: that of the key's row, or of the nearest folder above it."""
    number = {name: k for k, name in enumerate(dict.fromkeys(rows.values()))}
    table = PathTable(rows)

    def split_of(key: str) -> int:
        return next((number[split] for head in heads(key) if (split := table.find(head)) is not None), NONE)

    return split_of


def table_of(rule: str | None) -> str | None:
    """FILE of a rule ``csv:FILE``; None for any other rule."""
    return rule[4:] if rule is not None and rule.startswith("csv:") else None


def read_table(path: str, rule: str, column: str) -> dict[str, str]:
    """A dict from clip key to ``column``, from a CSV file of two columns; the header clip,``column`` is optional.

    Rows with an empty cell are skipped. Raises SettingsError, naming the setting ``rule``, for an invalid table.
    """
    found: dict[str, str] = {}
    for line, row in table_rows(path, rule, [["clip", column]]):
        if len(row) != 2:
            raise SettingsError(
                f"{rule}: {path!r} must have two columns, clip key and {column}; line {line} has {len(row)}"
            )
        if "" in row:
            continue
        key, value = row[0].rstrip("/"), row[1]
        if found.setdefault(key, value) != value:
            raise SettingsError(f"{rule}: {path!r}, line {line}: {shorten(key, 60)!r} has another {column} above")
    if not found:
        raise SettingsError(f"{rule}: {path!r} must have two columns, clip key and {column}; it has none")
    return found


def _key_table(path: str) -> Rule:
    return PathTable(read_table(path, "label_from", "label")).find


def labeller(label_from: str | None, flag: str = "label_from", table: Callable[[str], Rule] = _key_table) -> Rule:
    """A function from clip key to label, or None. Raises SettingsError, naming ``flag``, for an invalid rule.

    ``table`` makes that function of a CSV file.
    """
    kind, _, rest = (label_from or "none").partition(":")
    if label_from is None:
        return lambda key: None
    if label_from == "parent":
        return parent_of
    if kind == "csv" and rest:
        return table(rest)
    if kind == "regex" and rest:
        try:
            pattern = re.compile(rest)
        except (re.error, RecursionError, OverflowError) as error:
            raise SettingsError(f"{flag}: {shorten(rest, 60)!r} is not a regular expression: {error}") from error
        return lambda key: match.group(pattern.groups and 1) if (match := pattern.search(key)) else None
    raise SettingsError(f"{flag} is {shorten(label_from, 60)!r}; it must be parent, regex:PATTERN or csv:FILE")


def label_clips(keys: list[str], settings: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """(int64 [keys]: positions in the names, or NONE; label names in natural order)."""
    labels = list(map(labeller(settings["label_from"]), keys))
    names = sorted(
        {label for label in labels if label is not None}, key=lambda name: scan.path_order(os.fsencode(name))
    )
    number = {label: k for k, label in enumerate(names)}
    return np.array([NONE if label is None else number[label] for label in labels], np.int64), names


def split_clips(keys: list[str], settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """int64 [keys], the number of each clip's split, or NONE."""
    return np.array(list(map(splitter(settings), keys)), np.int64)


def check_rules(settings: dict[str, Any]) -> None:
    """Raise SettingsError for a rule that is invalid for any clips."""
    split_names(settings["splits"])
    labeller(settings["label_from"])
    boxes_of(settings)


def check_labels(plan: Plan, settings: dict[str, Any]) -> None:
    """Raise SettingsError if ``label_from``, a table of splits or a table of boxes fits nothing in ``plan``."""
    rule = settings["label_from"]
    label_of, split_of = labeller(rule), splitter(settings)
    keys = [os.fsdecode(key) for key in plan.keys(0, plan.num_clips)]
    list(odd_tables(keys, settings))  # raises for tables in other encodings
    if rule is not None and all(label_of(key) is None for key in keys):
        raise SettingsError(
            f"label_from {shorten(str(rule), 60)!r} gives no clip a label; it must fit clip keys such as {keys[0]!r}"
        )
    if table_of(settings["splits"]) is not None and all(split_of(key) == NONE for key in keys):
        raise SettingsError(
            f"splits {settings['splits']!r} names no clip and no folder of clips; keys are such as {keys[0]!r}"
        )
    if settings["boxes"] is not None:
        boxes = boxes_of(settings)
        names = (os.fsdecode(frame.path) for shard in range(plan.num_shards) for frame in plan.shard_plan(shard))
        if not sum(map(boxes.has_row, names)):  # asks for all names, so that unused() knows the other rows
            first = os.fsdecode(next(plan.shard_plan(0)).path)
            raise SettingsError(f"boxes {settings['boxes']!r} names no frame; frames are named such as {first!r}")
        boxes.unused()


def odd_tables(keys: list[str], settings: dict[str, Any]) -> Iterator[Odd]:
    """What looks odd in the tables of labels and splits: rows that fit no clip, clips without a row.

    Raises SettingsError for a row that fits no clip and is not in UTF-8.
    """
    for rule, column in (("label_from", "label"), ("splits", "split")):
        if (file := table_of(settings[rule])) is None:
            continue
        rows = read_table(file, rule, column)
        written: dict[str, set[str]] = {}
        for value in rows.values():
            written.setdefault(value.casefold(), set()).add(value)
        if several := [", ".join(sorted(names)) for names in written.values() if len(names) > 1]:
            yield Odd(f"{column}s that differ only in upper and lower case", min(several), "", len(several))
        table = PathTable(rows)
        ways = heads if rule == "splits" else lambda key: iter([key])
        without = [key for key in keys if not [way for way in ways(key) if table.find(way) is not None]]
        for what, names in (
            (f"rows of the table of {column}s that fit no clip", table.unused(f"{rule}: {file!r}")),
            (f"clips without a row in the table of {column}s", without),
        ):
            if names:
                yield Odd(what, min(names), number=len(names))


def boxes_of(settings: dict[str, Any]) -> Boxes:
    """The table of boxes in ``settings``; SettingsError if it is invalid."""
    rule = settings["boxes"]
    if rule is not None and table_of(rule) is None:
        raise SettingsError(f"boxes is {shorten(rule, 60)!r}; it must be csv:FILE")
    return Boxes(table_of(rule), settings.get("boxes_unit", "pixel"))
