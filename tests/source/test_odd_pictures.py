"""Pictures of every camera and converter: Pillow's pixels, or refused in a phrase before they take memory or time."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from cltt.errors import InvalidImage
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.source import image, jpeg, pixels
from tests.helpers import hostile

REPOSITORY = Path(__file__).parents[2]
PICTURES = hostile.odd_pictures()
LOSSLESS = [name for name in PICTURES if name.startswith(("png", "bmp", "tiff", "webp"))]
BOMB = 40_000  # pixels a side
BOMB_MEMORY = 200 << 20  # bytes more than the libraries take: a decoder would want gigabytes


def _pillow(data: bytes) -> np.ndarray:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if picture.mode == "I;16":
        return np.repeat((np.asarray(picture) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("name", LOSSLESS)
def test_other_formats_have_pillows_pixels_exactly(name: str) -> None:
    kind = image.image_kind(PICTURES[name][:16])
    assert np.array_equal(pixels.decode_other(kind, PICTURES[name]), _pillow(PICTURES[name]))


@pytest.mark.parametrize("name", [name for name in PICTURES if "palette" not in name and "bits" not in name])
def test_what_is_stored_looks_as_pillow_shows_the_source(name: str) -> None:
    stored = image.as_stored(PICTURES[name])
    expected = _pillow(PICTURES[name])
    got = np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB"))
    assert got.shape == expected.shape == (stored.height, stored.width, 3)
    assert np.abs(got.astype(int) - expected).mean() < 6  # encoded anew, at a quarter of the colours
    assert jpeg.why_not_for_hardware(jpeg.jpeg_info(stored.data)) == ""


@pytest.mark.parametrize("name", hostile.odd_exif())
def test_an_orientation_is_read_as_pillow_reads_it(name: str) -> None:
    data = PICTURES[name]
    with Image.open(io.BytesIO(data)) as picture:
        expected = picture.getexif().get(0x0112, 1)
    assert pixels.jpeg_orientation(data) == (expected if expected in range(1, 9) else 1)


def test_an_orientation_stands_in_each_way_that_pillow_reads() -> None:
    turns = {name: pixels.jpeg_orientation(data) for name, data in hostile.odd_exif().items()}
    assert turns["exif short, big"] == 8 and turns["exif long, big"] == 6 and turns["exif long, little"] == 3
    assert turns["exif in two segments"] == 6 and turns["xmp alone"] == 7 and turns["exif before xmp"] == 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(orientation: int) -> None:
    array = hostile.picture()
    data = hostile.saved(array, "PNG", exif=hostile.exif(orientation))
    assert np.array_equal(
        pixels.turned(array, orientation), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    )


def test_four_to_one_to_one_turned_is_reencoded_and_an_old_shard_of_it_still_decodes() -> None:
    stored = image.as_stored(PICTURES["jpeg 441"])
    assert stored.reencoded == "unusual chroma subsampling"
    assert FrameDecoder(Framing(image_size=32)).frame(PICTURES["jpeg 441"]).shape == (32, 32, 3)


def test_rgb_without_conversion_is_reencoded() -> None:
    assert image.as_stored(PICTURES["jpeg rgb"]).reencoded == "RGB stored without conversion"


@pytest.mark.parametrize("sampling", [0x42, 0x14, 0x24, 0x31])
def test_chroma_that_a_hardware_decoder_may_not_take(sampling: int) -> None:
    data = bytearray(PICTURES["jpeg 444"])
    data[data.find(b"\xff\xc0") + 11] = sampling
    assert jpeg.why_not_for_hardware(jpeg.jpeg_info(bytes(data))) == "unusual chroma subsampling"


@pytest.mark.parametrize(("field", "value"), [(1, 0xC9), (1, 0xC3), (4, 12)])
def test_coding_that_a_hardware_decoder_may_not_take(field: int, value: int) -> None:
    data = bytearray(PICTURES["jpeg"])
    data[data.find(b"\xff\xc0") + field] = value  # arithmetic, lossless; 12 bit
    assert jpeg.why_not_for_hardware(jpeg.jpeg_info(bytes(data))) == "unusual JPEG coding"


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw"])
def test_a_tiff_with_a_hole_is_refused(compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = bytearray(hostile.saved(noise, "TIFF", compression=compression))
    data[3000:3400] = bytes(400)
    with pytest.raises(InvalidImage, match="invalid TIFF"):
        image.as_stored(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("side", ["wide", "high"])
def test_a_picture_too_long_for_a_jpeg_is_refused(kind: str, side: str) -> None:
    shape = (2, 66_000) if side == "wide" else (66_000, 2)
    data = hostile.saved(np.zeros(shape, np.uint8), kind)
    with pytest.raises(InvalidImage, match="more than 65,500 pixels on a side"):
        image.as_stored(data)


def test_an_error_of_any_kind_is_an_invalid_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (MemoryError(), KeyError(6), OSError("no"), ZeroDivisionError("x\ny"), SystemError()):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(simplejpeg, "decode_jpeg", fail)
            with pytest.raises(InvalidImage, match="invalid JPEG") as caught:
                image.as_stored(PICTURES["jpeg"])
            assert "\n" not in str(caught.value)


BOMBS = {
    "progressive JPEG": hostile.of_size(PICTURES["jpeg progressive"], BOMB, BOMB),
    "baseline JPEG": hostile.of_size(PICTURES["jpeg"], BOMB, BOMB),
    "PNG": hostile.png_of(BOMB, BOMB, zlib.compress(bytes(BOMB * 1000))),
    "BMP": PICTURES["bmp"][:18] + BOMB.to_bytes(4, "little") * 2 + PICTURES["bmp"][26:],
}
TRY = f"""
import resource, sys
from cltt.errors import InvalidImage
from cltt.source import image, pixels
pixels._factories(); import simplejpeg, cv2
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + {BOMB_MEMORY}, held + {BOMB_MEMORY}))
try:
    image.as_stored(sys.stdin.buffer.read())
