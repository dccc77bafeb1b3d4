"""H.264 and HEVC packets: how many pictures begin in one, whether they are fields, where decoding may begin.

This is read from the headers of the NAL units in a packet (ITU-T H.264 and H.265, 7.3); nothing is decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av.video.stream

_SLICE, _PARTITION_A, _IDR, _SEI, _SPS = 1, 2, 5, 6, 7
_RECOVERY_POINT = 6  # payload type
_HIGH_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # their SPS has chroma fields first


def length_size(stream: av.video.stream.VideoStream) -> int:
    """Bytes of the length field before each unit; 0: start codes separate the units."""
    extra = stream.codec_context.extradata or b""
    at = {"h264": 4, "hevc": 21}[stream.codec_context.name]
    return (extra[at] & 3) + 1 if extra[:1] == b"\x01" and len(extra) > at else 0


def entry_test(stream: av.video.stream.VideoStream) -> Callable[[Any], bool]:
    """A function from a packet to whether decoding may begin there: all later frames come out the same.

    The container's key frame flag tells, except for H.264, where it also marks pictures that only start a gradual
    refresh: there the packet must have an IDR picture, or an immediate recovery point (ITU-T H.264, 7.4.1.2.4 and
    D.2.8).
    """
    if stream.codec_context.name != "h264":
        return lambda packet: bool(packet.is_keyframe)
    size = length_size(stream)
    return lambda packet: bool(packet.is_keyframe) and _is_clean_h264(bytes(packet), size)


def _is_clean_h264(data: bytes, size: int) -> bool:
    for unit in _units(data, size):
        kind = unit[0] & 31
        if kind == _IDR or (kind == _SEI and _recovers_at_once(unit)):
            return True
        if kind == _SLICE:
            return False
    return False


def _units(data: bytes, size: int) -> Iterator[bytes]:
    """The units of a packet, without their lengths of ``size`` bytes (0: start codes)."""
    if size:
        at = 0
        while at + size < len(data):
            length = int.from_bytes(data[at : at + size], "big")
            yield data[at + size : at + size + max(1, length)]
            at += size + length
        return
    starts = data.split(b"\0\0\1")
    yield from (unit for unit in starts[1:] if unit)


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit holds a recovery point with a frame count of 0, which is coded as one set bit."""
    at = 1
    while at + 2 < len(unit):
        kind, at = _sei_number(unit, at)
        size, at = _sei_number(unit, at)
        if kind == _RECOVERY_POINT and at < len(unit):
            return unit[at] >= 0x80
        at += size
    return False


def _sei_number(unit: bytes, at: int) -> tuple[int, int]:
    """(a payload's type or size: the sum of bytes of 255 and the one after them; where the next begins)."""
    value = 0
    while at < len(unit) and unit[at] == 0xFF:
        value += 255
        at += 1
    return value + (unit[at] if at < len(unit) else 0), at + 1


# ---- one packet, one frame


def one_frame_test(stream: av.video.stream.VideoStream) -> Callable[[Any], bool]:
    """A function from a packet (units with lengths) to whether exactly one frame begins in it."""
    size = length_size(stream)
    begins = _begins_h264 if stream.codec_context.name == "h264" else _begins_hevc

    def test(packet: Any) -> bool:
        data = memoryview(packet)
        at, end, pictures = 0, len(data) - size - 2, 0
        while at < end:
            pictures += begins(data, at + size)
            at += size + int.from_bytes(data[at : at + size], "big")
        return pictures == 1

    return test


