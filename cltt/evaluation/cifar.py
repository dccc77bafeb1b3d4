"""CIFAR's python archives, unpickled with an allow-list.

A pickle is a program. The only ones run here are those that give dictionaries, lists, tuples, text, numbers and, in
place of numpy's arrays, a note of what they hold; the array is made from the note once all of it has been checked.
"""

from __future__ import annotations

import io
import math
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
_WHOLE = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}  # numpy's names of whole numbers
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
    """In place of ``numpy.dtype``: its name and byte order alone."""

    def __init__(self, name: Any = "", *_: Any) -> None:
        self.name = name.decode("latin1") if isinstance(name, bytes) else name
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("latin1") if isinstance(order, bytes) else order

    def __str__(self) -> str:
        return str(self.name)[:20]


class _Array:
    """In place of ``numpy.ndarray``: what it was saved from."""

    def __init__(self, raw: Any = None, dtype: Any = None, shape: Any = None, order: str = "C") -> None:
        self.shape, self.dtype, self.is_fortran, self.raw = shape, dtype, order == "F", raw

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.raw = state

    def made(self) -> np.ndarray | None:
        """The array, of whole numbers; None if it is not such an array."""
        is_whole = isinstance(self.dtype, _Dtype) and self.dtype.name in _WHOLE and self.dtype.order in ("|", "<", ">")
        known = is_whole and isinstance(self.raw, bytes | bytearray) and isinstance(self.shape, tuple)
        if not known or self.is_fortran or not all(type(size) is int and size >= 0 for size in self.shape):
            return None
        dtype = np.dtype(self.dtype.name).newbyteorder(self.dtype.order)
        if math.prod(self.shape) * dtype.itemsize != len(self.raw):
            return None
        return np.frombuffer(self.raw, dtype).reshape(self.shape)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._text_left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _Array
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


def _value(table: Mapping[Any, Any], key: str) -> Any:
    """What ``key`` has, as bytes (Python 2) or as text (saved again by Python 3)."""
    return table.get(key.encode(), table.get(key))


def _described(value: Any) -> str:
    """What was found in place of what should be there."""
    if isinstance(value, _Array):
        return f"an array of {value.dtype} of shape {str(value.shape)[:60]}"
    return "missing" if value is None else f"of type {type(value).__name__}"


def read_names(path: Path, key: str) -> list[str]:
    """The names of the classes."""
    names = _value(_read(path), key)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{path} is not a CIFAR archive: {key!r} must be a list of names, and is {_described(names)}")
    return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in names]


def read_archive(path: Path, label_key: str, classes: int) -> Archive:
    """Images and labels, 0 to ``classes`` - 1, of one archive; DataError if it is not that.

    Labels may be a list or an array, images uint8 [n, 3072] as published or [n, 3, 32, 32].
    """
    found = _read(path)
    data, labels = _value(found, "data"), _value(found, label_key)
    numbers = labels.made() if isinstance(labels, _Array) else labels
    numbers = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
    if not isinstance(numbers, list | tuple):
        wrong = _described(labels)
        raise DataError(f"{path} is not a CIFAR archive: {label_key!r} must be a list of labels, and is {wrong}")
    pixels = data.made() if isinstance(data, _Array) else None
    shapes = ((len(numbers), CHANNELS * SIDE * SIDE), (len(numbers), CHANNELS, SIDE, SIDE))
    if pixels is None or pixels.dtype != np.uint8 or pixels.shape not in shapes:
        raise DataError(
            f"{path} is not a CIFAR archive: 'data' must be uint8 of shape {shapes[0]}, for {len(numbers)} labels, and "
            f"is {_described(data)}"
        )
    if not all(type(label) is int and 0 <= label < classes for label in numbers):
        raise DataError(f"{path}: the labels must be whole numbers from 0 to {classes - 1}, for which there are names")
    return Archive(pixels.reshape(shapes[1]).transpose(0, 2, 3, 1), np.array(numbers, np.int64))
