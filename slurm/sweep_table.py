"""Read a sweep table: a header with flag names of train.py, then one run per line.

    python slurm/sweep_table.py check TABLE [FLAG...]   check every line with train.py's own parser; print their number
    python slurm/sweep_table.py line TABLE I            name and flags of run I (from 0), each ended by a NUL byte

Empty lines and `#` comments are skipped. Blanks separate values, which are quoted as in a shell. `-` leaves a flag at
its default, `yes` gives a flag without a value, `no` leaves it out.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

from cltt import cli
from cltt.commands import train
from cltt.errors import SettingsError
from cltt.files.regular import read_text

MAX_TABLE = 1 << 24  # bytes
Row = dict[str, str]  # flag name without dashes -> value as written


def read_table(path: Path) -> list[tuple[int, Row]]:
    """(line number, values) of every run in the table.

    Raises SettingsError for a table that cannot be read, has no run, or has a wrong line, which is named.
    """
    try:
        text = read_text(path, MAX_TABLE)
    except OSError as error:
        raise SettingsError(f"cannot read the sweep table {path}: {error.strerror}") from error
    lines = [(number, split_line(path, number, line)) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, values) for number, values in lines if values]
    if len(lines) < 2:
        raise SettingsError(f"the sweep table {path} needs a header with flag names and at least one line below it")
    header = check_header(path, *lines[0])
    return [(number, make_row(path, number, header, values)) for number, values in lines[1:]]


def split_line(path: Path, number: int, line: str) -> list[str]:
    """The values of one line, without comments."""
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise SettingsError(f"{path} line {number}: {error}") from error


def check_header(path: Path, number: int, names: list[str]) -> list[str]:
    """The flag names of the header, without leading dashes."""
    names = [name.removeprefix("--") for name in names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise SettingsError(f"{path} line {number}: column {repeated[0]} occurs twice; remove one")
    return names


def make_row(path: Path, number: int, header: list[str], values: list[str]) -> Row:
    """The values of one run by the header's names."""
    if len(values) != len(header):
        raise SettingsError(
            f"{path} line {number}: {len(values)} values for {len(header)} columns ({' '.join(header)})"
        )
    return dict(zip(header, values, strict=True))


def row_flags(row: Row) -> list[str]:
    """The arguments of train.py for a row."""
    flags = []
    for name, value in row.items():
        if value == "yes":
            flags.append(f"--{name}")
        elif value not in ("no", "-"):
            flags.append(f"--{name}={value}")
    return flags


def row_name(row: Row) -> str:
    """The name of a run's folder, made of its settings: ``window-size=5,frame-step=2``."""
    settings = [f"{name}={value}" for name, value in row.items() if value != "-"]
    return re.sub(r"[^\w.,=+-]", "_", ",".join(settings)) or "default"


def check_table(path: Path, extra: list[str]) -> int:
    """The number of runs in the table. SettingsError, which names the line, for a wrong or repeated run."""
    seen: dict[str, int] = {}
    for number, row in read_table(path):
        name = row_name(row)
        if name in seen:
            raise SettingsError(f"{path} line {number}: the same run as line {seen[name]} ({name})")
        seen[name] = number
        try:
            parse_flags([*extra, *row_flags(row)])
        except SettingsError as error:
            raise SettingsError(f"{path} line {number}: {error}") from error
    return len(seen)


def parse_flags(argv: list[str]) -> None:
    """Raise SettingsError for arguments that train.py refuses."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            train.parse(argv)
    except SystemExit as error:
        raise SettingsError(complaint.getvalue().strip().removeprefix("train.py: error: ")) from error


def main(argv: list[str]) -> None:
    """Run the command in ``argv`` (see the module's docstring)."""
    if len(argv) >= 2 and argv[0] == "check":
        print(check_table(Path(argv[1]), argv[2:]))
    elif len(argv) == 3 and argv[0] == "line":
        rows = read_table(Path(argv[1]))
        if int(argv[2]) >= len(rows):
            raise SettingsError(f"run {argv[2]} was asked for, but {argv[1]} has {len(rows)} (counted from 0)")
        _, row = rows[int(argv[2])]
        line = "".join(item + "\0" for item in [row_name(row), *row_flags(row)])
        sys.stdout.buffer.write(line.encode(errors="surrogateescape"))  # the table's own bytes, in any locale
    else:
        raise SettingsError("usage: sweep_table.py check TABLE [FLAG...] | line TABLE I")


if __name__ == "__main__":
    cli.run(lambda: main(sys.argv[1:]), prog="sweep")
