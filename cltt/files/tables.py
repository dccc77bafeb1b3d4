"""Tables (CSV) that people and other programs write: their rows, and values looked up by path."""

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
_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8


def table_rows(
    path: str, rule: str, headers: list[list[str]], *, tabs: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each row of a table, without empty rows and a first row that is one of ``headers``.

    Cells are stripped. Commas separate them; if the first line has none, semicolons or tabs do. With ``tabs``, a tab in
    the first line makes tabs the separator. Raises SettingsError, which begins with ``rule``, for a table that cannot
    be read.
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
    """``path`` in the form that is compared: ``/`` for ``\\``, no ``./``, no blanks at the ends, accents composed."""
    parts = unicodedata.normalize("NFC", path.strip("\ufeff \t\r\n\xa0")).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".")) or "."


class PathTable(Generic[V]):
    """Values by path. A path is looked up as it is written, then in the form of :func:`plain_path`.

    Attributes:
        values: as given.
        used: the paths of the table that were looked up.
    """

    def __init__(self, values: Mapping[str, V]) -> None:
        self.values = values
        self.used: set[str] = set()
        self._written: dict[str, str | None] = {}  # by plain path; None: several paths of the table have this form
        for path in values:
            plain = plain_path(path)
            self._written[plain] = None if plain in self._written else path

    def find(self, path: str) -> V | None:
        """The value of ``path``; None if the table does not have it."""
        written = path if path in self.values else self._written.get(plain_path(path))
        if written is None:
            return None
        self.used.add(written)
        return self.values[written]

    def unused(self, where: str) -> list[str]:
        """The paths that were never looked up, sorted. SettingsError, naming ``where``, if one is not UTF-8."""
        left = sorted(self.values.keys() - self.used)
        wrong = next(filter(_UNDECODED.search, left), None)
        if wrong is not None:
            raise SettingsError(
                f"{where} names {shorten(repr(wrong), 60)}, which matches no path: save the table as UTF-8"
            )
        return left
