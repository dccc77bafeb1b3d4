"""Findings: what looks odd in a source. Records are added up over a build and give one line each in its report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cltt.text import printable


class Odd(NamedTuple):
    """Something that looks odd, as found in one place.

    what: the kind, in the same words for all of it, as in "videos of several streams". example: the clip or file.
    flag: what the user can do, or empty. number: how many of this kind.
    """

    what: str
    example: str
    flag: str = ""
    number: int = 1


def merge_odd(records: Iterable[Odd]) -> list[Odd]:
    """One record per (what, flag) with the numbers added up; the order of ``records`` does not matter."""
    found: dict[tuple[str, str], Odd] = {}
    for new in records:
        old = found.get((new.what, new.flag), new._replace(number=0))
        found[new.what, new.flag] = new._replace(example=min(old.example, new.example), number=old.number + new.number)
    return [found[key] for key in sorted(found)]


def odd_lines(records: Iterable[Odd]) -> list[str]:
    """One line per kind: what looks odd, how many, an example, what to do."""
    return [
        f"{odd.what}: {odd.number:,} ({'' if odd.number == 1 else 'as '}{printable(odd.example)})"
        + (f"; {odd.flag}" if odd.flag else "")
        for odd in merge_odd(records)
    ]
