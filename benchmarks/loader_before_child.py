"""One contender of ``benchmarks.loader_before``, run with a checkout's folder as PYTHONPATH: ``SHARDS CASE``.

CASE is JSON: image_size, dtype, augment, stride. Each line on standard input is answered by one epoch, with no frames
kept: its windows per second and its CPU milliseconds per window. Only names that are the same in every version since
0.1.0 are used.
"""

from __future__ import annotations

import inspect
import json
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader

T, STEP, BATCH, THREADS = 5, 2, 16, 2


def make_loader(shards: str, image_size: int, dtype: str, augment: str, stride: int) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(np.array(dataset.clip_lengths), T, STEP, stride)
    # Raw bytes are a view of channels-last memory, as the network's road takes them.
    look: dict[str, Any] = {"dtype": getattr(torch, dtype), "channels_last": dtype == "uint8"}
    if "keep_bytes" in inspect.signature(WindowLoader).parameters:
        look["keep_bytes"] = 0  # 0.1.0 decodes in every epoch
    return WindowLoader(
        dataset, index, BATCH, image_size=image_size, augment=augment, device="cpu", num_threads=THREADS, **look
    )


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def epoch(loader: WindowLoader) -> dict[str, float]:
    start, cpu = time.perf_counter(), cpu_seconds()
    windows = sum(len(batch.frames) for batch in loader)
    seconds = time.perf_counter() - start
    return {"windows_per_s": windows / seconds, "cpu_ms_a_window": (cpu_seconds() - cpu) / windows * 1000}


def main(shards: str, case: str, turns: Iterable[str]) -> None:
    loader = make_loader(shards, **json.loads(case))
    epoch(loader)  # memory is taken from the system once a run
    for _ in turns:
        print(json.dumps(epoch(loader)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:], turns=sys.stdin)
