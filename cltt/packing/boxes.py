"""Boxes and points of frames from a CSV table, found by the frame's name."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cltt.errors import SettingsError
from cltt.files.tables import PathTable, table_rows
from cltt.source.odd import Odd
from cltt.text import counted, shorten

Box = tuple[float, float, float, float]
_EMPTY: Box = (math.nan, math.nan, math.nan, math.nan)  # of a row whose frame has no box
_NONE = {"", "na", "n/a", "nan", "none", "null"}


class Boxes:
    """The boxes of a table; a point is a box of no width and height.

    Args:
        file: the table, with rows frame,x1,y1,x2,y2 or frame,x,y and an optional header; None: no boxes.
        unit: "pixel" of the upright source, or "share" of its width and height.

    Attributes:
        used: number of frames for which :meth:`of` returned a box.

    Raises SettingsError for other rows, and for numbers that cannot be in this unit.
    """

    def __init__(self, file: str | None, unit: str) -> None:
        self._file, self._unit = file, unit
        self._table = PathTable({} if file is None else _read(file))
        self._outside: list[str] = []
        self._without: list[str] = []
        self.used = 0
        boxes = [box for box in self._table.values.values() if box is not _EMPTY]
        if file is None:
            return
        where = f"boxes: all {counted(len(self._table.values), 'row')} of {file!r}"
        if not boxes:
            raise SettingsError(f"{where} are without a box (-1, NaN or empty)")
        if unit == "pixel" and all(map(_looks_like_shares, boxes)) and not all(map(_is_whole_point, boxes)):
            raise SettingsError(
                f"{where} lie between 0 and 1, as shares of a frame's size do: give --boxes-unit share, or write pixels"
            )
        if unit == "share" and not any(_is_within(box, 1, 1) for box in boxes):
            raise SettingsError(f"{where} lie outside of 0 to 1: give --boxes-unit pixel, or write shares")

    def has_row(self, name: str) -> bool:
        """Whether the table has a row for the frame."""
        return self._table.find(name) is not None

    def of(self, name: str, width: int, height: int) -> np.ndarray | None:
        """The frame's box: float64 [4], relative to its size in pixels and clipped to 0..1; None: no box."""
        box = self._table.find(name)
        if box is None:
            self._without.append(name)
        if box is None or box is _EMPTY:
            return None
        size = (width, height) if self._unit == "pixel" else (1, 1)
        if not _is_within(box, *size):
            self._outside.append(name)
            return None
        self.used += 1
        return np.clip(np.divide(box, np.tile(size, 2)), 0, 1)

    def unused(self) -> list[str]:
        """Rows that fit no frame asked for so far; SettingsError if such a row is not in UTF-8."""
        return self._table.unused(f"boxes: {self._file!r}")

    def odd(self) -> Iterator[Odd]:
        """What looks odd, once all frames have been asked for."""
        empty = [name for name, box in self._table.values.items() if box is _EMPTY]
        kinds = {
            "rows of the table of boxes that fit no frame": self.unused(),
            "rows of the table of boxes without a box (-1, NaN or empty)": empty,
            "boxes outside of their frames, which count as none": self._outside,
            "frames without a row in the table of boxes": self._without,
        }
        yield from (Odd(what, min(names), number=len(names)) for what, names in kinds.items() if names)


def _is_within(box: Box, width: float, height: float) -> bool:
    """Whether any part of the box is inside a frame of this size."""
    return box[2] >= 0 and box[3] >= 0 and box[0] <= width and box[1] <= height


def _looks_like_shares(box: Box) -> bool:
    return min(box) >= 0 and max(box) <= 1


def _is_whole_point(box: Box) -> bool:
    """Whether it is a point with integer coordinates, such as ``1,1``, which may be pixels."""
    return box[:2] == box[2:] and all(number.is_integer() for number in box)


def _read(file: str) -> dict[str, Box]:
    found: dict[str, Box] = {}
    for line, row in table_rows(file, "boxes", [["frame", "x1", "y1", "x2", "y2"], ["frame", "x", "y"]]):
        if row[0] in found:
            raise SettingsError(f"boxes: {file!r} names {shorten(row[0], 60)!r} twice, the second time in line {line}")
        found[row[0]] = _box(row, f"boxes: line {line} of {file!r}")
    return found


def _box(row: list[str], where: str) -> Box:
    """The box of a row; _EMPTY if its cells are empty, NaN or -1."""
    try:
        numbers = [math.nan if value.lower() in _NONE else float(value) for value in row[1:]]
    except ValueError:
        raise SettingsError(
            f"{where} is {','.join(row)[:80]!r}; the cells after the frame's name must be numbers"
        ) from None
    none = not np.isfinite(numbers).all() or all(number == -1 for number in numbers)
    if len(numbers) == 2:
        numbers *= 2
    if len(numbers) != 4 or (not none and (numbers[0] > numbers[2] or numbers[1] > numbers[3])):
        raise SettingsError(f"{where} is {','.join(row)[:80]!r}; it must be frame,x1,y1,x2,y2 (x1<=x2) or frame,x,y")
    return _EMPTY if none else (numbers[0], numbers[1], numbers[2], numbers[3])
