"""What threads do for a GPU, acted out on a CPU: writes, streams, devices, memory and what keeps a decoder alive."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cltt.errors import DataError
from cltt.frames import store as store_module
from cltt.frames.decoders import DaliDecoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore, own_stream
from tests.helpers.pictures import detailed, jpeg

needs_dali = pytest.mark.skipif(not dali_installed(), reason="DALI is not installed")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)
GOOD = [jpeg(detailed(60, 80, k)) for k in range(4)]


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_writes_of_two_threads_keep_each_others_frames(
    deterministic: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA index_copy_ becomes index_put_: of what is not contiguous all is copied, written, and copied back."""
    both = threading.Barrier(2)

    def index_put(rows: torch.Tensor, dim: int, where: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        if rows.is_contiguous():
            rows[where] = frames
            return rows
        copy = rows.clone(memory_format=torch.contiguous_format)
        both.wait(10)
        copy[where] = frames
        rows.copy_(copy)
        return rows

    monkeypatch.setattr(torch.Tensor, "index_copy_", index_put)
    framing = Framing(image_size=32, margin=True)
    store = FrameStore(32, framing, CPU)
    store.rows().zero_()
    side = framing.stored_size(100, 100)
    assert side[0] * side[1] < framing.pixels, "square frames are smaller than their slots"
    halves = [range(16), range(16, 32)]
    frames = [torch.full((16, *side, 3), k + 1, dtype=torch.uint8) for k in range(2)]
    write = lambda k: DaliDecoder._write(SimpleNamespace(device=CPU), store, halves[k], frames[k])  # type: ignore[arg-type]  # noqa: E731
    threads = [threading.Thread(target=write, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [int(store.frame(slot).float().mean()) for slot in range(32)] == [1] * 16 + [2] * 16


class FakeCuda:
    """Stands for torch.cuda: which device each thread has set, and the streams that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_device = threading.local()
        self.streams: list[object] = []
        for name in ("device", "stream", "Stream", "Event"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(store_module, "_IDLE_STREAMS", type(store_module._IDLE_STREAMS)(self.new_queue()))

    @staticmethod
    def new_queue() -> Any:
        return store_module.queue.SimpleQueue

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.set_device.now = device
        yield
        self.set_device.now = None

    @contextlib.contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        yield

    def Stream(self, device: torch.device) -> Any:
        assert self.set_device.now == device, "a stream made before the device is set opens a context on the first one"
        event = SimpleNamespace(synchronize=lambda: None)
        self.streams.append(SimpleNamespace(record_event=lambda blocking: event))
        return self.streams[-1]

    def Event(self, blocking: bool) -> object:
        assert blocking, "a thread that waits otherwise spins"
        return object()


def test_threads_of_any_number_of_epochs_share_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps freed memory for the stream it was freed on: a stream of each new thread strands some each epoch."""
    cuda = FakeCuda(monkeypatch)
    seen: list[object] = []

    def work(together: threading.Barrier) -> None:
        with own_stream(CUDA) as stream:
            seen.append(stream)
            together.wait(10)

    for _ in range(20):
        together = threading.Barrier(3)
        threads = [threading.Thread(target=work, args=(together,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(set(map(id, seen[-3:]))) == 3, "two threads at a time have two streams"
    assert len(seen) == 60 and len(cuda.streams) == 3


@needs_dali
def test_a_decoder_that_is_dropped_is_gone_at_once() -> None:
    """Its graphs hold threads and memory, and must not wait for the collector of cycles."""
    decoder = DaliDecoder(Framing(image_size=32), CPU, 1)
    decoder.decode(GOOD, range(4), FrameStore(4, decoder.framing, CPU))
    gone = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


@needs_dali
def test_what_dali_says_is_its_cause() -> None:
    decoder = DaliDecoder(Framing(image_size=32), CPU, 1)
    broken = GOOD[0][:200] + b"\xff\xd9"
    reason = decoder._run_or_say_why([GOOD[1], broken], [0, 1], FrameStore(2, decoder.framing, CPU), [None, None])
    assert reason and "\n" not in reason and "Critical error" not in reason, reason


@needs_dali
@pytest.mark.parametrize(("free", "ends"), [(100 << 20, True), (4 << 30, False)])
def test_good_frames_that_fail_where_memory_is_short_end_the_run(
    free: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvJPEG's own lack of memory comes as a frame that cannot be decoded."""
    decoder = DaliDecoder(Framing(image_size=32), CPU, 1)
    decoder.device = CUDA
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 << 30))
    with pytest.raises(DataError, match=r"no memory left.*Failed to decode") if ends else contextlib.nullcontext():
        decoder._note_failure("Failed to decode sample", 4)


@needs_dali
@pytest.mark.parametrize("cut", [True, False])
def test_a_jpeg_without_its_end_does_not_come_near_the_others(cut: bool) -> None:
    """In a hardware batch it would send all of them to another decoder, whose pixels differ a little."""
    decoder = DaliDecoder(Framing(image_size=32), CPU, 1)
    graphs, given = decoder._graphs, []

    class Watching:
        def decode(self, jpegs: list[bytes], *cuts: np.ndarray) -> Any:
            given.extend(jpegs)
            return graphs.decode(jpegs, *cuts)

    alone, beside = (FrameStore(4, decoder.framing, CPU) for _ in range(2))
    assert not decoder.decode(GOOD[:3], range(3), alone)
    decoder._graphs = Watching()  # type: ignore[assignment]
    endless = GOOD[3][: len(GOOD[3]) // 2] if cut else GOOD[3] + bytes(2000)
    failures = decoder.decode([*GOOD[:3], endless], range(4), beside)
    assert set(failures) == ({3} if cut else set()) and endless not in given
    assert torch.equal(alone.rows()[:3], beside.rows()[:3])
