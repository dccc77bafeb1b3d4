"""Pictures that cameras and converters do write and few tests hold, small, by name."""

from __future__ import annotations

import functools
import io
import struct
import zlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from tests.helpers import data

HEIGHT, WIDTH = 40, 56


def picture(seed: int = 1, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """RGB uint8 [height, width, 3]."""
    return np.ascontiguousarray(data.frame_image(seed, 3, height, width)[:, :, ::-1])


def saved(array: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    """``array`` in a format of Pillow's, converted to ``mode`` first."""
    file = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def jpeg_441(array: np.ndarray) -> bytes:
    """A JPEG with chroma at a quarter of the lines: what turning a 4:1:1 one without loss gives."""
    coded = bytearray(simplejpeg.encode_jpeg(array, colorspace="RGB", colorsubsampling="411"))
    header = coded.find(b"\xff\xc0")
    coded[header + 11] = 0x14
    coded[header + 5 : header + 9] = coded[header + 7 : header + 9] + coded[header + 5 : header + 7]
    return bytes(coded)


def with_segment(coded: bytes, payload: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with one more segment, right behind its start."""
    return coded[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + coded[2:]


def exif(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """An APP1 payload with one tag, the orientation, as a number of type ``kind`` (1 byte, 3 short, 4 long)."""
    value = struct.pack(order + {1: "B3x", 3: "H2x", 4: "I"}[kind], orientation)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + struct.pack(order + "HHHI", 1, 0x0112, kind, count) + value + bytes(4)


def xmp(orientation: int) -> bytes:
    text = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return b"http://ns.adobe.com/xap/1.0/\0" + text.encode()


def odd_exif() -> dict[str, bytes]:
    """JPEGs whose orientation is written in each way that Pillow reads."""
    coded = saved(picture(), "JPEG", quality=92)
    split = exif(6)
    return {
        "exif short, little": with_segment(coded, exif(6)),
        "exif short, big": with_segment(coded, exif(8, ">")),
        "exif long, big": with_segment(coded, exif(6, ">", kind=4)),
        "exif long, little": with_segment(coded, exif(3, "<", kind=4)),
        "exif byte, big": with_segment(coded, exif(5, ">", kind=1)),
        "exif in two segments": with_segment(with_segment(coded, b"Exif\0\0" + split[20:]), split[:20]),
        "xmp alone": with_segment(coded, xmp(7)),
        "exif before xmp": with_segment(with_segment(coded, xmp(7)), exif(2)),
        "exif out of range": with_segment(coded, exif(9)),
    }


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says it has this size, 8 bit grey; ``body``: its compressed lines."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def of_size(coded: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size."""
    header = next(at for at in (coded.find(b"\xff\xc0"), coded.find(b"\xff\xc2")) if at >= 0)
    return coded[: header + 5] + struct.pack(">HH", height, width) + coded[header + 9 :]


@functools.cache
def several_pictures() -> list[bytes]:
    """A file with three pictures of every kind that can hold them, and a HEIC of which only the head is there."""
    pictures = [Image.fromarray(np.roll(picture(), 8 * k, axis=1)) for k in range(3)]
    found = [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)]
    for kind in ("TIFF", "WEBP", "PNG", "MPO", "AVIF"):
        file = io.BytesIO()
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:])
        found.append(file.getvalue())
    return found


def odd_pictures() -> dict[str, bytes]:
    """A picture of every kind, by name."""
    rgb, grey = picture(), picture()[:, :, 0]
    found = {
        "jpeg": saved(rgb, "JPEG"),
        "jpeg grey": saved(grey, "JPEG"),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg restarts": saved(rgb, "JPEG", restart_marker_rows=1),
        "jpeg cmyk": saved(rgb, "JPEG", "CMYK"),
        "jpeg rgb": saved(rgb, "JPEG", keep_rgb=True),
        "jpeg 441": jpeg_441(rgb),
        "png": saved(rgb, "PNG"),
        "png grey": saved(grey, "PNG"),
        "png palette": saved(rgb, "PNG", "P"),
        "png alpha": saved(rgb, "PNG", "RGBA"),
        "png bits": saved(rgb, "PNG", "1"),
        "png exif": saved(rgb, "PNG", exif=exif(6)),
        "bmp": saved(rgb, "BMP"),
        "bmp palette": saved(rgb, "BMP", "P"),
        "tiff": saved(rgb, "TIFF"),
        "tiff deflate": saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff packbits": saved(rgb, "TIFF", compression="packbits"),
        "tiff turned": saved(rgb, "TIFF", tiffinfo={0x0112: 6}),
        "tiff bits": saved(rgb, "TIFF", "1", compression="group4"),
        "webp": saved(rgb, "WEBP"),
        "webp lossless": saved(rgb, "WEBP", lossless=True),
        "webp exif": saved(rgb, "WEBP", exif=exif(8)),
        **odd_exif(),
    }
    for sampling in ("444", "422", "420", "440", "411"):
        found[f"jpeg {sampling}"] = simplejpeg.encode_jpeg(rgb, colorspace="RGB", colorsubsampling=sampling)
    for name, ending in (("png 16 bit", ".png"), ("tiff 16 bit", ".tiff")):
        found[name] = cv2.imencode(ending, grey.astype(np.uint16) * 257)[1].tobytes()
    found["png colour, 16 bit"] = cv2.imencode(".png", rgb.astype(np.uint16) * 257)[1].tobytes()
    return found
