"""Arrays written and read piece by piece, in numpy's own file format."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cltt.errors import DataError

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
