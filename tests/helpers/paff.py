"""A stream of H.264 whose pictures are single fields, written from the standard: every macroblock as it is (I_PCM)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
DELIMITER = b"\0\0\0\1\x09\xf0"


class _Bits:
    def __init__(self) -> None:
        self._text: list[str] = []

    def put(self, *values: tuple[int, int]) -> _Bits:
        """Numbers, each with its width in bits."""
        self._text += [f"{value:0{width}b}" for value, width in values]
        return self

    def ue(self, *values: int) -> _Bits:
        """Numbers in Exp-Golomb code (ITU-T H.264, 9.1)."""
        for value in values:
            digits = f"{value + 1:b}"
            self._text.append("0" * (len(digits) - 1) + digits)
        return self

    def aligned(self, data: bytes) -> _Bits:
        self._text.append("0" * (-sum(map(len, self._text)) % 8))
        self._text += [f"{byte:08b}" for byte in data]
        return self

    def unit(self, head: int) -> bytes:
        """The NAL unit behind a start code, its bytes kept from looking like one."""
        text = "".join(self._text) + "1"
        text += "0" * (-len(text) % 8)
        body, zeros = bytearray(), 0
        for byte in int(text, 2).to_bytes(len(text) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                body.append(3)
                zeros = 0
            body.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes([head]) + bytes(body)


def parameters(width: int, height: int) -> bytes:
    """Sequence and picture parameter sets of 7.3.2: Main profile, fields allowed, no reordering."""
    sequence = _Bits().put((77, 8), (0, 8), (30, 8)).ue(0, 0, 0, 4, 1).put((0, 1))
    sequence.ue(width // 16 - 1, height // 32 - 1).put((0, 1), (0, 1), (1, 1), (0, 1), (1, 1))
    sequence.put((0, 5), (0, 3), (1, 1), (1, 1)).ue(0, 0, 10, 10, 0, 1)  # of the VUI only what bounds reordering
    picture = _Bits().ue(0, 0).put((0, 2)).ue(0, 0, 0).put((0, 3)).ue(0, 0, 0).put((1, 1), (0, 2))
    return sequence.unit(0x67) + picture.unit(0x68)


def _field(luma: Array, *, number: int, order: int, bottom: bool, idr: bool) -> bytes:
    bits = _Bits().ue(0, 7, 0).put((number, 4), (1, 1), (int(bottom), 1))
    if idr:
        bits.ue(0)
    bits.put((order, 8))
    bits.put((0, 2 if idr else 1)).ue(0, 1)  # reference marking, QP, no deblocking
    for row in range(0, luma.shape[0], 16):
        for column in range(0, luma.shape[1], 16):
            bits.ue(25).aligned(luma[row : row + 16, column : column + 16].tobytes() + bytes([128]) * 128)
    return bits.unit(0x65 if idr else 0x61)


def fields(pictures: Iterator[Array], group: int = 8) -> Iterator[tuple[bytes, bytes]]:
    """(top field with the parameter sets before key pictures, bottom field) of grey pictures uint8 [height, width]."""
    for count, grey in enumerate(pictures):
        luma = (16 + grey.astype(np.float64) * 219 / 255).astype(np.uint8)
        place = count % group
        top, bottom = (
            _field(luma[side::2], number=place, order=2 * place + side, bottom=bool(side), idr=place == 0 == side)
            for side in (0, 1)
        )
        head = parameters(*grey.shape[::-1]) if place == 0 else b""
        yield DELIMITER + head + top, DELIMITER + bottom
