"""What the markers of a JPEG say of it, read before anything is decoded (ITU-T T.81, Annex B)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from cltt.errors import InvalidImage

START = b"\xff\xd8\xff"
END = b"\xff\xd9"
MAX_SCANS = 100  # of a progressive picture (encoders make about ten): each scan is a pass over all of its pixels
PROGRESSIVE = 0xC2
TAKEN_BY_HARDWARE = frozenset([0xC0, 0xC1, PROGRESSIVE])  # baseline, extended, progressive; all Huffman, none lossless
# Luminance samples across and down for one of each colour: 4:4:4, 4:2:2, 4:2:0, 4:4:0, 4:1:1.
SAMPLINGS = frozenset([(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)])
YCBCR, RGB, OTHER = "YCbCr", "RGB", "other"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8), 0xFF])  # markers that stand alone, and the fill byte
_SEGMENT = struct.Struct(">BBH").unpack_from  # 0xFF, marker, length
_FRAME_HEADER = struct.Struct(">BHHB").unpack_from  # precision, height, width, components
_APP0, _APP1, _APP2, _APP14, _SOS = 0xE0, 0xE1, 0xE2, 0xEE, 0xDA
_METADATA = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")


class JpegInfo(NamedTuple):
    """Size in pixels, kind of frame header, colours, whether a segment may say how to turn it, or names more pictures.

    ``sampling``: (across, down) of each component, in the order of the frame header.
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


class _Frame(NamedTuple):
    marker: int
    precision: int
    height: int
    width: int
    ids: tuple[int, ...]
    sampling: tuple[tuple[int, int], ...]


def _read_frame(data: bytes, position: int, marker: int) -> _Frame:
    precision, height, width, count = _FRAME_HEADER(data, position + 4)
    table = data[position + 10 : position + 10 + 3 * count]
    if len(table) < 3 * count:
        raise InvalidImage("invalid JPEG: cut off before the picture")
    sampling = tuple((factors >> 4, factors & 15) for factors in table[1::3])
    return _Frame(marker, precision, height, width, tuple(table[::3]), sampling)


def _colours(frame: _Frame, has_jfif: bool, adobe_transform: int | None) -> str:
    """As libjpeg guesses them (jdapimin.c, default_decompress_parms)."""
    if len(frame.ids) != 3:
        return OTHER
    if has_jfif:
        return YCBCR
    if adobe_transform is not None:
        return RGB if adobe_transform == 0 else YCBCR
    return RGB if frame.ids == tuple(b"RGB") else YCBCR


def jpeg_info(data: bytes) -> JpegInfo:
    """Read the markers up to the start of the first scan; InvalidImage if they don't add up."""
    return _read_markers(data)[0]


class HeaderReader:
    """:func:`jpeg_info` of one picture after the other; any number of threads may call it.

    Most encoders write the same bytes up to the first scan in every frame of a video. Where they are those of the
    picture before, nothing is read: what is said of a picture depends on them alone.
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
    """What the markers say, and how many bytes say it: all up to the length of the first scan's header."""
    position, frame = 2, None
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
            frame = _read_frame(data, position, marker)
        elif marker == _APP1:
            has_metadata |= data.startswith(_METADATA, content)
        elif marker == _APP0:
            has_jfif |= data.startswith(b"JFIF\0", content)
        elif marker == _APP2:
            has_pictures |= data.startswith(b"MPF\0", content)
        elif marker == _APP14 and length >= 14 and data.startswith(b"Adobe", content):
            adobe_transform = data[content + 11] if content + 11 < len(data) else None
        position += 2 + length
    if frame is None or position > last or not (frame.width and frame.height):
        raise InvalidImage("invalid JPEG: cut off before the picture")
    colours = _colours(frame, has_jfif, adobe_transform)
    info = JpegInfo(
        frame.width,
        frame.height,
        frame.precision,
        frame.marker,
        frame.sampling,
        colours,
        has_metadata,
        has_pictures,
    )
    return info, position + 4


def why_not_for_hardware(info: JpegInfo) -> str:
    """What a hardware decoder may not take, or take for something else; empty if nothing."""
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
    """InvalidImage for a progressive picture of so many scans that decoding it would seem to hang."""
    if info.frame_marker == PROGRESSIVE and data.count(b"\xff\xda") > MAX_SCANS:  # coded data holds no such bytes
        raise InvalidImage(f"invalid JPEG: more than {MAX_SCANS} scans")
