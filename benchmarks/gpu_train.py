"""Training speed with the real loader against one batch replayed, for the GPU benchmark."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import gpu_data
from benchmarks.loss import under_autocast
from cltt import ShardDataset, TemporalInfoNCE, WindowIndex, WindowLoader
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder

if TYPE_CHECKING:
    from benchmarks.gpu_record import Bench

Figure = tuple[str, Any, str]
LOSS_FRAMES = 10_240


def build_model(name: str, device: torch.device) -> torch.nn.Module:
    encoder = build_encoder(name)
    model = ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim))
    return model.to(device, memory_format=torch.channels_last).train()


def train_step(model: torch.nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A bare step on frames [b,T,3,H,W]: bf16 forward, loss as the trainer calls it, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    loss_fn = TemporalInfoNCE()

    def step(frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_fn(model(frames).float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


@dataclass
class Stretch:
    """A few steps in a row.

    Attributes:
        steps: their number.
        seconds: they took; ``waited``: of them, went into getting frames.
        processor: seconds of all threads of this process; ``own``: of the thread that makes the steps.
    """

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    processor: float = 0.0
    own: float = 0.0


def run_steps(bench: Bench, step: Callable, batches: Iterator[Any], steps: int) -> Stretch:
    """Up to ``steps`` steps; the device is waited for at the end alone."""
    done = Stretch()
    bench.sync()
    start, processor, own = time.perf_counter(), time.process_time(), time.thread_time()
    while done.steps < steps:
        asked = time.perf_counter()
        batch = next(batches, None)
        done.waited += time.perf_counter() - asked
        if batch is None:
            break
        step(batch.frames)
        done.steps += 1
    bench.sync()
    done.seconds = time.perf_counter() - start
    done.processor, done.own = time.process_time() - processor, time.thread_time() - own
    return done


def epoch_by_blocks(bench: Bench, step: Callable, loader: WindowLoader) -> list[Stretch]:
    """A whole epoch, cut into its blocks: each needs as many new frames as a block has, whatever was decoded ahead."""
    blocks = loader.plan.num_blocks
    assert blocks >= gpu_data.BLOCKS, f"{blocks} blocks; at least {gpu_data.BLOCKS} are needed"
    ends = [len(loader) * (k + 1) // blocks for k in range(blocks)]
    batches = iter(loader)
    found = [run_steps(bench, step, batches, end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    assert next(batches, None) is None
    return found


def measure(bench: Bench, name: str, window: tuple[int, int, int], *, compiled: bool) -> list[Figure]:
    """Speed of whole epochs against one batch replayed before and after each, and the time that getting data took.

    No steps on free data come between those on real data: while they ran, the loader would decode ahead for nothing.
    The first block of an epoch, before which nothing is decoded, is shown apart.
    """
    model = build_model(name, bench.device)
    step = train_step(torch.compile(model) if compiled else model, bench.device)  # type: ignore[arg-type]
    data = ShardDataset(gpu_data.shards(bench.work, 256, bench.quick))
    index = WindowIndex(data.clip_lengths, *window)
    batch, size, steps, epochs = (4, 32, 2, 1) if bench.quick else (64, 224, 25, 2)
    options: dict[str, Any] = {"image_size": size, "device": bench.device, "channels_last": True}
    options["depth"] = gpu_data.depth_of_blocks(index, batch)
    if bench.device.type == "cuda":
        options["dtype"] = torch.bfloat16
    with WindowLoader(data, index, batch, **options) as loader:
        one = next(iter(loader))
        free = itertools.repeat(one)
        run_steps(bench, step, free, 2 if bench.quick else 8)
        replayed, first, later = [run_steps(bench, step, free, steps)], [], []
        for epoch in range(1, epochs + 1):
            loader.set_epoch(epoch)
            blocks = epoch_by_blocks(bench, step, loader)
            first.append(blocks[0])
            later += blocks[1:]
            replayed.append(run_steps(bench, step, free, steps))
    free_step = statistics.median(part.seconds / part.steps for part in replayed)
    frames = batch * window[0]
    return [
        ("frames_per_s_loader", [frames * part.steps / part.seconds for part in later], "1/s"),
        ("frames_per_s_free", [frames * part.steps / part.seconds for part in replayed], "1/s"),
        ("data_share_of_a_step", [1 - free_step * part.steps / part.seconds for part in later], "ratio"),
        ("data_share_first_block", [1 - free_step * part.steps / part.seconds for part in first], "ratio"),
        ("wait_share", [part.waited / part.seconds for part in later], "ratio"),
        ("cores_of_the_loop", [part.own / part.seconds for part in later], "cores"),
        ("cores_of_other_threads", [(part.processor - part.own) / part.seconds for part in later], "cores"),
        *([] if compiled or bench.quick else [loss_share(bench, step)]),
    ]


def loss_share(bench: Bench, step: Callable[[torch.Tensor], torch.Tensor]) -> Figure:
    """Loss on 10,240 frames as a share of training on as many frames, in the largest batches that fit."""
    # As the trainer calls it: embeddings in fp32 under autocast.
    z = torch.randn(LOSS_FRAMES // 5, 5, 128, device=bench.device, requires_grad=True)
    loss_fn = under_autocast(TemporalInfoNCE())
    frames, parts = largest_batch(bench.device, step)
    loss_fn(z).backward()
    shares = []
    for _ in range(5):
        training = device_seconds(lambda: step(frames), 4) * parts
        shares.append(device_seconds(lambda: loss_fn(z).backward(), 10) / training)
    return "loss_share_10240", shares, "ratio"


def largest_batch(device: torch.device, step: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Frames of the largest part of LOSS_FRAMES that ``step`` can train on, and the number of such parts."""
    parts = 4
    while True:
        try:
            frames = torch.randn((LOSS_FRAMES // 5 // parts, 5, 3, 224, 224), device=device, dtype=torch.bfloat16)
            step(frames)
            return frames, parts
        except torch.OutOfMemoryError:
            parts *= 2
        torch.cuda.empty_cache()


def device_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Mean device time of a call, by CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats
