"""Batches in main memory: leased, free again only when nothing holds them, each byte the number it should be."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cltt.config import PRESETS
from cltt.frames.batch_cpu import FRAMES_A_TURN, CpuBatchMaker, tables
from cltt.frames.gather import BatchFormat, gather_plain, statistics
from cltt.frames.geometry import Framing
from cltt.frames.leases import MOST_FREE, MOST_LEASED, LeasedMemory
from cltt.frames.store import FrameStore
from tests.helpers import data

CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
HOLDERS: dict[str, Callable[[np.ndarray], object]] = {
    "the lease": lambda lease: lease,
    "a tensor": torch.from_numpy,
    "a view of another type": lambda lease: torch.from_numpy(lease).view(torch.float32),
    "a slice of a tensor": lambda lease: torch.from_numpy(lease).view(4, 4)[1:2, 3],
    "an array of a tensor": lambda lease: torch.from_numpy(lease)[2:].numpy(),
    "a slice of that array": lambda lease: torch.from_numpy(lease).numpy()[2:][3:5].reshape(2, 1),
    "a permuted view": lambda lease: torch.from_numpy(lease).view(4, 4).T.unsqueeze(0).detach(),
    "shared by dlpack": lambda lease: np.from_dlpack(torch.from_numpy(lease)),
    "saved for the backward pass": lambda lease: (
        torch.ones(16, requires_grad=True) * torch.from_numpy(lease).view(torch.uint8)
    ),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_free_again_when_the_last_holder_goes(holder: str) -> None:
    memory = LeasedMemory()
    block = memory.acquire(16)
    held = HOLDERS[holder](memory.lease(block))
    gc.collect()
    assert memory.acquire(16) is not block, "someone still holds it"
    del held
    gc.collect()
    found = memory.acquire(16)
    assert np.shares_memory(found, block)
    assert not np.shares_memory(memory.acquire(16), block), "handed out twice"


def test_few_free_blocks_are_kept_and_only_of_the_size_in_use() -> None:
    memory = LeasedMemory()
    leases = [memory.lease(memory.acquire(64)) for _ in range(10)]
    blocks = [lease.__array_interface__["data"][0] for lease in leases]
    leases.clear()
    gc.collect()
    found = [memory.acquire(64) for _ in range(10)]
    assert sum(block.ctypes.data in blocks for block in found) >= MOST_FREE
    assert len(memory._free) == len(memory._leased) == len(memory._ended) == 0
    leases = [memory.lease(block) for block in found]
    del found
    leases.clear()
    assert memory.acquire(32).nbytes == 32 and not memory._free


def test_what_a_consumer_gives_back_goes_to_the_system() -> None:
    size, holds = 2**25 + 2**20, 16  # so large that malloc gives each back at once
    memory, before = LeasedMemory(), psutil.Process().memory_info().rss
    leases = []
    for _ in range(holds):
        block = memory.acquire(size)
        block[:] = 1
        leases.append(memory.lease(block))
        del block
    assert psutil.Process().memory_info().rss - before > 0.9 * holds * size
    leases.clear()
    assert psutil.Process().memory_info().rss - before < (MOST_LEASED + 1) * size
    memory.acquire(size)
    assert psutil.Process().memory_info().rss - before < (MOST_FREE + 1) * size


def test_a_lease_outlives_the_memory_it_came_from() -> None:
    memory = LeasedMemory()
    block = memory.acquire(8)
    block[:] = 7
    tensor = torch.from_numpy(memory.lease(block))
    del memory, block
    gc.collect()
    assert (tensor == 7).all()


def test_threads_never_share_a_block() -> None:
    memory, wrong = LeasedMemory(), []

    def work(number: int) -> None:
        for turn in range(2000):
            block = memory.acquire(256)
            block[:] = number
            lease = memory.lease(block)
            del block
            if turn % 3 == 0:
                lease = lease[1:]
            if not (lease == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def filled_store(slots: int, framing: Framing) -> FrameStore:
    store = FrameStore(slots, framing, CPU)
    store.rows().copy_(torch.from_numpy(np.random.default_rng(0).integers(0, 256, store.rows().shape, np.uint8)))
    return store


@pytest.mark.parametrize("normalise", ["imagenet", "none"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [16, 33, 224, 520])  # eight frames a turn, then five, then one
def test_batches_are_those_of_plain_torch_to_the_last_bit(
    dtype: torch.dtype, channels_last: bool, normalise: str, size: int
) -> None:
    framing, slots = Framing(image_size=size), np.random.default_rng(1).integers(0, 30, (7, 3))
    store = filled_store(30, framing)
    wanted = BatchFormat(dtype, channels_last, normalise)
    maker = CpuBatchMaker(framing, wanted, PRESETS["none"], 3)
    assert slots.size % FRAMES_A_TURN, "the last turn is a short one"
    for _ in range(3):  # in memory that was used before, too
        batch = maker.make(store, slots, None)
        rows, ids = store.rows(), torch.from_numpy(slots.reshape(-1))
        expected = gather_plain(rows, ids, size, wanted)
        assert batch.dtype == dtype and torch.equal(batch.flatten(0, 1), expected)
        assert batch.flatten(0, 1).stride() == expected.stride()
        del batch
    maker.close()


@pytest.mark.parametrize("failing", [0, 7, 39])
def test_nobody_writes_once_a_failure_has_been_raised(failing: int) -> None:
    maker = CpuBatchMaker(Framing(image_size=8), BatchFormat(torch.float32, False, "none"), PRESETS["none"], 3)
    begun, done = set(), set()

    def work(part: slice) -> None:
        begun.add(part.start)
        time.sleep(0.002)
        if part.start == failing:
            raise RuntimeError("this turn cannot be done")
        done.add(part.start)

    with pytest.raises(RuntimeError, match="this turn"):
        maker._in_threads(work, 40, 1, 3)
    at_once = begun.copy(), done.copy()
    time.sleep(0.02)
    assert (begun, done) == at_once and begun - done == {failing}
    failing = -1
    maker._in_threads(work, 40, 1, 3)
    assert done == set(range(40)), "and it goes on working"
    maker.close()


def test_a_batch_made_alone_is_the_same_and_starts_no_thread() -> None:
    framing, slots = Framing(image_size=33), np.random.default_rng(1).integers(0, 30, (7, 3))
    store = filled_store(30, framing)
    maker = CpuBatchMaker(framing, BatchFormat(torch.float32, False, "imagenet"), PRESETS["none"], 3)
    before = threading.active_count()
    alone = maker.make(store, slots, None, alone=True)
    assert threading.active_count() == before
    assert torch.equal(alone, maker.make(store, slots, None))
    assert threading.active_count() == before + 2
    maker.close()


def test_one_thread_is_the_callers() -> None:
    maker = CpuBatchMaker(Framing(image_size=8), BatchFormat(torch.float32, False, "none"), PRESETS["none"], 1)
    threads = set()
    maker._in_threads(lambda part: threads.add(threading.get_ident()), 40, 8, 1)
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tables_hold_every_byte_of_every_channel(dtype: torch.dtype) -> None:
    for normalise in ("imagenet", "none"):
        offset, scale = statistics(normalise)
        for channel, byte in itertools.product(range(3), (0, 1, 127, 255)):
            bits = torch.from_numpy(tables(dtype, normalise)[channel, byte : byte + 1].copy())
            found = bits if dtype == torch.float32 else bits.view(torch.int16).view(dtype)
            assert found == ((torch.tensor(float(byte)) - offset[channel]) * scale[channel]).to(dtype)


NO_TORCH_THREADS = """
import os, sys, time
import cv2, torch
cv2.setNumThreads(1)
torch.set_num_threads(8)
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
build_shards(sys.argv[1], sys.argv[2], workers=1)
dataset = ShardDataset(sys.argv[2])
index = WindowIndex(dataset.clip_lengths, 3, 2)
before = len(os.listdir("/proc/self/task"))
for dtype in (torch.float32, torch.bfloat16, torch.uint8):
    for augment in ("none", "simclr"):
        with WindowLoader(
            dataset, index, 8, image_size=128, device="cpu", dtype=dtype, augment=augment, num_threads=2
        ) as loader:
            assert sum(1 for _ in loader) == len(loader)
deadline = time.monotonic() + 5
while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
    time.sleep(0.05)  # threads that have ended are still listed for a moment
print(len(os.listdir("/proc/self/task")) - before)
torch.ones(1 << 20).mul_(2)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc (Linux)")
def test_batches_start_no_threads_of_torch(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "clips", {"a": 24, "b": 24}, height=150, width=200)
    command = [sys.executable, "-c", NO_TORCH_THREADS, str(root), str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    after_loaders, after_torch = map(int, done.stdout.split())
    assert after_loaders == 0, "OpenMP's threads stay, and spin, once torch has worked on a large tensor"
    assert after_torch > 0, "this test can see them"
