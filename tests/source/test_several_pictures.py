"""Files of several pictures are left out by name, never taken for their first; HEIC and AVIF are no videos."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cltt import build_shards
from cltt.errors import DataError, InvalidImage
from cltt.shards import layout
from cltt.source.image import Stored, as_stored, image_kind
from cltt.source.pixels import SEVERAL

SIZE = (64, 48)


def picture(value: int, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8))


def saved(kind: str, pictures: list[Image.Image], **options: Any) -> bytes:
    file = io.BytesIO()
    more: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]} if len(pictures) > 1 else {}
    pictures[0].save(file, kind, **more, **options)
    return file.getvalue()


def stored(data: bytes) -> Stored | str:
    try:
        return as_stored(data)
    except InvalidImage as error:
        return str(error)


# Animated WebP of which a loader takes the first: https://github.com/rom1504/img2dataset/issues/191 and
# https://github.com/ltdrdata/ComfyUI-Inspire-Pack/issues/247; stereo MPO: https://github.com/python-pillow/Pillow/issues/2081
@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG", "MPO", "AVIF"])
def test_a_file_of_several_pictures_is_no_frame_and_one_of_one_is(kind: str) -> None:
    assert stored(saved(kind, [picture(40 * k) for k in range(3)])) == SEVERAL
    one = stored(saved("JPEG" if kind == "MPO" else kind, [picture(90)]))
    assert isinstance(one, Stored) and (one.width, one.height) == SIZE


def test_previews_in_a_tiff_are_no_pages() -> None:
    """After the tag of reduced images that cameras and Photoshop write (TIFF 6.0, NewSubfileType)."""
    file = io.BytesIO()
    picture(90).save(file, "TIFF", save_all=True, append_images=[picture(90, (16, 12))], tiffinfo={254: 0})
    data = bytearray(file.getvalue())
    first = int.from_bytes(data[4:8], "little")
    second = int.from_bytes(data[first + 2 + 12 * int.from_bytes(data[first : first + 2], "little") :][:4], "little")
    assert data[second + 2 : second + 4] == b"\xfe\0"  # NewSubfileType stands first
    assert stored(bytes(data)) == SEVERAL
    data[second + 10] = 1
    assert isinstance(stored(bytes(data)), Stored)


def test_a_gain_map_behind_a_jpeg_is_no_second_picture() -> None:
    """After https://github.com/python-pillow/Pillow/issues/8052: phones' Ultra HDR photos."""
    assert isinstance(stored(saved("MPO", [picture(90), picture(30, (32, 24))])), Stored)


# Tiles of a HEIC taken for frames of a video: https://github.com/nokiatech/heif/issues/50,
# https://github.com/mpv-player/mpv/pull/17738
def test_heic_and_avif_are_pictures(tmp_path: Path) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    assert image_kind(heic[:64]) == "HEIF" and image_kind(saved("AVIF", [picture(9)])[:64]) == "AVIF"
    root = tmp_path / "root"
    root.mkdir()
    for name in ("IMG_0001.HEIC", "IMG_0002.mp4", "nameless"):
        (root / name).write_bytes(heic)
    with pytest.raises(DataError, match=r"whole picture \(of 3: HEIF, which Pillow does not read here"):
        build_shards(root, tmp_path / "none", workers=1)
    (root / "still.avif").write_bytes(saved("AVIF", [picture(200)]))
    report = build_shards(root, tmp_path / "out", workers=1)
    assert report.frames == 1 and sum(report.skipped.values()) == 3
    reasons = {file["file"]: file["reason"] for file in layout.read_report(tmp_path / "out")["files"]}
    assert reasons["still.avif"] == "not a JPEG"
