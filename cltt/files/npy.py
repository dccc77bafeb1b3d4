"""Arrays in numpy's .npy files, written and read in pieces."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from cltt.errors import DataError
from cltt.files.retry import SharedFile, read_bytes, retry


class NpyWriter:
    """Writes a one-dimensional .npy file in pieces; :meth:`close` writes the length into its header."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        self.rows = 0
        self._write_header()
        self._data_start = file.tell()

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for a longer length

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._data_start:
            raise DataError("the header of a .npy file has outgrown its space; report this as a defect")
        self._file.seek(0, os.SEEK_END)


Shape = tuple[int | None, ...]
HEADER_BYTES = 1 << 12
_REPAIR = "copy it again or build the shards again with --overwrite"
NEAR_ROWS = 512  # rows that are read and dropped rather than read apart


class NpyRows:
    """Rows of a one-dimensional .npy file, read on demand by any number of threads.

    The file is not memory-mapped: a page that cannot be read would kill the process, while a read is retried.

    Args:
        path: the file.
        dtype: type of its entries.
        rows: number of its entries; None: any number.

    Raises DataError unless the file holds exactly that.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], rows: int | None = None) -> None:
        self.path, self.dtype = path, dtype
        self._file = SharedFile(path, follow=False)
        head = retry(path, lambda: self._file.read(HEADER_BYTES, 0))
        size = retry(path, path.stat).st_size
        (self._rows,), self._start = _check_header(path, head, size, dtype, (rows,))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: Any) -> np.ndarray[Any, Any]:
        """The rows with the numbers ``rows`` (each 0..len-1): an integer, or int64 [n], fastest when sorted."""
        numbers = np.asarray(rows, np.int64)
        if numbers.ndim == 0:
            return self.read(int(numbers), int(numbers) + 1)[0]
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        found = np.empty(len(wanted), self.dtype)
        cuts = (np.flatnonzero(np.diff(wanted) > NEAR_ROWS) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
            if start < stop:
                first = int(wanted[start])
                found[order[start:stop]] = self.read(first, int(wanted[stop - 1]) + 1)[wanted[start:stop] - first]
        return found

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """Rows ``start`` to ``stop`` - 1. DataError if the file ends too early."""
        size, offset = (stop - start) * self.dtype.itemsize, self._start + start * self.dtype.itemsize
        data = retry(self.path, lambda: self._file.read(size, offset))
        if len(data) != size:
            raise DataError(f"{self.path} is cut off; {_REPAIR}")
        return np.frombuffer(data, self.dtype)


def read_array(path: Path, dtype: np.dtype[Any], shape: Shape) -> np.ndarray[Any, Any]:
    """The array in a .npy file; DataError unless it has this type and shape (None: any length), in C order."""
    data = read_bytes(path, follow=False)
    found, start = _check_header(path, data[:HEADER_BYTES], len(data), dtype, shape)
    return np.frombuffer(data, dtype, offset=start).reshape(found)


def _check_header(
    path: Path, head: bytes, size: int, dtype: np.dtype[Any], shape: Shape
) -> tuple[tuple[int, ...], int]:
    """(shape, offset of the data) of a .npy file, from its first bytes ``head`` and its size; nothing is unpickled."""
    found, is_fortran, found_dtype, start = _read_header(path, head)
    fits = len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))
    if not fits or found_dtype != dtype or (is_fortran and len(shape) > 1):
        wanted = " x ".join("any" if length is None else str(length) for length in shape)
        raise DataError(f"{path} does not hold {wanted} entries of {dtype}; {_REPAIR}")
    if min(found) < 1 or size != start + math.prod(found) * dtype.itemsize:
        raise DataError(f"{path} has {size} bytes, which do not fit an array of shape {found}; {_REPAIR}")
    return found, start


def _read_header(path: Path, head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran order, dtype, offset of the data), from the first bytes of a .npy file."""
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return (*read(file, max_header_size=HEADER_BYTES), file.tell())
    except Exception as error:  # what numpy's and Python's own parsers raise
        raise DataError(f"{path} is not a readable .npy file; {_REPAIR}") from error
