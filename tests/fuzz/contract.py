"""What every kind of hostile input is held to, and how bytes are spoilt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from cltt.errors import CLTTError

Rng = np.random.Generator
T = TypeVar("T")
MOST_LETTERS = 2000  # of an error; a path alone may have hundreds
# Values that readers forget: ends of ranges, other types, paths that lead out, text that is no text.
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 255, 65_536, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, 1 << 64, -(1 << 63)),
    *(10**22, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", " ", "\0", "a\nb", "../../x", "/etc/passwd", "x" * 300),
    *(
        "é",
        "\ud800",
        "shard-000000.tar",
        "shard-000009.tar",
        ".",
        "..",
        "./a",
        [],
        [[]],
        {},
        {"a": 1},
        ["x"],
        [1, 2, 3],
    ),
]


class Broken(AssertionError):
    """A contract was not kept."""


class Kind(Protocol):
    """One kind of input; ``case`` makes one, tries it, and says how it ended. Raises Broken."""

    def __init__(self, folder: Path) -> None: ...
    def case(self, rng: Rng) -> str: ...


def demand(condition: bool, message: str) -> None:
    if not condition:
        raise Broken(message)


def one_sentence(error: BaseException) -> str:
    """The kind of a refusal, once it is of our own kind and reads as one line."""
    if not isinstance(error, CLTTError):
        raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
    text = str(error)
    demand("\n" not in text.strip() and 0 < len(text) < MOST_LETTERS, f"no sentence: {text[:300]!r}")
    return type(error).__name__


def attempt(call: Callable[[], T]) -> tuple[T | None, str]:
    """(what ``call`` returns, "") or (None, the kind of refusal). Broken for any error that is not ours."""
    try:
        return call(), ""
    except Exception as error:
        return None, one_sentence(error)


@contextlib.contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Broken if any file below ``folder`` has come, gone or changed."""
    before = _picture_of(folder)
    yield
    demand(_picture_of(folder) == before, f"something outside was touched: {before} -> {_picture_of(folder)}")


def _picture_of(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(path, name))
            found[os.path.join(path, name)] = (status.st_size, status.st_mtime_ns)
    return found


# ---- spoiling bytes


def spoil(rng: Rng, data: bytes, other: bytes = b"") -> bytes:
    """``data`` changed in one to four places, or cut, or joined with ``other``."""
    for _ in range(int(rng.integers(1, 5))):
        if data:
            data = SPOILERS[int(rng.integers(len(SPOILERS)))](rng, data, other)
    return data


def _place(rng: Rng, data: bytes) -> int:
    """Half of the places lie in the first 600 bytes, where headers are."""
    end = min(len(data), 600) if rng.random() < 0.5 else len(data)
    return int(rng.integers(end))


def _flip(rng: Rng, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def _set(rng: Rng, data: bytes, _: bytes) -> bytes:
    at, size = _place(rng, data), int(rng.choice([1, 2, 4, 8]))
    value = rng.choice([b"\0" * size, b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), rng.bytes(size)])
    return data[:at] + bytes(value)[:size].ljust(size, b"\0") + data[at + size :]


def _hole(rng: Rng, data: bytes, _: bytes) -> bytes:
    at, size = _place(rng, data), int(rng.integers(1, 200))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _delete(rng: Rng, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + int(rng.integers(1, 100)) :]


def _repeat(rng: Rng, data: bytes, _: bytes) -> bytes:
    at, size = _place(rng, data), int(rng.integers(1, 200))
    return data[: at + size] + data[at : at + size] * int(rng.integers(1, 4)) + data[at + size :]


def _cut(rng: Rng, data: bytes, _: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _grow(rng: Rng, data: bytes, _: bytes) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 100)))


def _splice(rng: Rng, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :] if other else data


SPOILERS = (_flip, _flip, _flip, _set, _set, _hole, _delete, _repeat, _cut, _grow, _splice)


def spoil_tree(rng: Rng, value: Any) -> Any:
    """A nested table or list with one entry replaced by a hostile value, taken out, or put in."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: spoil_tree(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        if rng.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], spoil_tree(rng, value[at]), *value[at + 1 :]]
    return HOSTILE[int(rng.integers(len(HOSTILE)))]
