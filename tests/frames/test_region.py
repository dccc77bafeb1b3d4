"""Where the network looks: both decoders against a plain picture of it, and against each other."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cltt.config import PRESETS, ViewSettings
from cltt.errors import SettingsError
from cltt.frames.augment import augment, random_numbers, sample_params
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.decoders import CpuDecoder, DaliDecoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from cltt.region import NO_REGION, Box, Region
from tests.helpers.pictures import detailed, jpeg

CPU = torch.device("cpu")
NAN = float("nan")
SHAPES = [(240, 320), (241, 333), (333, 241), (97, 61), (256, 256), (540, 961), (64, 200), (300, 40)]
BOXES: list[Box | None] = [
    (0.1, 0.2, 0.6, 0.9),
    (0.0, 0.0, 0.3, 0.2),  # in a corner
    (0.8, 0.7, 1.0, 1.0),
    (0.0, 0.0, 1.0, 1.0),  # everything
    (0.5, 0.5, 0.5, 0.5),  # points, of gaze
    (0.0, 1.0, 0.0, 1.0),
    (0.93, 0.4, 0.93, 0.4),
    (0.2, 0.1, 0.2, 0.9),  # a line
    None,
]
REGIONS = [
    Region("center"),
    Region("center", "crop"),
    Region("boxes"),
    Region("boxes", "crop", 0.3),
    Region("boxes", "crop", 1.0),
]
needs_dali = pytest.mark.skipif(not dali_installed(), reason="DALI is not installed (it has no macOS wheel)")


# ---- the plain picture


def gaussian(picture: np.ndarray, lines: float) -> np.ndarray:
    """31 taps of deviation 5 at 256 lines, over the mirrored picture, in float64."""
    radius, sigma = round(15 * lines / 256), 5 * lines / 256
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if k == axis else (0, 0) for k in range(3)]
        padded = np.pad(picture, pad, mode="reflect")
        taken = [np.take(padded, np.arange(picture.shape[axis]) + k, axis=axis) for k in range(2 * radius + 1)]
        picture = sum(weight * part for weight, part in zip(weights, taken, strict=True))
    return picture


def plain(image: np.ndarray, size: int, region: Region, box: Box | None) -> np.ndarray:
    """The S x S frame of ``image``, without margin: cut, resized by Pillow, blurred; float64."""
    height, width = image.shape[:2]
    short = min(height, width)
    x1, y1, x2, y2 = (0.25, 0.25, 0.75, 0.75) if box is None or region.kind == "center" else box
    x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    side, top, left = float(short), (height - short) // 2, (width - short) // 2
    wanted = round((region.scale or 0) * short)
    about = [min(max((a + b) / 2 - wanted / 2, 0), of - wanted) for a, b, of in ((y1, y2, height), (x1, x2, width))]
    if region.effect == "crop":
        side, (top, left) = wanted, map(round, about)
    framing = Framing(image_size=size, region=region)
    if framing.reduction(height, width) > 1:  # there the square begins and ends at pixels of the reduced picture
        top, left, side, _ = framing.box(height, width, box)
    area = (left, top, left + side, top + side)
    cut = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=area)
    found = np.asarray(cut, np.float64)
    if region.effect != "blur":
        return found
    if min(x2 - x1, y2 - y1) < side / size:
        y1, x1 = about
        y2, x2 = y1 + wanted, x1 + wanted
    rows, columns = (np.arange(size) + 0.5) * side / size + top, (np.arange(size) + 0.5) * side / size + left
    clear = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
    return np.where(clear[..., None], found, gaussian(found, size))


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_frames_are_those_of_the_plain_picture(region: Region) -> None:
    for k, shape in enumerate(SHAPES):
        data = jpeg(detailed(*shape, k), quality=95, subsampling=0)
        image = np.asarray(Image.open(io.BytesIO(data)))
        for box in BOXES:
            found = FrameDecoder(Framing(image_size=64, region=region)).frame(data, box)
            difference = np.abs(found - plain(image, 64, region, box)).mean()
            assert difference < 3.0, (shape, box, difference)


@pytest.mark.parametrize("size", [64, 97, 256])
def test_a_frame_at_its_own_size_differs_by_the_blur_alone(size: int) -> None:
    data = jpeg(detailed(size, size, 3))
    image = np.asarray(Image.open(io.BytesIO(data)))
    for region, box in ((Region("center"), None), (Region("boxes"), (0.0, 0.5, 0.3, 0.5)), (Region("boxes"), BOXES[0])):
        found = FrameDecoder(Framing(image_size=size, region=region)).frame(data, box)
        wanted = plain(image, size, region, box)
        difference = np.abs(found - wanted)
        assert difference.mean() < 0.7 and difference.max() < 20, "half size is not the Gaussian itself, but close"
        assert np.abs(image - wanted).mean() > 4 * difference.mean(), "blurred"
    top, bottom = round(size / 4), round(3 * size / 4)
    found = FrameDecoder(Framing(image_size=size, region=Region("center"))).frame(data)
    assert np.array_equal(found[top:bottom, top:bottom], image[top:bottom, top:bottom]), "the box is left as it was"


# ---- both decoders


@needs_dali
@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_cpu_and_dali_give_the_same_pixels(region: Region, margin: bool) -> None:
    cases = [(jpeg(detailed(*shape, k)), box) for k, shape in enumerate(SHAPES) for box in BOXES]
    jpegs, boxes = [data for data, _ in cases], [box for _, box in cases]
    for size in (63, 112):
        framing = Framing(image_size=size, margin=margin, region=region)
        decoders = CpuDecoder(framing), DaliDecoder(framing, CPU, 2)
        stores = [FrameStore(len(jpegs), framing, CPU) for _ in decoders]
        for decoder, store in zip(decoders, stores, strict=True):
            assert not decoder.decode(jpegs, range(len(jpegs)), store, boxes)
        ours, dali = ([store.host_frame(k).astype(int) for k in range(len(jpegs))] for store in stores)
        assert [frame.shape for frame in ours] == [frame.shape for frame in dali]
        difference = [np.abs(a - b).mean() for a, b in zip(ours, dali, strict=True)]
        assert np.mean(difference) < 1 and max(difference) < 2, sorted(difference)[-5:]


@needs_dali
def test_a_bad_jpeg_leaves_each_good_one_its_own_box() -> None:
    image = detailed(120, 200, 1)
    good, boxes = jpeg(image), [(0.0, 0.0, 0.2, 0.2), (0.4, 0.4, 0.6, 0.6), None, (0.8, 0.8, 1.0, 1.0)]
    framing = Framing(image_size=64, region=Region("boxes", "crop"))
    expected = [FrameDecoder(framing).frame(good, box).astype(int) for box in boxes]
    for decoder in (CpuDecoder(framing), DaliDecoder(framing, CPU, 1)):
        store = FrameStore(4, framing, CPU)
        assert set(decoder.decode([good, good[:500], good, good], range(4), store, boxes)) == {1}
        for k in (0, 2, 3):
            assert np.abs(store.host_frame(k) - expected[k]).mean() < 2


# ---- geometry


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("scale", [0.01, 0.3, 0.5, 1.0])
def test_the_kept_square_lies_about_the_box(scale: float, margin: bool) -> None:
    rng = np.random.default_rng(4)
    region = Region("boxes", "crop", scale)
    for _ in range(2000):
        height, width = rng.integers(1, 3000, 2).tolist()
        framing = Framing(image_size=int(rng.integers(16, 300)), margin=margin, region=region)
        x, y = rng.random(2).tolist() if rng.random() < 0.7 else rng.integers(0, 2, 2).tolist()
        top, left, rows, columns = framing.box(height, width, (x, y, x, y))
        step, side = framing.reduction(height, width), max(1, round(scale * min(height, width)))
        assert rows == columns == side // step * step and not top % step and not left % step
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
        for first, size, whole, middle in ((top, rows, height, y * height), (left, columns, width, x * width)):
            nearest = min(max(middle - size / 2, 0), whole - size)
            assert abs(first - nearest) <= step, "shifted into the frame, and no further"
        assert (
            framing.stored_size(height, width) == (framing.short, framing.short) and framing.pixels == framing.short**2
        )
        # The reduction is as large as the square allows, and no larger.
        assert rows >= step * framing.short or step == 1
        assert step == 8 or side // framing.short < 2 * step


def test_a_square_is_decoded_reduced_where_it_is_large_enough() -> None:
    half = Region("center", "crop", 0.5)
    reductions = [Framing(image_size=S, region=half).reduction(1080, 1920) for S in (224, 112, 64, 600)]
    assert reductions == [2, 4, 8, 1]
    assert Framing(image_size=224).reduction(1080, 1920) == 4


def test_without_a_region_nothing_changes() -> None:
    for margin in (False, True):
        for shape in SHAPES:
            plain, center = (Framing(image_size=64, margin=margin, region=r) for r in (NO_REGION, Region("center")))
            assert plain.box(*shape) == plain.box(*shape, (0.1, 0.1, 0.2, 0.2)) == center.box(*shape)
            assert plain.clear(*shape) is None and plain.blur is None


@pytest.mark.parametrize("box", BOXES)
def test_crops_of_an_augmentation_stay_inside_the_kept_square(box: Box | None) -> None:
    """A frame that is white in the square and black outside: whatever is drawn, no black is seen."""
    region, shape = Region("boxes", "crop", 0.4), (300, 400)
    framing = Framing(image_size=64, margin=True, region=region)
    top, left, rows, columns = framing.box(*shape, box)
    image = np.zeros((*shape, 3), np.uint8)
    image[top : top + rows, left : left + columns] = 255
    frame = FrameDecoder(framing).frame(jpeg(image, quality=100, subsampling=0), box)
    assert frame.shape == (framing.short, framing.short, 3)
    ids = np.arange(3000)
    draws = {name: values.reshape(-1) for name, values in random_numbers(1, 0, ids, ids[:, None], "frame").items()}
    drawn = sample_params(PRESETS["crop"], draws, np.tile(frame.shape[:2], (len(ids), 1)))
    out = np.empty((64, 64, 3), np.uint8)
    touched = np.zeros(4, int)
    for k in ids.tolist():
        augment(frame, drawn, k, out)
        assert out.min() > 200
        first, last = drawn.box[k, :2], drawn.box[k, :2] + drawn.box[k, 2:]
        touched += np.concatenate([first == 0, last == framing.short])
    assert (touched > 20).all(), "crops reach all four sides of the square"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("eyes",), "region is 'eyes'.*none, center, boxes"),
        (("center", "mask"), "region_effect is 'mask'.*blur, crop"),
        (("none", "blur"), "region_effect is blur, but .* --region center or boxes"),
        (("none", None, 0.5), "region_scale is 0.5, but .* --region center or boxes"),
        (("center", "crop", 1.5), "region_scale is 1.5; it must be from 0.01 to 1"),
        (("center", "crop", NAN), "region_scale is nan"),
        (("center", "blur", 0.3), "region_scale is 0.3, but .*--region-effect crop"),
    ],
)
def test_what_says_nothing_is_refused(values: tuple[Any, ...], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        ViewSettings(**dict(zip(("region", "region_effect", "region_scale"), values, strict=False)))
