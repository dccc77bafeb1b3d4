"""CIFAR's python archives, read without making anything of what a pickle asks for.

A pickle is a program. The only ones run here are those that give dictionaries, lists, tuples, text, numbers and, in
place of numpy's arrays, a note of what they hold; the array is made from the note once all of it has been checked.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cltt.errors import DataError
from cltt.files.regular import read_regular

SIDE, CHANNELS = 32, 3  # pixels, colours
MAX_BYTES = 1 << 29  # of an archive; CIFAR-100's train part has 155 MB
MAX_STEPS = 4_000_000  # of the pickle's program; CIFAR-100's train part has about 700,000
MAX_SHARED = 20  # tuples used again: nested in each other, each twice, they take 2**n steps to hash
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_REFUSED = {"DUP", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "FROZENSET"} | {
    "EMPTY_SET",
    "ADDITEMS",
    "NEXT_BUFFER",
    "READONLY_BUFFER",
}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}


class Archive(NamedTuple):
    """``pixels`` uint8 [n, 32, 32, 3] RGB, ``labels`` int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray


class _Dtype:
    """In place of ``numpy.dtype``: its name alone."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and layout, which a byte does not have."""


class _Array:
    """In place of ``numpy.ndarray``: what it was saved from."""

    shape: Any = None
    dtype: Any = None
    raw: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, is_fortran, self.raw = state
        if is_fortran:
            raise pickle.UnpicklingError("its array is in Fortran's order")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._text_left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Dtype if name == "dtype" else None
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        raise pickle.UnpicklingError(f"it asks for {module[:40]}.{name[:40]}")

    def _encode(self, text: str, coding: str = "latin1") -> bytes:
        """Bytes, as Python 3 saves them for Python 2; in all no more than the file has."""
        self._text_left -= len(text)
        if coding != "latin1" or self._text_left < 0:
            raise pickle.UnpicklingError("its text is not as Python saves it")
        return text.encode("latin1")


def _check_steps(data: bytes) -> None:
    """UnpicklingError for a program that no archive holds, or that takes memory or time out of proportion."""
    tuples: set[int] = set()  # places in the memo that hold one
    places = shared = 0
    last, ways = "", set()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _PUTS:
            place = places if opcode.name == "MEMOIZE" else int(argument or 0)
            places += 1
            ways.add(opcode.name == "MEMOIZE")
            if place > len(data) or len(ways) > 1:
                raise pickle.UnpicklingError("it asks for more memory than it can fill")
            if last in _TUPLES:
                tuples.add(place)
        shared += opcode.name in _GETS and int(argument or 0) in tuples
        if opcode.name in _REFUSED or shared > MAX_SHARED or step >= MAX_STEPS:
            raise pickle.UnpicklingError("it is not made as an archive is")
        last = opcode.name


def _read(path: Path) -> Mapping[Any, Any]:
    try:
        data = read_regular(path, MAX_BYTES)
        _check_steps(data)
        found = _Unpickler(data).load()
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except Exception as error:  # a pickle can end in any error there is
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} is not a CIFAR archive that can be read safely: {str(why)[:200]}") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{path} is not a CIFAR archive: it holds no table")
    return found


def read_names(path: Path, key: bytes) -> list[str]:
    """The names of the classes."""
    names = _read(path).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path} is not a CIFAR archive: it has no list {key.decode()!r}")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]


def read_archive(path: Path, label_key: bytes, classes: int) -> Archive:
    """Images and labels, 0 to ``classes`` - 1, of one archive; DataError if it is not that."""
    found = _read(path)
    array, labels = found.get(b"data"), found.get(label_key)
    if not isinstance(array, _Array) or not isinstance(labels, list):
        raise DataError(f"{path} is not a CIFAR archive: it has no images 'data' or no list {label_key.decode()!r}")
    values = SIDE * SIDE * CHANNELS
    if not (_is_bytes(array.dtype) and isinstance(array.raw, bytes) and array.shape == (len(labels), values)):
        raise DataError(f"{path} is not a CIFAR archive: 'data' is not {len(labels)} images of {values} bytes")
    if len(array.raw) != len(labels) * values:
        raise DataError(f"{path} is not a CIFAR archive: 'data' is cut off")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise DataError(f"{path}: the labels must be whole numbers from 0 to {classes - 1}, for which there are names")
    pixels = np.frombuffer(array.raw, np.uint8).reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Archive(pixels, np.array(labels, np.int64))


def _is_bytes(dtype: Any) -> bool:
    return isinstance(dtype, _Dtype) and dtype.name in ("u1", "|u1", "uint8", "B")
