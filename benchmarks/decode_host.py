"""Python's share of decoding with DALI: microseconds a frame in which a thread holds the interpreter's lock.

Every decoding thread of a rank shares that lock with the training loop, so on a fast GPU this, not the decoder, bounds
how many frames per second arrive. Measured on the CPU graph, which the host feeds alike: processor time of the
calling thread for 128 frames, less the time inside DALI's ``run``, which lets go of the lock. Frames are stored at 16 x
16, so that copying them, which a GPU does on its own, takes no part.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks import harness
from cltt import cli
from cltt.frames.decoders import DaliDecoder
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore

FRAMES = DaliDecoder.job_frames
SIZES = {"one size": [(256, 341)], "four sizes": [(256, 341), (256, 455), (341, 256), (240, 320)]}


def jpegs(sizes: list[tuple[int, int]]) -> list[bytes]:
    """Frames of a job, of the sizes in turn."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (12, 16, 3), np.uint8) for _ in range(FRAMES)]
    scaled = (cv2.resize(p, sizes[k % len(sizes)][::-1]) for k, p in enumerate(pictures))
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in scaled]


class TimedRun:
    """Adds up the calling thread's processor time inside DALI."""

    def __init__(self, run: Any) -> None:
        self.run, self.seconds = run, 0.0

    def __call__(self) -> Any:
        start = time.thread_time()
        found = self.run()
        self.seconds += time.thread_time() - start
        return found


def microseconds_a_frame(sizes: list[tuple[int, int]], rounds: int) -> list[float]:
    """One value a round of a job of 128 frames."""
    torch.set_num_threads(1)  # else its threads spin beside this one
    framing, device = Framing(image_size=16), torch.device("cpu")
    decoder, store = DaliDecoder(framing, device, 1), FrameStore(FRAMES, framing, device)
    batch, slots = jpegs(sizes), list(range(FRAMES))
    for _ in range(DaliDecoder._GRAPHS):
        decoder.decode(batch, slots, store)
    inside = [TimedRun(graph.pipe.run) for graph in graphs_of(decoder)]
    for graph, run in zip(graphs_of(decoder), inside, strict=True):
        graph.pipe.run = run
    values = []
    for _ in range(rounds):
        before, start = sum(run.seconds for run in inside), time.thread_time()
        assert not decoder.decode(batch, slots, store)
        spent = time.thread_time() - start - (sum(run.seconds for run in inside) - before)
        values.append(spent / FRAMES * 1e6)
    return values


def graphs_of(decoder: DaliDecoder) -> list[Any]:
    """The decoder's graphs, all idle."""
    idle = decoder._graphs._idle
    graphs = [idle.get() for _ in range(DaliDecoder._GRAPHS)]
    for graph in graphs:
        idle.put(graph)
    return graphs


def rows(*, quick: bool) -> list[dict[str, Any]]:
    found = []
    for case, sizes in SIZES.items():
        values = microseconds_a_frame(sizes, 20 if quick else 200)
        spread = {f"p{p}": harness.percentile(values, p) for p in (20, 50, 80)}
        found.append({"case": case, "metric": "python_a_frame", "unit": "us", **spread, "values": values})
    return found


def main() -> None:
    args = harness.parser("decode_host", "Python's time for a frame decoded by DALI, on the CPU graph.").parse_args()
    table = [{name: value for name, value in row.items() if name != "values"} for row in rows(quick=args.quick)]
    harness.write_csv("decode_host", table)
    harness.print_table(table, "Python with the lock held, a frame decoded with DALI")


if __name__ == "__main__":
    cli.run(main, "benchmarks.decode_host")
