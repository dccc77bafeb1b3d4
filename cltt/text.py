"""Text for users: counts, sizes, and names that a terminal or a font can show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


def say(line: str) -> None:
    """Print a line and flush it; see :func:`never_failing_log`."""
    with never_failing_log():
        print(line, flush=True)


@contextlib.contextmanager
def never_failing_log() -> Iterator[None]:
    """A block whose failed log writes never abort the run; only BrokenPipeError is raised."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, UnicodeEncodeError):  # UnicodeEncodeError: only in programs that cltt.cli did not start
        pass


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 clip``, ``2,000 clips``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def byte_size(size: float) -> str:
    """A number of bytes in GB (1e9 bytes), below 0.1 GB in MB, below 0.1 MB in kB: ``1.23 GB``, ``82.3 MB``."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit / 10), (1e3, "kB"))
    value = size / unit
    return f"{value:,.0f} {name}" if value >= 100 else f"{value:.3g} {name}"


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The values of ``now`` that differ from ``saved``, in words: ``["batch_size is 16 and was 32", ...]``.

    A name that is missing in ``saved`` was None. Names that only ``saved`` has are ignored.
    """
    return [
        f"{name} is {shorten(str(value), _MAX_VALUE)} and was {shorten(str(saved.get(name)), _MAX_VALUE)}"
        for name, value in now.items()
        if saved.get(name) != value
    ]


_MAX_VALUE = 100  # characters of a value in a sentence; a hash has 64


def printable(text: str) -> str:
    """``text`` with ``?`` for undecodable bytes and control characters, which a font cannot draw."""
    return "".join(char if char.isprintable() else "?" for char in text)


def printable_lines(text: str) -> str:
    """As :func:`printable`, for each line."""
    return "\n".join(printable(line) for line in text.split("\n"))


def shorten(text: str, letters: int) -> str:
    """``text``, without its middle if it is longer than ``letters``; more of the end stays, as it names the frame."""
    if len(text) <= letters:
        return text
    head = max(0, (letters - 1) // 3)
    return text[:head] + "…" + text[len(text) - (letters - 1 - head) :]
