"""DALI's graphs on a GPU against the CPU decoder and the OpenCV augmentations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cltt.config import PRESETS
from cltt.frames import augment
from cltt.frames.augment import random_numbers as draw
from cltt.frames.batch import BatchMaker
from cltt.frames.decoders import CpuDecoder, DaliDecoder, Decoder, best_decoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from cltt.region import Box, Region
from tests.helpers.pictures import KINDS, SIZES, detailed, jpeg

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not dali_installed(), reason="DALI is not installed")]
CPU = torch.device("cpu")
# nvJPEG's chroma upsampling differs a little from libjpeg-turbo's, on top of the resize.
MEAN, MOST = 2.0, 6.0


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def decoded(
    decoder: Decoder, jpegs: list[bytes], boxes: list[Box | None] | None = None
) -> tuple[list[np.ndarray], dict[int, str]]:
    store = FrameStore(len(jpegs), decoder.framing, decoder.device)
    failures = decoder.decode(jpegs, range(len(jpegs)), store, boxes)
    return [store.frame(k).cpu().numpy() for k in range(len(jpegs))], failures


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_decoding_gives_the_pixels_of_the_cpu(kind: str, margin: bool) -> None:
    framing = Framing(image_size=224, margin=margin)
    ours, _ = decoded(CpuDecoder(framing), KINDS[kind])
    found, failures = decoded(DaliDecoder(framing, cuda(), 2), KINDS[kind])
    assert not failures and [f.shape for f in found] == [f.shape for f in ours]
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, found, strict=True)]
    assert np.mean(difference) < MEAN and max(difference) < MOST, difference


@pytest.mark.parametrize("effect", ["blur", "crop"])
def test_regions_give_the_pixels_of_the_cpu(effect: str) -> None:
    boxes: list[Box | None] = [(0.1, 0.2, 0.6, 0.9), (0.0, 0.0, 0.05, 0.1), (0.5, 0.5, 0.5, 0.5), (1.0, 0.0, 1.0, 0.0)]
    boxes += [None, (0.0, 0.0, 1.0, 1.0), (0.97, 0.4, 1.0, 0.6), (0.2, 0.9, 0.3, 1.0), None]
    for margin in (False, True):
        framing = Framing(image_size=112, margin=margin, region=Region("boxes", effect))
        ours, _ = decoded(CpuDecoder(framing), KINDS["baseline"], boxes)
        found, failures = decoded(DaliDecoder(framing, cuda(), 2), KINDS["baseline"], boxes)
        assert not failures and [f.shape for f in found] == [f.shape for f in ours]
        difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, found, strict=True)]
        assert np.mean(difference) < MEAN and max(difference) < MOST, difference


def test_cuda_gets_dali_and_a_store_on_the_device() -> None:
    decoder = best_decoder(Framing(image_size=64), cuda(), 2)
    assert isinstance(decoder, DaliDecoder) and decoder.device.type == "cuda"


def test_bad_jpegs_do_not_kill_the_decoder() -> None:
    good = [jpeg(detailed(60, 80, k)) for k in range(6)]
    jpegs = [good[0], good[1][: len(good[1]) // 3], good[2], b"\xff\xd8" + bytes(200), good[4], b""]
    decoder = DaliDecoder(Framing(image_size=32), cuda(), 1)
    expected, _ = decoded(CpuDecoder(decoder.framing), good)
    for _ in range(3):
        frames, failures = decoded(decoder, jpegs)
        assert {3, 5} <= set(failures) <= {1, 3, 5}  # a GPU decoder may take a cut JPEG for whole
        for k in (0, 2, 4):
            assert np.abs(frames[k].astype(int) - expected[k]).mean() < MOST
        assert not decoded(decoder, good)[1]


@pytest.mark.parametrize("kind", ["crop", "simclr"])
def test_augmentations_are_those_of_the_cpu(kind: str) -> None:
    framing, count = Framing(image_size=64, margin=True), 24
    host, device = FrameStore(count, framing, CPU), FrameStore(count, framing, cuda())
    CpuDecoder(framing).decode([jpeg(detailed(*SIZES[k % 4], k)) for k in range(count)], range(count), host)
    device.rows().copy_(host.rows())
    device.sizes[:] = host.sizes
    slots = np.arange(count).reshape(8, 3)
    numbers = draw(0, 0, np.arange(8), slots, "frame")
    assert augment.blur_window(64) > 1
    ours = BatchMaker(framing, CPU, torch.uint8, PRESETS[kind], False, 2).make(host, slots, numbers)
    found = BatchMaker(framing, cuda(), torch.uint8, PRESETS[kind], False, 2).make(device, slots, numbers).cpu()
    difference = (ours.int() - found.int()).abs().float().flatten(2).mean(dim=2)
    assert difference.mean() < 1 and difference.max() < 4, difference
