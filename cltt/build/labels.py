"""Labels and splits of clips, by the key of the clip's folder alone.

They are given when the shards are merged, so they change no packed byte; but a rule that fits no clip is found when the
source has been scanned, before hours of packing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cltt.build.plan import Plan
from cltt.errors import SettingsError
from cltt.files.regular import read_regular
from cltt.source import scan
from cltt.text import shorten

NONE = -1  # no label, no split
Rule = Callable[[str], str | None]
MAX_TABLE = 1 << 30  # bytes of a label table
SETTINGS = ("splits", "split_by", "split_seed", "label_from", "label_table_sha256")  # all that is looked at here


def parent_of(key: str) -> str:
    """The folder that holds the clip; a clip that lies directly under the root is its own."""
    return key.rpartition("/")[0] or key


def split_fraction(name: str, seed: int) -> float:
    """A number in [0, 1) that depends on ``name`` and ``seed`` alone."""
    digest = hashlib.sha256(f"{seed}\0".encode() + os.fsencode(name)).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def parse_splits(splits: str | None) -> dict[str, float]:
    """``"train=0.8,val=0.2"`` as a dict; SettingsError if it is not that or does not add up to 1."""
    if not splits:
        return {}
    try:
        pairs = [part.split("=") for part in splits.split(",")]
        parsed = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        raise SettingsError(
            f"splits is {shorten(splits, 60)!r}; it must look like train=0.8,val=0.1,test=0.1"
        ) from None
    shares_fit = min(parsed.values()) >= 0 and abs(sum(parsed.values()) - 1) <= 1e-6  # neither holds for a NaN
    if len(parsed) != len(pairs) or "" in parsed or not shares_fit:
        raise SettingsError(
            f"splits is {shorten(splits, 60)!r}; names must differ, shares be 0 or more and add up to 1"
        )
    return parsed


def splitter(settings: dict[str, Any]) -> Callable[[str], int]:
    """A function from clip key to the number of its split."""
    ends = np.cumsum(list(parse_splits(settings["splits"]).values()))
    by_parent = settings["split_by"] == "parent"

    def split_of(key: str) -> int:
        fraction = split_fraction(parent_of(key) if by_parent else key, settings["split_seed"])
        return min(int(np.searchsorted(ends, fraction, side="right")), len(ends) - 1)

    return split_of if len(ends) else lambda key: NONE


def read_label_table(path: str) -> dict[str, str]:
    """Clip key -> label from a CSV file of two columns (a first row ``clip,label`` is a header)."""
    try:
        text = read_regular(path, MAX_TABLE).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SettingsError(f"label_from: cannot read {path!r}: {error.strerror}") from error
    labels: dict[str, str] = {}
    for line, row in table_rows(path, text, "label_from"):
        if len(row) != 2:
            raise SettingsError(
                f"label_from: {path!r} must have two columns, clip key and label; line {line} has {len(row)}"
            )
        key, label = row[0].rstrip("/"), row[1]
        if labels.setdefault(key, label) != label:
            raise SettingsError(f"label_from: {path!r}, line {line}: {shorten(key, 60)!r} has another label above")
    if not labels:
        raise SettingsError(f"label_from: {path!r} must have two columns, clip key and label; it has none")
    return labels


def table_rows(path: str, text: str, flag: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of the rows of a table, without a header ``clip,label`` and empty lines."""
    if "\0" in text:
        raise SettingsError(f"{flag}: {path!r} holds NUL bytes; save it as plain text in UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, row in enumerate(row for row in reader if row):
            if number or row != ["clip", "label"]:
                yield reader.line_num, row
    except csv.Error as error:
        raise SettingsError(f"{flag}: {path!r}, line {reader.line_num}: {error}") from error


def _key_table(path: str) -> Rule:
    return read_label_table(path).get


def labeller(label_from: str | None, flag: str = "label_from", table: Callable[[str], Rule] = _key_table) -> Rule:
    """A function from clip key to label (None: none). SettingsError, naming ``flag``, for a rule that cannot work.

    ``table`` makes one of a CSV file.
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
    """(int64 [keys], label names in natural order): a number in the names for each clip, NONE where it has no label."""
    labels = list(map(labeller(settings["label_from"]), keys))
    names = sorted(
        {label for label in labels if label is not None}, key=lambda name: scan.path_order(os.fsencode(name))
    )
    number = {label: k for k, label in enumerate(names)}
    return np.array([NONE if label is None else number[label] for label in labels], np.int64), names


def split_clips(keys: list[str], settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """int64 [keys]: the number of each clip's split."""
    return np.array(list(map(splitter(settings), keys)), np.int64)


def check_labels(plan: Plan, settings: dict[str, Any]) -> None:
    """SettingsError if ``label_from`` gives not one clip of ``plan`` a label."""
    rule = settings["label_from"]
    label_of = labeller(rule)
    keys = [os.fsdecode(key) for key in plan.keys(0, plan.num_clips)] if rule is not None else []
    if keys and all(label_of(key) is None for key in keys):
        raise SettingsError(f"label_from {rule!r} gives no clip a label; it must fit clip keys such as {keys[0]!r}")
