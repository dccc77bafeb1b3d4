"""The loader on CUDA: batches of the CPU loader, no stale slots, states that fit both, and an end to its threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.frames.decoders import DaliDecoder, dali_installed
from cltt.frames.gather import BatchFormat, gather, gather_plain
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from tests.helpers import data

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("gpu")
    clips = data.make_clips(folder / "clips", {f"c{k}": 60 for k in range(6)}, height=120, width=160)
    build_shards(clips, folder / "shards", workers=1)
    return ShardDataset(Path(folder) / "shards")


def make(dataset: ShardDataset, device: str, stride: int = 1, **options: object) -> WindowLoader:
    index = WindowIndex(dataset.clip_lengths, 4, 2, stride)
    defaults = {"image_size": 64, "dtype": torch.uint8, "depth": 8, "num_threads": 3, "device": device}
    return WindowLoader(dataset, index, 8, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 7])  # at 7 no two windows share a frame
@pytest.mark.parametrize("cache", [None, 1])
@pytest.mark.parametrize("augment", ["none", "crop"])
def test_batches_are_those_of_the_cpu(dataset: ShardDataset, augment: str, cache: int | None, stride: int) -> None:
    """With a cache of one step every slot is written again at once: a frame that came too early would show."""
    options = {"stride": stride, "augment": augment}
    with make(dataset, "cpu", **options) as cpu, make(dataset, "cuda", **options, cache_bytes=cache) as gpu:
        for _ in range(2):
            for ours, found in zip(cpu, gpu, strict=True):
                assert found.frames.device.type == "cuda" and found.window_ids.device.type == "cpu"
                assert torch.equal(ours.frame_ids, found.frame_ids)
                difference = (ours.frames.int() - found.frames.cpu().int()).abs().float().flatten(2).mean(dim=2)
                assert difference.mean() < 2 and difference.max() < 6


@pytest.mark.parametrize("stride", [1, 7])
def test_slots_are_not_written_before_they_are_gathered(dataset: ShardDataset, stride: int) -> None:
    """Work is queued before each batch is asked for, so that gathers run long after the loader has gone on.

    The cache holds one step: each slot is wanted again at once, and only the wait for its last read keeps it.
    """
    with make(dataset, "cuda", stride) as calm:
        expected = [batch.frames.clone() for batch in calm]
    busy = torch.randn(4096, 4096, device="cuda")
    found = []
    with make(dataset, "cuda", stride, cache_bytes=1) as loader:
        batches = iter(loader)
        for _ in expected:
            for _ in range(10):
                busy = (busy @ busy).clamp(-1, 1)
            found.append(next(batches).frames.clone())  # queued, too: nothing here waits for the device
    for ours, want in zip(found, expected, strict=True):
        assert torch.equal(ours, want)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_taking_a_batch_never_waits_for_the_device(dataset: ShardDataset, augment: str) -> None:
    """With work queued on the consumer's stream; augmented batches are begun in a thread, on a stream of its own."""
    with make(dataset, "cuda", augment=augment, dtype=torch.bfloat16) as loader:
        batches = iter(loader)
        next(batches)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                next(batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalise", ["imagenet", "none"])
@pytest.mark.parametrize("image_size", [33, 224])
def test_the_gathering_kernel_is_its_plain_twin(
    image_size: int, normalise: str, dtype: torch.dtype, channels_last: bool
) -> None:
    rows = torch.randint(0, 256, (50, image_size * image_size * 3 + 7), dtype=torch.uint8, device="cuda")
    slots = torch.randint(0, 50, (91,), device="cuda")
    wanted = BatchFormat(dtype, channels_last, normalise)
    ours, twin = (function(rows, slots, image_size, wanted) for function in (gather, gather_plain))
    assert ours.stride() == twin.stride() and torch.equal(ours, twin)


@pytest.mark.skipif(not dali_installed(), reason="DALI is not installed")
def test_the_pixels_do_not_depend_on_how_jobs_are_cut(dataset: ShardDataset) -> None:
    """To the last bit, with a JPEG engine or without: what a resumed run sees is what the first one would have seen."""
    framing, device = Framing(image_size=64), torch.device("cuda", torch.cuda.current_device())
    jpegs = dataset.read(range(100))
    found = []
    for job in (1, 7, 100):
        decoder, store = DaliDecoder(framing, device, 2), FrameStore(100, framing, device)
        for first in range(0, 100, job):
            part = slice(first, first + job)
            assert not decoder.decode(jpegs[part], list(range(100))[part], store)
        found.append(store.rows().clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_memory_order(dataset: ShardDataset, dtype: torch.dtype) -> None:
    with make(dataset, "cuda", dtype=dtype, channels_last=True) as loader:
        batch = next(iter(loader))
    assert batch.frames.dtype == dtype
    assert batch.frames.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(batch.frames).all() and abs(float(batch.frames.float().mean())) < 3


def test_a_state_goes_from_one_device_to_the_other(dataset: ShardDataset) -> None:
    with make(dataset, "cuda") as gpu, make(dataset, "cpu") as cpu:
        batches = iter(gpu)
        for _ in range(3):
            next(batches)
        cpu.load_state_dict(gpu.state_dict())
        rest = [batch.window_ids.tolist() for batch in batches]
        assert rest == [batch.window_ids.tolist() for batch in cpu]


def test_threads_end_with_the_loop(dataset: ShardDataset) -> None:
    with pytest.raises(KeyError):
        for _ in make(dataset, "cuda"):
            raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cltt-")]