except InvalidImage as error:
    print(error)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    assert len(BOMBS[name]) < 200_000
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", TRY], input=BOMBS[name], capture_output=True, cwd=REPOSITORY)
    assert done.stdout.decode().strip() == f"more than {image.MAX_PIXELS:,} pixels", done.stderr
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", [name for name in BOMBS if "JPEG" in name])
def test_the_loader_refuses_a_bomb_too(name: str) -> None:
    with pytest.raises(ValueError, match="more than 178,956,970 pixels"):
        FrameDecoder(Framing(image_size=32)).frame(BOMBS[name])


def test_the_limit_of_pixels_is_a_setting() -> None:
    data = PICTURES["png"]
    count = hostile.HEIGHT * hostile.WIDTH
    assert image.as_stored(data, max_pixels=count)
    with pytest.raises(InvalidImage, match="more than 2,239 pixels"):
        image.as_stored(data, max_pixels=count - 1)


def test_a_progressive_picture_of_many_scans_is_refused() -> None:
    data = PICTURES["jpeg progressive"]
    scan = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(InvalidImage, match="more than 100 scans"):
        image.as_stored(data[:-2] + scan * 100 + data[-2:])


def test_a_file_that_cannot_be_a_picture_by_its_size_is_not_read(tmp_path: Path) -> None:
    for name, begin, reason in (
        ("zeros.jpg", b"", "not an image"),
        ("jpeg.jpg", PICTURES["jpeg"], "more bytes than a picture"),
        ("png.png", PICTURES["png"], "more bytes than a picture"),
        ("head.jpg", PICTURES["jpeg"][:10], "invalid JPEG"),
    ):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(10**11)
        start = time.monotonic()
        with pytest.raises(InvalidImage, match=reason):
            image.read_source(path)
        assert time.monotonic() - start < 20  # reading all of it takes minutes


def test_a_header_reader_says_what_reading_each_picture_anew_says() -> None:
    """In any order, cut off anywhere, with any byte of a header turned: what it remembers is of no consequence."""
    rng = np.random.default_rng(0)
    whole = [data for name, data in PICTURES.items() if data.startswith(jpeg.START) and len(data) < 100_000]
    heads = [data[: data.index(b"\xff\xda") + 40] for data in whole if b"\xff\xda" in data]
    assert len(heads) > 10
    read, remembered = jpeg.HeaderReader(), 0
    for _ in range(20_000):
        data = bytearray(heads[rng.integers(3) if rng.random() < 0.7 else rng.integers(len(heads))])
        if rng.random() < 0.4:
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.2:
            del data[rng.integers(2, len(data)) :]
        remembered += read._last is not None and data.startswith(read._last[0])
        assert _said(read, bytes(data)) == _said(jpeg.jpeg_info, bytes(data))
    assert remembered > 1000


def _said(read: Callable[[bytes], jpeg.JpegInfo], data: bytes) -> object:
    try:
        return read(data)
    except InvalidImage as error:
        return str(error)
