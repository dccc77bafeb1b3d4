"""What a frame's bytes are, and the JPEG that goes into a shard for them.

A frame is stored as it is unless a hardware JPEG decoder could not take it upright (PNG, CMYK, EXIF-rotated ...) or
smaller frames are asked for. Marker layout: ITU-T T.81, Annex B; EXIF orientation: Exif 2.3, tag 0x0112.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import struct

    import numpy as np

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

IMAGE_EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp")
UPRIGHT_QUALITY = 95
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"MM\x00*")
_END_OF_IMAGE = b"\xff\xd9"
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8), 0xFF])  # markers that stand alone, and the fill byte
_SEGMENT = struct.Struct(">BBH").unpack_from  # 0xFF, marker, length
_FRAME_HEADER = struct.Struct(">BHHB").unpack_from  # precision, height, width, components
_TAKEN_BY_HARDWARE = frozenset([0xC0, 0xC1, 0xC2])  # baseline, extended, progressive Huffman


class BrokenPicture(ValueError):
    """Bytes that are no whole picture; the message is one short phrase."""


class JpegFacts(NamedTuple):
    """From the markers of a JPEG: size in pixels, components, kind of frame header, EXIF orientation (1: upright)."""

    width: int
    height: int
    components: int
    precision: int
    frame_marker: int
    orientation: int


class Stored(NamedTuple):
    """The bytes that go into the shard, their size in pixels, and why they are not the source's (empty: they are)."""

    data: bytes
    width: int
    height: int
    reencoded: str


def is_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture format that can be a frame."""
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _orientation(segment: bytes) -> int:
    """EXIF orientation 1..8 in an APP1 segment's payload; 1 where there is none."""
    tiff = segment[6:]
    if segment[:6] != b"Exif\0\0" or tiff[:2] not in (b"II", b"MM"):
        return 1
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(count):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def jpeg_facts(data: bytes) -> JpegFacts:
    """Read the markers up to the start of the first scan; BrokenPicture if they don't add up."""
    position, orientation, frame = 2, 1, None
    last = len(data) - 4
    while position <= last:
        prefix, marker, length = _SEGMENT(data, position)
        if prefix != 0xFF:
            raise BrokenPicture("broken JPEG: no marker where one must be")
        if marker in _NO_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:
            break
        if marker in _SOF and position <= last - 6:
            frame = marker, *_FRAME_HEADER(data, position + 4)
        elif marker == 0xE1 and orientation == 1:
            orientation = _orientation(data[position + 4 : position + 2 + length])
        position += 2 + length
    if frame is None or position > last or not (frame[2] and frame[3]):
        raise BrokenPicture("broken JPEG: cut off before the picture")
    kind, precision, height, width, components = frame
    return JpegFacts(width, height, components, precision, kind, orientation)


def _why_not_as_it_is(facts: JpegFacts) -> str:
    if facts.orientation != 1:
        return f"EXIF orientation {facts.orientation}"
    if facts.components not in (1, 3):
        return f"{facts.components} colour components"
    if facts.precision != 8 or facts.frame_marker not in _TAKEN_BY_HARDWARE:
        return "unusual JPEG coding"
    return ""


def check_every_bit(data: bytes, colours: str = "GRAY") -> None:
    """Decode a JPEG at an eighth of its size, for which the entropy decoder still reads every bit.

    Raises BrokenPicture for anything libjpeg-turbo complains about, a warning included.
    """
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(data, colours, fastdct=True, fastupsample=True, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        raise BrokenPicture(f"broken JPEG: {error}") from error


def _decode_jpeg(data: bytes, facts: JpegFacts, short: int) -> np.ndarray[Any, Any]:
    """RGB uint8 [., ., 3] of an upright JPEG, as small as it can be decoded with a short side of at least ``short``.

    BrokenPicture for anything libjpeg-turbo complains about.
    """
    from cltt.source import reduced

    height, width = facts.height, facts.width
    try:
        return reduced.decode(data, height, width, reduced.largest_reduction(min(height, width) / short))
    except ValueError as error:
        raise BrokenPicture(f"broken JPEG: {error}") from error


def _decode_any(data: bytes) -> np.ndarray[Any, Any]:
    """RGB uint8 [height, width, 3], upright; BrokenPicture if it cannot be decoded."""
    import cv2
    import numpy as np

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)  # turns by EXIF, takes 16 bit to 8
    if pixels is None:
        raise BrokenPicture("cannot be decoded")
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _shrink(pixels: np.ndarray[Any, Any], height: int, width: int, short: int) -> np.ndarray[Any, Any]:
    """A ``height`` x ``width`` frame, decoded to ``pixels``, at a short side of ``short`` by area averaging.

    A frame already that small stays as it is.
    """
    import cv2

    scale = short / min(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _encode(pixels: np.ndarray[Any, Any], quality: int) -> bytes:
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420"))


def as_stored(data: bytes, *, verify: str = "decode", resize_short: int | None = None, quality: int = 90) -> Stored:
    """The JPEG a shard keeps for the source bytes ``data``.

    ``verify="decode"`` reads every bit of a frame that is copied; ``"header"`` looks at the markers and the end. Raises
    BrokenPicture for bytes that are no whole picture.
    """
    reason, facts = "", None
    if not data:
        raise BrokenPicture("empty file")
    if data[:3] == b"\xff\xd8\xff":
        facts = jpeg_facts(data)
        reason = _why_not_as_it_is(facts)
    else:
        reason = _other_format(data)
    if facts is not None and not reason and resize_short is None:
        if verify == "decode" or not data.endswith(_END_OF_IMAGE):  # cut off, or padded as some cameras do
            check_every_bit(data)
        return Stored(data, facts.width, facts.height, "")
    if facts is None:
        pixels = _decode_any(data)
    elif reason:
        check_every_bit(data, "CMYK" if facts.components == 4 else "GRAY")  # OpenCV fills a hole with grey, silently
        pixels = _decode_any(data)
    else:
        assert resize_short is not None
        pixels = _decode_jpeg(data, facts, resize_short)
    if resize_short is not None:
        height, width = pixels.shape[:2] if facts is None or reason else (facts.height, facts.width)
        pixels = _shrink(pixels, height, width, resize_short)
    encoded = _encode(pixels, UPRIGHT_QUALITY if resize_short is None else quality)
    return Stored(encoded, pixels.shape[1], pixels.shape[0], reason or "resized")


def _other_format(data: bytes) -> str:
    if not is_image(data[:16]):
        raise BrokenPicture("not an image")
    if data[:4] == b"\x89PNG":
        _check_png(data)
        return "PNG"
    return "not a JPEG"


def _check_png(data: bytes) -> None:
    """Check the CRC of every chunk up to the last (PNG specification, section 5.3); a decoder may let a hole pass."""
    position, kind = 8, b""
    while kind != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if end > len(data):
            raise BrokenPicture("truncated PNG")
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BrokenPicture("broken PNG: CRC mismatch")
        position = end
