"""What a region costs a frame that is decoded on the CPU, one thread: blurred or cropped against as it is.

Drawn frames of 256 and 480 lines at S = 112 and 224, and with the margin that augmentation needs. Each region decodes
the same JPEG in turn with the plain decoder; the Gaussian alone is OpenCV's at full size. Processor time, which a busy
machine changes less than time on the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from benchmarks import harness
from cltt import cli
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.region import NO_REGION, Region

REGIONS = {"none": NO_REGION, "blur": Region("center"), "crop": Region("center", "crop")}
SHAPES = ((256, 341), (480, 853))
CASES = [(shape, size, margin) for shape in SHAPES for size in (112, 224) for margin in (False, True)]


def drawn(height: int, width: int) -> bytes:
    """A JPEG with detail of every size."""
    rng = np.random.default_rng(0)
    layers = [rng.uniform(-1, 1, (height // step + 1, width // step + 1, 3)) * step for step in (2, 8, 32)]
    picture = sum(cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) for layer in layers)
    return bytes(cv2.imencode(".jpg", np.clip(127 + 3 * picture, 0, 255).astype(np.uint8))[1])


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Processor time of one call."""
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def rows(shape: tuple[int, int], size: int, margin: bool, rounds: int) -> list[dict[str, Any]]:
    jpeg = drawn(*shape)
    decoders = {name: FrameDecoder(Framing(image_size=size, margin=margin, region=r)) for name, r in REGIONS.items()}
    frame, (taps, sigma) = decoders["none"].frame(jpeg), decoders["blur"].framing.blur or (1, 0.0)
    calls: dict[str, Any] = {name: lambda d=decoder: d.frame(jpeg) for name, decoder in decoders.items()}
    calls["Gaussian alone, full size"] = lambda: cv2.GaussianBlur(frame, (taps, taps), sigma)
    turns = [{name: seconds(call, 10) for name, call in calls.items()} for _ in range(rounds + 1)][1:]
    case = {"lines": shape[0], "S": size, "stored": "{}x{}".format(*frame.shape[:2])}
    found = []
    for name in calls:
        microseconds = [turn[name] * 1e6 for turn in turns]
        spread = {f"p{p}": harness.percentile(microseconds, p) for p in (20, 50, 80)}
        to_none = statistics.median(turn[name] / turn["none"] for turn in turns)
        found.append({**case, "region": name, **spread, "unit": "us", "to_none": to_none})
    return found


def main() -> None:
    args = harness.parser("region", "What a region costs a frame decoded on the CPU.").parse_args()
    cv2.setNumThreads(1)
    table = [row for case in CASES for row in rows(*case, rounds=5 if args.quick else 25)]
    harness.write_csv("region", table)
    harness.print_table(table, "A frame decoded on the CPU, microseconds of one thread")


if __name__ == "__main__":
    cli.run(main, "benchmarks.region")
