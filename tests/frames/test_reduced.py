"""Frames decoded at a half, quarter or eighth of their size: DALI's pixels, in every place that decodes."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from cltt.evaluation.datasets import open_labelled
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.decoders import DaliDecoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from cltt.source import libjpeg
from tests.helpers.pictures import detailed, jpeg

CPU = torch.device("cpu")
LINES = (200, 256, 300, 431, 480, 576, 720, 1080, 1440, 2160)
SIZES = (32, 64, 96, 112, 128, 192, 224, 256)
needs_dali = pytest.mark.skipif(not dali_installed(), reason="DALI is not installed (it has no macOS wheel)")


def pictures(lines: int, real_root: Path) -> list[bytes]:
    """Drawn frames of three shapes and real ones, with ``lines`` on the short side."""
    shapes = [(lines, round(lines * 4 / 3)), (lines, round(lines * 16 / 9) | 1), (round(lines * 4 / 3), lines)]
    drawn = [jpeg(detailed(*shape, k)) for k, shape in enumerate(shapes)]
    files = [path for path in sorted(real_root.rglob("*.[jJ]*")) if not path.name.startswith("._")]
    real = []
    for path in files[:: len(files) // 5]:
        image = np.asarray(Image.open(path).convert("RGB"))
        scale = lines / min(image.shape[:2])
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        real.append(jpeg(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)))
    return drawn + real


def by_dali(framing: Framing, jpegs: list[bytes]) -> list[np.ndarray]:
    store = FrameStore(len(jpegs), framing, CPU)
    assert not DaliDecoder(framing, CPU, 2).decode(jpegs, range(len(jpegs)), store)
    return [store.frame(k).numpy().copy() for k in range(len(jpegs))]


@needs_dali
@pytest.mark.slow
@pytest.mark.parametrize("lines", LINES)
def test_pixels_are_those_of_dali(lines: int, real_root: Path) -> None:
    jpegs = pictures(lines, real_root)
    for size in SIZES:
        for margin in (False, True):
            framing = Framing(image_size=size, margin=margin)
            decoder = FrameDecoder(framing)
            pairs = zip(map(decoder.frame, jpegs), by_dali(framing, jpegs), strict=True)
            difference = [np.abs(ours.astype(int) - dali).mean() for ours, dali in pairs]
            assert np.mean(difference) < (2.0 if size >= 96 else 2.5), (size, margin, difference)
            # Beside the drawn frames, of which two thirds are one-pixel ripples, real ones are closer still.
            assert np.mean(difference[3:]) < (1.25 if size >= 96 else 2.0), (size, margin, difference)


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("shape", [(480, 853), (97, 61), (64, 64), (33, 200)])
def test_a_reduced_picture_is_the_mean_of_its_squares(number: int, shape: tuple[int, int]) -> None:
    image = cv2.GaussianBlur(detailed(*shape, 3), (0, 0), 2.0)
    data = jpeg(image, quality=98, subsampling=0)
    found = libjpeg.decode(data, *shape, number)
    assert found.shape == (-(-shape[0] // number), -(-shape[1] // number), 3)
    whole = simplejpeg.decode_jpeg(data)[: shape[0] // number * number, : shape[1] // number * number]
    rows, columns = (side // number for side in whole.shape[:2])
    mean = whole.reshape(rows, number, columns, number, 3).mean(axis=(1, 3))
    assert np.abs(found[:rows, :columns] - mean).mean() < 1


@pytest.mark.parametrize("shape", [(480, 853), (1080, 1920), (2161, 1441), (70, 50)])
def test_decoding_stops_short_of_losing_detail(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At least the stored size, and less than twice that unless it is an eighth already."""
    numbers = []
    decode = libjpeg.decode

    def watched(jpeg: bytes, height: int, width: int, reduction: int, buffer: np.ndarray | None = None) -> np.ndarray:
        numbers.append(reduction)
        return decode(jpeg, height, width, reduction, buffer)

    monkeypatch.setattr(libjpeg, "decode", watched)
    data = jpeg(detailed(*shape, 1))
    for size in (16, 24, 32, 48, 63, 112, 224):
        FrameDecoder(Framing(image_size=size)).frame(data)
        factor = min(shape) // size
        assert numbers.pop() == max(number for number in (1, 2, 4, 8) if number <= max(1, factor))


def test_what_libjpeg_complains_of_is_found_at_any_size() -> None:
    whole = jpeg(detailed(480, 640, 1))
    cut = whole[: len(whole) * 4 // 5]
    for size in (300, 224, 112, 48):
        with pytest.raises(ValueError):
            FrameDecoder(Framing(image_size=size)).frame(cut)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_evaluation_sees_the_pixels_of_training(tmp_path: Path, orientation: int) -> None:
    """Upright JPEGs go through the loader's decoder, others through OpenCV at full size, framed alike."""
    image = detailed(480, 640, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a", "b"):
        for k in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / name / f"{k}.jpg", quality=95, exif=exif)
            Image.fromarray(image).save(tmp_path / name / f"{k}.png")
    images = open_labelled(tmp_path).parts["train"]
    files = images.batch(0, len(images), 112).numpy().transpose(0, 2, 3, 1)
    upright = FrameDecoder(Framing(image_size=112)).frame(jpeg(image, quality=95))
    turned = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright, -1)}[orientation]
    # Half are JPEGs, half PNGs: 1.0 is what JPEG and the reduced decode lose of so detailed a picture.
    means = sorted(min(np.abs(found.astype(int) - want).mean() for want in (upright, turned)) for found in files)
    assert means[-1] < 2.5
    if orientation == 1:
        assert means[0] == 0, "a JPEG as the loader decodes it, to the bit"


def test_evaluation_still_takes_what_libjpeg_only_warns_of(tmp_path: Path) -> None:
    whole = jpeg(detailed(48, 64, 2))
    cmyk = io.BytesIO()
    Image.fromarray(detailed(48, 64, 2)).convert("CMYK").save(cmyk, "JPEG")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k, data in enumerate([whole, whole[:900] + whole[930:], cmyk.getvalue()]):
            (tmp_path / name / f"{k}.jpg").write_bytes(data)
    parts = open_labelled(tmp_path).parts
    assert sum(len(images.batch(0, len(images), 24)) for images in parts.values()) == 6
