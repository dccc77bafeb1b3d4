"""JPEG headers: size, coding and colours, read from the markers without decoding (ITU-T T.81, Annex B)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from cltt.errors import InvalidImage

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
MAX_SCANS = 100  # of a progressive JPEG (encoders write about ten): decoding passes over all pixels once per scan
PROGRESSIVE = 0xC2
TAKEN_BY_HARDWARE = frozenset([0xC0, 0xC1, PROGRESSIVE])  # baseline, extended, progressive; all Huffman, none lossless
# Luminance samples across and down per chroma sample: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1.
SAMPLINGS = frozenset([(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)])
YCBCR, RGB, OTHER = "YCbCr", "RGB", "other"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8), 0xFF])  # markers without a length, and the fill byte
_SEGMENT = struct.Struct(">BBH").unpack_from  # 0xFF, marker, length
_FRAME_HEADER = struct.Struct(">BHHB").unpack_from  # precision, height, width, components
_APP0, _APP1, _APP2, _APP14, _SOS = 0xE0, 0xE1, 0xE2, 0xEE, 0xDA
_METADATA = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")


class JpegInfo(NamedTuple):
    """What the header of a JPEG holds.

    frame_marker: the SOF marker, which tells the coding. sampling: (across, down) of each component, in the order of
    the frame header. has_metadata: there is an EXIF or XMP segment, which may hold an orientation. has_pictures: there
    is a multi-picture index, so more pictures may follow the first.
    """

    width: int
    height: int
    precision: int
    frame_marker: int
    sampling: tuple[tuple[int, int], ...]
    colours: str
    has_metadata: bool
    has_pictures: bool

    @property
    def components(self) -> int:
        return len(self.sampling)


def _read_frame(data: bytes, position: int) -> tuple[tuple[int, int, int], bytes, tuple[tuple[int, int], ...]]:
    """((width, height, precision), ids of the components, their sampling) of the frame header at ``position``."""
    precision, height, width, count = _FRAME_HEADER(data, position + 4)
    table = data[position + 10 : position + 10 + 3 * count]
    if len(table) < 3 * count:
        raise InvalidImage("invalid JPEG: cut off before the picture")
    return (width, height, precision), table[::3], tuple((factors >> 4, factors & 15) for factors in table[1::3])


def _colours(ids: bytes, has_jfif: bool, adobe_transform: int | None) -> str:
    """The colour space, guessed as libjpeg does (jdapimin.c, default_decompress_parms)."""
    if len(ids) != 3:
        return OTHER
    if has_jfif:
        return YCBCR
    if adobe_transform is not None:
        return RGB if adobe_transform == 0 else YCBCR
    return RGB if ids == b"RGB" else YCBCR


def jpeg_info(data: bytes) -> JpegInfo:
    """The header of a JPEG. Raises InvalidImage unless its markers are valid up to the first scan."""
    return _read_markers(data)[0]


class HeaderReader:
    """:func:`jpeg_info` of one JPEG after another; any number of threads may call it.

    Most encoders write the same bytes up to the first scan in every frame of a video. If a JPEG begins with the header
    of the one before, its info is returned without reading the markers again.
    """

    def __init__(self) -> None:
        self._last: tuple[bytes, JpegInfo] | None = None

    def __call__(self, data: bytes) -> JpegInfo:
        last = self._last
        if last is not None and data.startswith(last[0]):
            return last[1]
        info, length = _read_markers(data)
        self._last = data[:length], info
        return info


def _read_markers(data: bytes) -> tuple[JpegInfo, int]:
    """(info, bytes it depends on: all up to and with the length of the first scan's header)."""
    position, frame, frame_marker = 2, None, 0
    has_metadata, has_pictures, has_jfif, adobe_transform = False, False, False, None
    last = len(data) - 4
    while position <= last:
        prefix, marker, length = _SEGMENT(data, position)
        if prefix != 0xFF:
            raise InvalidImage("invalid JPEG: no marker where one must be")
        if marker in _NO_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == _SOS:
            break
        content = position + 4
        if marker in _SOF and position <= last - 6:
            frame, frame_marker = _read_frame(data, position), marker
        elif marker == _APP1:
            has_metadata |= data.startswith(_METADATA, content)
        elif marker == _APP0:
            has_jfif |= data.startswith(b"JFIF\0", content)
        elif marker == _APP2:
            has_pictures |= data.startswith(b"MPF\0", content)
        elif marker == _APP14 and length >= 14 and data.startswith(b"Adobe", content):
            adobe_transform = data[content + 11] if content + 11 < len(data) else None
        position += 2 + length
    if frame is None or position > last or 0 in frame[0][:2]:
        raise InvalidImage("invalid JPEG: cut off before the picture")
    size, ids, sampling = frame
    colours = _colours(ids, has_jfif, adobe_transform)
    return JpegInfo(*size, frame_marker, sampling, colours, has_metadata, has_pictures), position + 4


def why_not_for_hardware(info: JpegInfo) -> str:
    """Why a hardware decoder may refuse the JPEG or show other colours; empty if it decodes it."""
    if info.components not in (1, 3):
        return f"{info.components} colour components"
    if info.precision != 8 or info.frame_marker not in TAKEN_BY_HARDWARE:
        return "unusual JPEG coding"
    if info.components == 3 and info.colours != YCBCR:
        return "RGB stored without conversion"
    if info.components == 3 and not (info.sampling[0] in SAMPLINGS and info.sampling[1:] == ((1, 1), (1, 1))):
        return "unusual chroma subsampling"
    return ""


def check_scans(data: bytes, info: JpegInfo) -> None:
    """Raise InvalidImage for a progressive JPEG with so many scans that decoding would take minutes."""
    if info.frame_marker == PROGRESSIVE and data.count(b"\xff\xda") > MAX_SCANS:  # coded data holds no such bytes
        raise InvalidImage(f"invalid JPEG: more than {MAX_SCANS} scans")
