"""What DALI's decoder does when DALI fails: bad JPEGs, JPEGs it alone dislikes, no memory, and not working at all."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cltt.errors import DataError
from cltt.frames.decoders import CpuDecoder, DaliDecoder, dali_installed
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from tests.helpers.pictures import detailed, jpeg

pytestmark = pytest.mark.skipif(not dali_installed(), reason="DALI is not installed")
CPU = torch.device("cpu")
FRAMING = Framing(image_size=32)
GOOD = [jpeg(detailed(60, 80, k)) for k in range(5)]
Fails = Callable[[list[bytes]], str | None]


class Failing:
    """Decode graphs that fail as ``fails(jpegs)`` says, and else decode."""

    def __init__(self, decoder: DaliDecoder, fails: Fails) -> None:
        self.graphs, self.fails, self.calls = decoder._graphs, fails, 0

    def decode(self, jpegs: list[bytes], *cuts: np.ndarray) -> list[torch.Tensor] | torch.Tensor:
        self.calls += 1
        if (message := self.fails(jpegs)) is not None:
            raise RuntimeError(f"{message}\nStacktrace (5 entries):\n[frame 0]: libdali.so")
        return self.graphs.decode(jpegs, *cuts)


def failing(fails: Fails) -> tuple[DaliDecoder, Failing]:
    decoder = DaliDecoder(FRAMING, CPU, 1)
    decoder._graphs = graphs = Failing(decoder, fails)  # type: ignore[assignment]
    return decoder, graphs


def decode(decoder: DaliDecoder | CpuDecoder, jpegs: list[bytes]) -> tuple[np.ndarray, dict[int, str]]:
    store = FrameStore(len(jpegs), FRAMING, CPU)
    store.rows().zero_()
    failures = decoder.decode(jpegs, range(len(jpegs)), store)
    return store.rows().numpy().copy(), failures


def test_dali_that_does_not_work_is_said_once_and_the_cpu_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    decoder, graphs = failing(lambda jpegs: "nvImageCodec: libnvjpeg.so.12: cannot open shared object file")
    expected, _ = decode(CpuDecoder(FRAMING), GOOD)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            frames, failures = decode(decoder, GOOD)
            assert not failures
            np.testing.assert_array_equal(frames, expected)
    (record,) = caplog.records
    said = record.getMessage()
    assert "libnvjpeg.so.12" in said and "on the CPU" in said and "cltt doctor" in said and "Stacktrace" not in said
    assert graphs.calls == 3, "two tries and the probe; later jobs do not try again"


def test_a_bad_jpeg_is_still_named_when_dali_does_not_work() -> None:
    decoder, _ = failing(lambda jpegs: "no")
    frames, failures = decode(decoder, [GOOD[0], b"\xff\xd8 nothing", GOOD[2]])
    assert set(failures) == {1}
    expected, _ = decode(CpuDecoder(FRAMING), GOOD)
    np.testing.assert_array_equal(frames[[0, 2]], expected[[0, 2]])


def test_jpegs_that_dali_alone_dislikes_do_not_end_dali(caplog: pytest.LogCaptureFixture) -> None:
    decoder, graphs = failing(lambda jpegs: "odd sampling" if GOOD[1] in jpegs else None)
    with caplog.at_level(logging.WARNING):
        frames, failures = decode(decoder, GOOD)
    assert not failures and "odd sampling" in caplog.text and "5 frames" in caplog.text
    np.testing.assert_array_equal(frames, decode(CpuDecoder(FRAMING), GOOD)[0])
    calls = graphs.calls
    decode(decoder, GOOD[2:])
    assert graphs.calls == calls + 1


@pytest.mark.parametrize(
    "message",
    ["CUDA allocation failed: out of memory", "cudaErrorMemoryAllocation (2): out of memory", "std::bad_alloc"],
)
def test_no_memory_on_the_gpu_stops_the_run_with_a_sentence(message: str) -> None:
    decoder, graphs = failing(lambda jpegs: message)
    with pytest.raises(DataError, match=r"no memory left.*--cache-gb") as error:
        decode(decoder, GOOD)
    assert "\n" not in str(error.value) and graphs.calls == 1


class Event:
    """Stands for a CUDA event; streams below note which they wait for."""


class Stream:
    def __init__(self) -> None:
        self.waited: set[Event] = set()

    def record_event(self) -> Event:
        return Event()

    def wait_event(self, event: Event) -> None:
        self.waited.add(event)


def test_a_slot_waits_for_its_own_last_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the latest gather: that stands in the queue behind the whole training step before it."""
    events: list[Event] = []

    class Recording(Stream):
        def record_event(self) -> Event:
            events.append(Event())
            return events[-1]

    store = FrameStore(6, FRAMING, CPU)
    store.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Recording())
    store.mark_read(np.arange(6))
    store.mark_read(np.array([0, 1]))
    store.mark_read(np.array([1, 2, 2]))
    for slots, wanted in (([0], {1}), ([1], {2}), ([3, 5], {0}), ([0, 2, 4], {0, 1, 2})):
        stream = Stream()
        store.wait_writable(np.array(slots), stream)  # type: ignore[arg-type]
        assert stream.waited == {events[k] for k in wanted}
    store.wait_writable(np.arange(6), None)
