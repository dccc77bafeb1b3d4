"""Rewrite the tables of ``benchmarks/README.md`` from the CSV files: ``python -m benchmarks.report``.

A table stands between ``<!-- results NAME: column, column ... -->`` and ``<!-- end -->``; NAME is a file of
``benchmarks/results``. An optional ``where column=value`` after the columns keeps some rows only. Tables are made of
what the files hold, never typed.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from benchmarks import harness

README = Path(__file__).parent / "README.md"
TABLE = re.compile(
    r"<!-- results (?P<name>[\w-]+): (?P<columns>.+?)(?: where (?P<key>\w+)=(?P<value>[^>]+?))? -->\n.*?<!-- end -->",
    re.DOTALL,
)


def read_rows(name: str) -> list[dict[str, str]]:
    """Rows of ``benchmarks/results/NAME.csv``; none if that benchmark has not been run."""
    path = harness.RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown_table(rows: list[dict[str, str]], columns: list[str]) -> str:
    """A GitHub table of the given columns; a column that the rows lack is an error, not a gap."""
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row[column] for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def conditions(rows: list[dict[str, str]]) -> str:
    """One line that says where and when the rows were measured."""
    first = rows[0]
    machine = f"{first['cpu']}, {first['cores']} cores, GPU: {first['gpu']}"
    return f"*{machine}; Python {first['python']}, torch {first['torch']}; {first['date']}, commit {first['commit']}*"


def fill(match: re.Match[str]) -> str:
    """The marker, its table made anew, and the end marker."""
    head = match.group(0).split("\n", 1)[0]
    rows = read_rows(match["name"])
    if match["key"]:
        rows = [row for row in rows if row[match["key"]] == match["value"]]
    if not rows:
        return f"{head}\nNot measured here: there is no such row in `results/{match['name']}.csv`.\n<!-- end -->"
    columns = [column.strip() for column in match["columns"].split(",")]
    return f"{head}\n{markdown_table(rows, columns)}\n\n{conditions(rows)}\n<!-- end -->"


def main() -> int:
    README.write_text(TABLE.sub(fill, README.read_text()))
    print(f"tables of {README.relative_to(harness.ROOT)} made from benchmarks/results/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