def picture_splitter(stream: av.video.stream.VideoStream) -> Callable[[Any], Iterator[Any]]:
    """A function that splits a packet into one packet per picture, as FFmpeg shows only the last picture of a packet.

    Packets of single fields stay as they are, as the decoder joins fields to frames. So do packets with start codes,
    which FFmpeg splits itself.
    """
    codec = stream.codec_context.name
    if codec not in ("h264", "hevc") or not (length_size(stream) and is_progressive(stream)):
        return lambda packet: iter((packet,))
    size = length_size(stream)
    begins = _begins_h264 if codec == "h264" else _begins_hevc

    def split(packet: Any) -> Iterator[Any]:
        import av

        data = memoryview(packet)
        at, cuts, behind = 0, [], 0  # ``behind``: where the last slice ends and the units of the next picture begin
        while at < len(data) - size - 2:
            if begins(data, at + size) == 1:
                cuts.append(behind)
            unit, at = at + size, at + size + int.from_bytes(data[at : at + size], "big")
            if (1 <= data[unit] & 31 <= _IDR) if codec == "h264" else data[unit] & 0x7E < 64:
                behind = at
        if len(cuts) < 2:
            yield packet
            return
        for start, stop in itertools.pairwise([*cuts, len(data)]):
            picture = av.Packet(bytes(data[start:stop]))
            picture.pts, picture.dts = (None, None) if start else (packet.pts, packet.dts)
            yield picture

    return split


def _begins_h264(data: memoryview, at: int) -> int:
    """1 if the unit begins a frame, 0 if it continues one or is no picture, 2 for parameters of fields."""
    kind = data[at] & 31
    if kind in (_SLICE, _PARTITION_A, _IDR):
        return data[at + 1] >> 7  # first_mb_in_slice is 0
    return 2 if kind == _SPS and not is_progressive_h264(bytes(data[at : at + 256])) else 0


def _begins_hevc(data: memoryview, at: int) -> int:
    if data[at] & 0x7E >= 64 or data[at] & 1 or data[at + 1] & 0xF8:  # no slice, or of another layer (a second view)
        return 0
    return data[at + 2] >> 7  # first_slice_segment_in_pic_flag


def is_progressive(stream: av.video.stream.VideoStream) -> bool:
    """Whether the configuration of an H.264 or HEVC stream rules out pictures of single fields."""
    extra = stream.codec_context.extradata or b""
    if extra[:1] != b"\x01" or len(extra) < 24:
        return False
    if stream.codec_context.name == "hevc":
        return not extra[6] & 0x40  # general_interlaced_source_flag
    sets, at = extra[5] & 31, 6
    for _ in range(sets):
        length = int.from_bytes(extra[at : at + 2], "big")
        if not is_progressive_h264(extra[at + 2 : at + 2 + length]):
            return False
        at += 2 + length
    return sets > 0


def is_progressive_h264(unit: bytes) -> bool:
    """frame_mbs_only_flag of a sequence parameter set (ITU-T H.264, 7.3.2.1.1); False if it cannot be read."""
    data = unit[1:].replace(b"\0\0\3", b"\0\0")  # without emulation prevention bytes
    try:
        return _frame_mbs_only(iter(f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"))
    except StopIteration:  # the unit is cut off
        return False


# The functions below read bits, each "0" or "1". They raise StopIteration at the end, so they must not be generators.


def _take(bits: Iterator[str], count: int) -> str:
    return "".join([next(bits) for _ in range(count)])  # islice would give fewer at the end


def _ue(bits: Iterator[str]) -> int:
    zeros = 0
    while next(bits) == "0":
        zeros += 1
    return int("1" + _take(bits, zeros), 2) - 1


def _se(bits: Iterator[str]) -> int:
    value = _ue(bits)
    return (value + 1) // 2 * (1 if value % 2 else -1)


def _frame_mbs_only(bits: Iterator[str]) -> bool:
    profile = int(_take(bits, 8), 2)
    _take(bits, 16)  # constraints, level
    _ue(bits)
    if profile in _HIGH_PROFILES:
        chroma = _ue(bits)
        if chroma == 3:
            next(bits)
        _ue(bits), _ue(bits), next(bits)  # depths, lossless
        if next(bits) == "1":
            for number in range(12 if chroma == 3 else 8):
                if next(bits) == "1":
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    _ue(bits)  # frame numbers
    order = _ue(bits)
    if order == 0:
        _ue(bits)
    elif order == 1:
        next(bits), _se(bits), _se(bits)
        for _ in range(min(_ue(bits), 255)):
            _se(bits)
    _ue(bits), next(bits), _ue(bits), _ue(bits)  # references, gaps, width, height
    return next(bits) == "1"


def _skip_scaling_list(bits: Iterator[str], count: int) -> None:
    last, following = 8, 8
    for _ in range(count):
        if following:
            following = (last + _se(bits)) % 256
        last = following or last
