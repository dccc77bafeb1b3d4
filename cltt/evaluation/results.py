"""``evaluation.csv``, ``.json`` and ``.png``: rows are added, and replace those of the same evaluation alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cltt.errors import DataError
from cltt.evaluation.plots import draw_evaluations
from cltt.files.atomic import replace_file
from cltt.files.locks import locked
from cltt.files.regular import read_regular
from cltt.metrics import csv_text
from cltt.visualize.figures import save_figure

NAME = "evaluation"
JSON_FILE, CSV_FILE = f"{NAME}.json", f"{NAME}.csv"
# Evaluations of these in common are one evaluation done again.
KEY = ("checkpoint", "data", "rules", "image_size", "normalise", "probe")
MAX_BYTES = 1 << 28
Row = dict[str, Any]


def add_rows(out: Path, rows: list[Row], flat: list[Row]) -> None:
    """Add ``rows`` to ``evaluation.json`` and ``flat``, the same in columns, to ``evaluation.csv``; draw the picture.

    The picture shows the rows of this data, these rules and this probe, of this call and earlier ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _add_to_json(out / JSON_FILE, rows)
        table = merged(_read(out / CSV_FILE, _csv_rows), flat)
        columns = tuple(dict.fromkeys(name for row in (*flat, *table) for name in row))
        replace_file(out / CSV_FILE, csv_text(columns, table).encode())
        shown = [row for row in table if _key(row)[1:] in {_key(row)[1:] for row in flat}]
        save_figure(draw_evaluations(shown), out / f"{NAME}.png")


def add_json(out: Path, row: Row) -> None:
    """Add ``row`` to ``evaluation.json`` alone: what a run that evaluates itself leaves there."""
    with _locked(out):
        _add_to_json(out / JSON_FILE, [row])


def check(out: Path) -> None:
    """DataError, before any work, if what lies in ``out`` under our names cannot be added to."""
    _read(out / JSON_FILE, _json_rows)
    _read(out / CSV_FILE, _csv_rows)


def merged(old: list[Row], new: list[Row]) -> list[Row]:
    """``old`` without what ``new`` replaces, and ``new``."""
    replaced = {_key(row) for row in new}
    return [row for row in old if _key(row) not in replaced] + new


def _key(row: Row) -> tuple[str, ...]:
    """As text, as the CSV has it."""
    return tuple(str(row.get(name, "")) for name in KEY)


def _read(path: Path, rows_in: Callable[[bytes], list[Row] | None]) -> list[Row]:
    """The rows in ``path``, if it exists, as ``rows_in`` makes them of its contents (None: they are not ours)."""
    if not path.exists():
        return []
    try:
        rows = rows_in(read_regular(path, MAX_BYTES))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be added to ({error}); move it away") from error
    if rows is None:
        raise DataError(f"{path} holds no evaluations, so nothing can be added to it; move it away")
    return rows


def _json_rows(data: bytes) -> list[Row] | None:
    """The rows of ``evaluation.json``; of 0.1.0's training, which kept the last alone, that one."""
    found = json.loads(data)
    rows = found if isinstance(found, list) else [found]
    return rows if all(isinstance(row, dict) for row in rows) else None


def _csv_rows(data: bytes) -> list[Row] | None:
    """The rows of ``evaluation.csv``, cells as text, without the empty ones."""
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
    if rows and ("epoch" not in rows[0] or any(None in row for row in rows)):
        return None
    return [{name: cell for name, cell in row.items() if cell not in ("", None)} for row in rows]


def _add_to_json(path: Path, rows: list[Row]) -> None:
    replace_file(path, json.dumps(merged(_read(path, _json_rows), rows), indent=1).encode())


def _locked(out: Path) -> AbstractContextManager[None]:
    """Two evaluations that end at once add their rows one after the other."""
    return locked(out / f".{NAME}.lock", wait=True, held=f"{out} is written to", otherwise="give another --out")
