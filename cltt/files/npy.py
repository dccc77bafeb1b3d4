"""Arrays written and read piece by piece, in numpy's own file format."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cltt.errors import DataError
from cltt.files.regular import open_regular

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


_MAX_HEADER = 1 << 12


def open_npy(path: Path, dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> np.ndarray[Any, Any]:
    """The array in ``path``, memory-mapped for reading; None in ``shape``: any length.

    DataError unless the header says this type and shape, in C order, and the file has just the bytes for it. Nothing is
    unpickled. Costs the same for any length.
    """
    import numpy as np

    try:
        with os.fdopen(open_regular(path, follow=False), "rb") as file:
            found, is_fortran, found_dtype = _read_header(path, file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            fits = len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))
            if not fits or found_dtype != dtype or (is_fortran and len(shape) > 1):
                raise DataError(f"{path} holds an array of {found_dtype} {found}; {dtype} {shape} was expected")
            if size != start + math.prod(found) * dtype.itemsize:
                raise DataError(f"{path} has {size} bytes, which are not those of its {found} entries; copy it again")
            return np.memmap(file, dtype, "r", start, found)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _read_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    import numpy as np

    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(file, max_header_size=_MAX_HEADER)
    except Exception as error:  # numpy raises what ast and its own parts raise
        raise DataError(f"{path} is not an array that can be read") from error
    if min(shape, default=0) < 0:
        raise DataError(f"{path} is not an array that can be read")
    return shape, is_fortran, dtype
