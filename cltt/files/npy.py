"""Arrays written and read piece by piece, in numpy's own file format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt.errors import DataError
from cltt.files.patience import Handle, Patience, SharedFile

if TYPE_CHECKING:
    import struct

    import numpy as np


class NpyWriter:
    """Writes a one-dimensional .npy file in pieces; the length is put into its header at the end."""

    def __init__(self, file: Any, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._dtype = dtype
        self.rows = 0
        self._write_header()
        self._data_start = file.tell()

    def _write_header(self) -> None:
        import numpy as np

        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)  # numpy leaves room for the length to grow

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        import numpy as np

        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self.rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._data_start:
            raise DataError("the .npy header outgrew its room")
        self._file.seek(0, os.SEEK_END)


def read_npy_rows(path: Path, row: struct.Struct, start: int, stop: int) -> list[tuple[Any, ...]]:
    """Rows ``start`` to ``stop``-1 of a .npy file of version 1 that holds records laid out as ``row``."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(10)[8:], "little")
        file.seek(10 + header + start * row.size)
        return list(row.iter_unpack(file.read((stop - start) * row.size)))


HEADER_BYTES = 1 << 12
NEAR_ROWS = 512  # rows that are read and dropped rather than read apart


class NpyRows:
    """Rows of a one-dimensional .npy file, read as they are asked for by any number of threads.

    Not memory-mapped: where a page cannot be read, a mapping kills the process, and this waits by ``patience``.
    """

    def __init__(self, path: Path, patience: Patience) -> None:

        self.path, self.patience = path, patience
        with Handle(path) as file:
            head = patience.ask(path, lambda: file.read(HEADER_BYTES, 0))
        shape, fortran_order, self.dtype, self._start = _read_header(path, head)
        if len(shape) != 1 or fortran_order or self.dtype.hasobject:
            raise DataError(
                f"{path} holds an array of shape {shape} and type {self.dtype}; one row of records was written"
            )
        self._rows = int(shape[0])
        self._file = SharedFile(path)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: Any) -> np.ndarray[Any, Any]:
        """The rows of the given numbers (each 0..len-1; an integer, or int64 [n], cheapest when sorted)."""
        import numpy as np

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
        """Rows ``start`` to ``stop`` - 1. DataError if the file ends before."""
        import numpy as np

        size, offset = (stop - start) * self.dtype.itemsize, self._start + start * self.dtype.itemsize
        data = self.patience.ask(self.path, lambda: self._file.read(size, offset))
        if len(data) != size:
            raise DataError(f"{self.path} is cut off; copy it again or build the shards again with --overwrite")
        return np.frombuffer(data, self.dtype)


def read_array(path: Path, patience: Patience) -> np.ndarray[Any, Any]:
    """The whole of a .npy file. DataError if it is none."""
    import io

    import numpy as np

    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(patience.read_bytes(path)), allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no array ({error}); build the shards again with --overwrite") from error
    return array


def _read_header(path: Path, head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran's order, type, where the data starts) from the first bytes of a .npy file."""
    import io

    import numpy as np

    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return (*read(file), file.tell())
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is no array ({error}); build the shards again with --overwrite") from error
