"""Spoilt pictures of all formats: refused in a phrase, or stored with Pillow's pixels."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from cltt.errors import InvalidImage
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.source import image, jpeg, pixels
from tests.fuzz.contract import Broken, Rng, demand, spoil
from tests.helpers.hostile import odd_pictures

MAX_PIXELS = 1_000_000
MOST_APART = 2.0  # of 255 on average


class Pictures:
    def __init__(self, folder: Path) -> None:
        self._seeds = list(odd_pictures().values())
        self._decoder = FrameDecoder(Framing(image_size=32))

    def case(self, rng: Rng) -> str:
        data = self._seeds[int(rng.integers(len(self._seeds)))]
        if rng.random() < 0.98:
            data = spoil(rng, data, self._seeds[int(rng.integers(len(self._seeds)))])
        if data.startswith(b"\x89PNG") and rng.random() < 0.5:
            data = with_right_crcs(data)
        resize = int(rng.choice([8, 20, 64])) if rng.random() < 0.2 else None
        verify = "header" if rng.random() < 0.1 else "decode"
        try:
            stored = image.as_stored(data, verify=verify, resize_short=resize, max_pixels=MAX_PIXELS)
        except InvalidImage as error:
            demand(0 < len(str(error)) < 200 and "\n" not in str(error), f"no phrase: {error!r}")
            return "invalid, named"
        if verify == "decode":
            self._check_stored(stored)
            if resize is None:
                check_pixels(data)
        else:
            self._check_loader(stored.data)
        return f"re-encoded: {stored.reencoded.partition(' ')[0]}" if stored.reencoded else "copied"

    def _check_stored(self, stored: image.Stored) -> None:
        """What a build has checked can be decoded by the loader, at the size that its record gives."""
        info = jpeg.jpeg_info(stored.data)
        demand((info.width, info.height) == (stored.width, stored.height), "the record has another size")
        demand(not jpeg.why_not_for_hardware(info), f"a hardware decoder may not take it: {info}")
        picture = simplejpeg.decode_jpeg(stored.data, "RGB")
        demand(picture.shape == (stored.height, stored.width, 3), "decoded at another size")
        self._decoder.frame(stored.data)

    def _check_loader(self, data: bytes) -> None:
        with contextlib.suppress(ValueError):
            self._decoder.frame(data)


def check_pixels(data: bytes) -> None:
    """Broken if the pixels are not Pillow's, where Pillow gives any."""
    kind = image.image_kind(data[:16])
    if kind == "JPEG":
        info = jpeg.jpeg_info(data)
        orientation = pixels.jpeg_orientation(data) if info.has_metadata else 1
        ours = pixels.turned(pixels.decode_jpeg(data, info), orientation)
    else:
        ours = pixels.decode_other(kind, data)
    try:
        theirs = pillow_pixels(data)
    except Exception:
        return
    if ours.shape != theirs.shape:
        raise Broken(f"{ours.shape}, but Pillow's have {theirs.shape}")
    apart = float(np.abs(ours.astype(int) - theirs).mean())
    demand(apart <= (MOST_APART if kind == "JPEG" else 0), f"{apart}/255 from Pillow's pixels")


def pillow_pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):  # which Pillow cuts off at 255
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        return np.asarray(upright.convert("RGB"))


def with_right_crcs(data: bytes) -> bytes:
    """A PNG whose chunks have the CRCs that belong to them, so that what lies behind the CRC is reached."""
    position, out = 8, data[:8]
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + length]
        out += data[position : position + 4] + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return out


cv2.setNumThreads(1)
