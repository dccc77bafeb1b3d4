"""Pixels: both decoders and both augmenters held to each other on every kind of JPEG; drawn parameters; batch types."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cltt.config import PRESETS, Augment
from cltt.frames import augment
from cltt.frames.augment import random_numbers
from cltt.frames.batch import BatchMaker
from cltt.frames.decoders import CpuDecoder, DaliDecoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from tests.helpers import data
from tests.helpers.pictures import KINDS, SIZES, detailed, jpeg

CPU = torch.device("cpu")
STRONG = Augment(crop_area=(0.08, 0.3), flip=0.9, jitter=(0.4, 0.4, 0.4, 0.1), blur=1.0)
NO_CROP = Augment(flip=0.5, jitter=(0.1, 0.9, 0.5, 0.5), grey=0.5)
TOLERANCE = 2.0  # of 255, mean over all frames; a single frame of extreme detail may have twice that
needs_dali = pytest.mark.skipif(not dali_installed(), reason="DALI is not installed (it has no macOS wheel)")


def decode(decoder: CpuDecoder | DaliDecoder, jpegs: list[bytes]) -> tuple[list[np.ndarray], dict[int, str]]:
    store = FrameStore(len(jpegs), decoder.framing, CPU)
    failures = decoder.decode(jpegs, range(len(jpegs)), store)
    return [store.frame(k).numpy().copy() for k in range(len(jpegs))], failures


@needs_dali
@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_cpu_and_dali_decode_the_same_pixels(kind: str, margin: bool) -> None:
    for size in (64, 224):
        framing = Framing(image_size=size, margin=margin)
        ours, bad = decode(CpuDecoder(framing), KINDS[kind])
        dali, bad_dali = decode(DaliDecoder(framing, CPU, 2), KINDS[kind])
        assert not bad and not bad_dali
        assert [f.shape for f in ours] == [f.shape for f in dali]
        difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, dali, strict=True)]
        assert np.mean(difference) < TOLERANCE and max(difference) < 2 * TOLERANCE, difference


@needs_dali
@pytest.mark.parametrize("size", [64, 112, 224])
def test_cpu_and_dali_decode_the_same_pixels_of_real_frames(real_root: Path, size: int) -> None:
    files = [path for path in sorted(real_root.rglob("*.[jJ]*")) if not path.name.startswith("._")]
    jpegs = [path.read_bytes() for path in files[:: max(1, len(files) // 40)]]
    framing = Framing(image_size=size)
    ours, dali = (decode(decoder, jpegs)[0] for decoder in (CpuDecoder(framing), DaliDecoder(framing, CPU, 2)))
    assert np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(ours, dali, strict=True)]) < TOLERANCE / 2


def test_centre_square_of_a_frame_at_its_own_size_is_copied() -> None:
    image = detailed(64, 90, 1)
    (ours,), _ = decode(CpuDecoder(Framing(image_size=64)), [jpeg(image)])
    np.testing.assert_array_equal(ours, np.asarray(Image.open(io.BytesIO(jpeg(image))))[:, 13:77])


@pytest.mark.parametrize(
    ("height", "width"),
    [(480, 640), (640, 480), (100, 1000), (1000, 100), (7, 7), (255, 257), (449, 1001), (1083, 1919), (2161, 4097)],
)
@pytest.mark.parametrize("size", [32, 224])
def test_framing_fits_its_slot(height: int, width: int, size: int) -> None:
    for margin in (False, True):
        framing = Framing(image_size=size, margin=margin)
        step = framing.reduction(height, width)
        top, left, rows, columns = framing.box(height, width)
        stored = framing.stored_size(height, width)
        assert top >= 0 and left >= 0 and top + rows <= height and left + columns <= width
        assert not any(number % step for number in (top, left, rows, columns))
        assert step == 1 or (rows >= step * stored[0] and columns >= step * stored[1])
        side = min(height, width)
        assert side - step < min(rows, columns) <= side, "less than a pixel of the reduced frame is left out"
        assert abs(top - (height - rows - top)) <= 2 * step and abs(left - (width - columns - left)) <= 2 * step
        assert min(stored) == framing.short and stored[0] * stored[1] <= framing.pixels
        assert abs(stored[0] / stored[1] * columns / rows - 1) < 0.06
        assert step == 8 or min(rows / stored[0], columns / stored[1]) < 2 * step * (1 + 2 * step / side)


def test_decoders_name_the_bad_jpegs_and_keep_the_good_ones() -> None:
    good = [jpeg(detailed(60, 80, k)) for k in range(6)]
    cut, noise, empty = good[1][: len(good[1]) // 2], b"\xff\xd8" + bytes(range(256)), b""
    jpegs = [good[0], cut, good[2], noise, good[4], empty]
    framing = Framing(image_size=32)
    expected = decode(CpuDecoder(framing), good)[0]
    decoders: list[CpuDecoder | DaliDecoder] = [CpuDecoder(framing)]
    if dali_installed():
        decoders.append(DaliDecoder(framing, CPU, 1))
    for decoder in decoders:
        for _ in range(2):  # the decoder goes on working after a bad batch
            frames, failures = decode(decoder, jpegs)
            assert set(failures) == {1, 3, 5}
            for k in (0, 2, 4):
                assert np.abs(frames[k].astype(int) - expected[k]).mean() < TOLERANCE
        assert not decode(decoder, good)[1]


def drawn_for(kind: Augment, count: int, sizes: np.ndarray, seed: int = 0) -> augment.Augmentation:
    ids = np.arange(count)
    flat = {name: values.reshape(-1) for name, values in random_numbers(seed, 0, ids, ids[:, None], "frame").items()}
    return augment.sample_params(kind, flat, sizes)


@needs_dali
@pytest.mark.parametrize("kind", [PRESETS["crop"], PRESETS["simclr"], STRONG, NO_CROP], ids=str)
@pytest.mark.parametrize("size", [64, 224])
def test_opencv_and_dali_augment_alike(kind: Augment, size: int) -> None:
    from cltt.frames.gpu.dali_graphs import AugmentGraph

    framing = Framing(image_size=size, margin=kind.crop_area is not None)
    store = FrameStore(24, framing, CPU)
    CpuDecoder(framing).decode([jpeg(detailed(*SIZES[k % 4], k)) for k in range(24)], range(24), store)
    augmentation = drawn_for(kind, 24, store.sizes)
    assert augmentation.flip.any() and not augmentation.flip.all()
    frames = [store.frame(k) for k in range(24)]
    graph = AugmentGraph(size, augment.blur_window(size), kind.jitter[3] > 0, 24, 1, None)
    dali = graph.augment(frames, augmentation).numpy()
    ours = np.empty((24, size, size, 3), np.uint8)
    for k, frame in enumerate(frames):
        augment.augment(frame.numpy(), augmentation, k, ours[k])
    difference = np.abs(ours.astype(int) - dali).reshape(24, -1).mean(axis=1)
    assert difference.mean() < 1 and difference.max() < 2 * TOLERANCE, difference


@needs_dali
@pytest.mark.parametrize("grey", [0.0, 0.5])
def test_opencv_and_dali_turn_hues_alike(grey: float) -> None:
    """Half a turn either way, in every sixth; values differ by a rounding."""
    from cltt.frames.gpu.dali_graphs import AugmentGraph

    augmentation = drawn_for(Augment(jitter=(0, 0, 0, 0.5), grey=grey), 40, np.tile((32, 32), (40, 1)))
    assert set((6 * augmentation.hue[augmentation.hue != 0] % 6).astype(int)) == set(range(6))
    frames = torch.randint(0, 256, (40, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dali = AugmentGraph(32, 3, True, 40, 1, None).augment(list(frames), augmentation).numpy()
    ours = np.empty_like(dali)
    for k, frame in enumerate(frames.numpy()):
        augment.augment(frame, augmentation, k, ours[k])
    assert np.abs(ours.astype(int) - dali).max() <= 1


def test_draws_depend_on_window_and_frame_alone() -> None:
    windows, frames = np.arange(40), np.arange(200).reshape(40, 5)
    whole = random_numbers(7, 3, windows, frames, "frame")
    part = random_numbers(7, 3, windows[[31, 4]], frames[[31, 4]], "frame")
    for name, values in whole.items():
        np.testing.assert_array_equal(values[[31, 4]], part[name])
        assert len(np.unique(values)) == values.size
        assert not np.intersect1d(values, random_numbers(8, 3, windows, frames, "frame")[name]).size
        assert not np.intersect1d(values, random_numbers(7, 4, windows, frames, "frame")[name]).size
    by_window = random_numbers(7, 3, windows, frames, "window")["area0"]
    assert (by_window == by_window[:, :1]).all() and len(np.unique(by_window)) == 40
    shared = random_numbers(7, 3, windows[:2], np.full((2, 5), 9), "frame")["area0"]
    assert len(np.unique(shared)) == 2, "one frame in two windows is augmented differently"


def test_draws_are_uniform_and_independent() -> None:
    values = random_numbers(0, 0, np.arange(4000), np.arange(20000).reshape(4000, 5), "frame")
    table = np.stack([v.reshape(-1) for v in values.values()])
    assert table.min() >= 0 and table.max() < 1
    assert np.abs(table.mean(axis=1) - 0.5).max() < 0.01 and np.abs(table.var(axis=1) - 1 / 12).max() < 0.003
    assert np.abs(np.corrcoef(table) - np.eye(len(table))).max() < 0.03
    counts = np.histogram(table[0], 20, (0, 1))[0]
    assert np.abs(counts / 1000 - 1).max() < 0.15


def test_drawn_parameters_keep_to_the_recipe() -> None:
    sizes = np.tile([[256, 341], [341, 256]], (4000, 1))
    drawn = drawn_for(PRESETS["simclr"], 8000, sizes)
    assert (drawn.box >= 0).all() and (drawn.box[:, :2] + drawn.box[:, 2:] <= sizes).all()
    share = drawn.box[:, 2:].prod(axis=1) / sizes.prod(axis=1)
    assert share.min() > 0.19 and share.max() <= 1 and abs(share.mean() - 0.496) < 0.01
    assert abs(drawn.flip.mean() - 0.5) < 0.02 and abs((drawn.sigma > 0).mean() - 0.5) < 0.02
    grey = (np.abs(drawn.colour[:, 0] - drawn.colour[:, 1]).max(axis=1) < 1e-6) | drawn.grey
    assert abs(grey.mean() - 0.2) < 0.02 and not (drawn.grey & (drawn.hue == 0)).any()
    plain = (np.abs(drawn.colour - np.eye(3, 4)).max(axis=(1, 2)) < 1e-6) & (drawn.hue == 0)
    assert abs(plain.mean() - 0.2 * 0.8) < 0.02
    # Saturation and grey leave grey as it is: its three channels stay equal.
    mid = drawn.colour[:, :, :3].sum(axis=2) * 90 + drawn.colour[:, :, 3]
    assert np.abs(mid - mid[:, :1]).max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_have_the_type_and_memory_order_asked_for(dtype: torch.dtype, channels_last: bool) -> None:
    framing = Framing(image_size=16)
    store = FrameStore(6, framing, CPU)
    store.rows().random_(0, 256)
    slots = np.array([[0, 5, 2], [2, 2, 1]])
    batch = BatchMaker(framing, CPU, dtype, PRESETS["none"], channels_last, 1).make(store, slots, None)
    raw = torch.stack([torch.stack([store.frame(s).permute(2, 0, 1) for s in row]) for row in slots.tolist()])
    assert batch.shape == (2, 3, 3, 16, 16) and batch.dtype == dtype
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.flatten(0, 1).is_contiguous(memory_format=order)
    if dtype == torch.uint8:
        assert torch.equal(batch, raw)
        return
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = (raw.double() / 255 - mean) / std
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(batch.double(), expected, atol=tolerance, rtol=tolerance)


HIDE_DALI = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nvidia":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
build_shards(sys.argv[1], sys.argv[2])
dataset = ShardDataset(sys.argv[2])
index = WindowIndex(dataset.clip_lengths, 3, 2)
for augment in ("none", "simclr"):
    with WindowLoader(dataset, index, 4, image_size=32, device="cpu", augment=augment) as loader:
        print(sum(batch.frames.shape == (4, 3, 3, 32, 32) for batch in loader))
from cltt.frames.decoders import dali_installed
assert not dali_installed() and not any(name.startswith("nvidia") for name in sys.modules)
"""


@pytest.mark.slow
def test_everything_works_without_dali(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "clips", {"a": 12, "b": 12})
    command = [sys.executable, "-c", HIDE_DALI, str(root), str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "4"]
