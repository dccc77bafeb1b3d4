"""Tables and lists as people and other programs write them: their text, their rows, and the paths in them."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from cltt.errors import SettingsError
from cltt.files.regular import read_text
from cltt.text import shorten

V = TypeVar("V")
MAX_TABLE = 1 << 30  # bytes
_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8


def table_rows(
    path: str, rule: str, headers: list[list[str]], *, tabs: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line, cells without blanks at their ends) of a table's rows, without a header and empty lines.

    Cells are parted by commas; by semicolons or tabs where the first line has no comma, or a tab and ``tabs``.
    """
    try:
        text = read_text(path, MAX_TABLE)
    except OSError as error:
        raise SettingsError(f"{rule}: cannot read {path!r}: {error.strerror}") from error
    first = text.partition("\n")[0]
    order = "\t,;" if tabs else ",;\t"
    delimiter = next((sign for sign in order if sign in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for number, row in enumerate([cell.strip() for cell in row] for row in reader if row):
            if number or row not in headers:
                yield reader.line_num, row
    except csv.Error as error:
        raise SettingsError(f"{rule}: {path!r}, line {reader.line_num}: {error}") from error


def plain_path(path: str) -> str:
    """``path`` as it is compared: ``/`` for ``\\``, nothing of ``./``, blanks at the ends gone, accents composed."""
    parts = unicodedata.normalize("NFC", path.strip("\ufeff \t\r\n\xa0")).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".")) or "."


class PathTable(Generic[V]):
    """Values by paths; a path is found as it is written, or else as another way to write it.

    Attributes:
        values: as given.
        used: paths of the table that were found.
    """

    def __init__(self, values: Mapping[str, V]) -> None:
        self.values = values
        self.used: set[str] = set()
        self._written: dict[str, str | None] = {}  # None: several ways of one path
        for path in values:
            plain = plain_path(path)
            self._written[plain] = None if plain in self._written else path

    def find(self, path: str) -> V | None:
        """The value of ``path``; None if the table has none."""
        written = path if path in self.values else self._written.get(plain_path(path))
        if written is None:
            return None
        self.used.add(written)
        return self.values[written]

    def unused(self, where: str) -> list[str]:
        """The paths that were not found, sorted. SettingsError, naming the table, if one of them is no UTF-8."""
        left = sorted(self.values.keys() - self.used)
        wrong = next(filter(_UNDECODED.search, left), None)
        if wrong is not None:
            raise SettingsError(
                f"{where} names {shorten(repr(wrong), 60)}, which fits nothing: save the table as UTF-8"
            )
        return left
