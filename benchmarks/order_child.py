"""One contender of ``benchmarks.order_before``, run with a checkout's folder as PYTHONPATH: ``SHARDS WHAT STEP``.

WHAT is ``loader`` (some blocks of uint8 batches at S = 224) or ``read`` (the same reads and CRC checks by the same
threads, 1 ms longer each, and no decoding): prints windows and frames per second. Or it is ``order``, with the file
``order_figures.py`` in the place of SHARDS: prints what STEP costs and how it mixes. Only names that are the same in
every version since 0.1.0 are used, but for the rooms of two modules.
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import json
import sys
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch

from cltt import EpochPlan, ShardDataset, WindowIndex, WindowLoader

T, STRIDE, BATCH, THREADS, DELAY = 5, 1, 16, 2, 1e-3
STEPS = 512  # at least: up to the end of a block


def room(now: str, in_0_1_0: str) -> ModuleType:
    try:
        return importlib.import_module(now)
    except ModuleNotFoundError:
        return importlib.import_module(in_0_1_0)


def whole_blocks(plan: EpochPlan) -> int:
    """Steps of as many whole blocks as STEPS steps reach into."""
    return plan.block_steps(plan.block_of(min(STEPS, len(plan)) - 1)).stop


def run_loader(dataset: ShardDataset, index: WindowIndex) -> dict[str, int]:
    """Windows handed out, and frames decoded for them and ahead of them."""
    look: dict[str, Any] = {"image_size": 224, "device": "cpu", "dtype": torch.uint8, "channels_last": True}
    if "keep_bytes" in inspect.signature(WindowLoader).parameters:
        look["keep_bytes"] = 0  # 0.1.0 decodes in every epoch
    with WindowLoader(dataset, index, BATCH, num_threads=THREADS, **look) as loader:
        steps = whole_blocks(loader.plan)
        windows = sum(len(batch.frames) for batch in itertools.islice(loader, steps))
        return {"windows": windows, "frames": int(loader.stats()["frames_decoded"])}


def run_reads(dataset: ShardDataset, index: WindowIndex) -> dict[str, int]:
    """Windows, and frames and reads for them and ahead of them; each read comes a millisecond late."""
    prefetch, slots = room("cltt.loader.prefetch", "cltt._prefetch"), room("cltt.loader.slots", "cltt._cache")
    files: Any = dataset._files
    view, reads = files.view, itertools.count()

    def slow_view(shard: int, size: int, offset: int) -> memoryview:
        next(reads)
        time.sleep(DELAY)
        return view(shard, size, offset)

    files.view = slow_view
    plan = EpochPlan(index, BATCH)
    given = (plan, 0) if hasattr(plan, "block_uses") else (plan, index, 0)
    uses = slots.block_uses(*given, rank=0, world_size=1)
    table = slots.SlotTable(2 * plan.frames_per_block())
    read: list[object] = []
    fill = lambda ids, _: read.extend(map(len, dataset.read_each(ids)))  # noqa: E731
    reader = prefetch.Prefetcher(uses, fill, table, start=0, threads=THREADS, job_frames=32)
    getattr(reader, "begin", lambda: None)()  # 0.1.0 began at once
    for step in range(whole_blocks(plan)):
        reader.take()
        reader.release(step)
    reader.close()
    return {"windows": whole_blocks(plan) * BATCH, "frames": len(read), "reads": next(reads)}


def order(figures_file: str, size: int, step: int) -> dict[str, float]:
    """Costs and mixing of the default order with 200 clips."""
    spec = importlib.util.spec_from_file_location("order_figures", figures_file)
    assert spec is not None and spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    index = WindowIndex(figures.clip_lengths(200), size, step, STRIDE)
    plan = EpochPlan(index, {2: 128, 5: 64, 16: 32}[size])
    batches = figures.all_batches(plan)
    return {
        "decodes a window": figures.decodes_a_window(plan),
        "GB": figures.gigabytes(plan),
        "far pairs": figures.far_pairs_rate(plan, batches),
        "overlap with batch before %": 100 * figures.overlap_with_batch_before(index, batches),
        "again in k+1 %": 100 * figures.seen_again(index.locate(batches)[0], 1),
    }


def main(shards: str, what: str, step: str) -> None:
    if what == "order":
        print(json.dumps(order(shards, *map(int, step.split("/")))))
        return
    dataset = ShardDataset(shards)
    index = WindowIndex(np.array(dataset.clip_lengths), T, int(step), STRIDE)
    run = {"loader": run_loader, "read": run_reads}[what]
    start = time.perf_counter()
    done = run(dataset, index)
    seconds = time.perf_counter() - start
    print(json.dumps({**done, "windows_per_s": done["windows"] / seconds, "frames_per_s": done["frames"] / seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
