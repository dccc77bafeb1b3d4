"""What looks odd in a source: records that are added up over a build, and the line that each gives in its report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cltt.text import printable


class Odd(NamedTuple):
    """Something that looks odd, as it was found in one place.

    what: the same words for all of a kind, as in "videos of several streams". example: the clip or file. flag: what to
    do about it, empty if there is nothing. number: how many of the kind.
    """

    what: str
    example: str
    flag: str = ""
    number: int = 1


def merge_odd(records: Iterable[Odd]) -> list[Odd]:
    """One record per (what, flag), the numbers added up; the same whatever the order of ``records``."""
    found: dict[tuple[str, str], Odd] = {}
    for new in records:
        old = found.get((new.what, new.flag), new._replace(number=0))
        found[new.what, new.flag] = new._replace(example=min(old.example, new.example), number=old.number + new.number)
    return [found[key] for key in sorted(found)]


def odd_lines(records: Iterable[Odd]) -> list[str]:
    """Each kind as a line: what looks odd, how many, an example, what to do."""
    return [
        f"{odd.what}: {odd.number:,} ({'' if odd.number == 1 else 'as '}{printable(odd.example)})"
        + (f"; {odd.flag}" if odd.flag else "")
        for odd in merge_odd(records)
    ]
