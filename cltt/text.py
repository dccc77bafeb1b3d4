"""Words for people: counts, names that a terminal or a font can show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def say(line: str) -> None:
    """Print a line at once; see :func:`never_failing_log`."""
    with never_failing_log():
        print(line, flush=True)


@contextlib.contextmanager
def never_failing_log() -> Iterator[None]:
    """A log on a full disk must not end what it tells of: a line may be lost. (A reader that has gone is no disk.)"""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


def counted(number: int, noun: str) -> str:
    """``1 clip``, ``2,000 clips``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """``text`` without what a font cannot draw: undecodable bytes and control characters become ``?``."""
    return "".join(char if char.isprintable() else "?" for char in text)


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def shorten(text: str, letters: int) -> str:
    """``text`` with its middle left out if it is longer than ``letters``; more of the end stays: it names the frame."""
    if len(text) <= letters:
        return text
    head = max(0, (letters - 1) // 3)
    return text[:head] + "…" + text[len(text) - (letters - 1 - head) :]
