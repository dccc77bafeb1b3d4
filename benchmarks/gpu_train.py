"""Training speed with the real loader against one batch replayed, for the GPU benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import gpu_data
from benchmarks.replay import ReplayLoader
from cltt import ShardDataset, TemporalInfoNCE, WindowIndex, WindowLoader
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder

if TYPE_CHECKING:
    from benchmarks.gpu import Bench

Figure = tuple[str, Any, str]
LOSS_FRAMES = 10_240


def build_model(name: str, device: torch.device) -> torch.nn.Module:
    encoder = build_encoder(name)
    model = ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim))
    return model.to(device, memory_format=torch.channels_last).train()


def train_step(model: torch.nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """A bare step on frames [b,T,3,H,W]: bf16 forward, loss, backward, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    loss_fn = TemporalInfoNCE()

    def step(frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            z = model(frames)
        loss = loss_fn(z)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def endless(loader: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Frames of epoch after epoch."""
    while True:
        for batch in loader:
            yield batch.frames


def seconds_a_step(bench: Bench, step: Callable, frames: Iterator[torch.Tensor], steps: int) -> float:
    bench.sync()
    start = time.perf_counter()
    for _ in range(steps):
        step(next(frames))
    bench.sync()
    return (time.perf_counter() - start) / steps


def measure(bench: Bench, name: str, compiled: bool) -> list[Figure]:
    """Frames/s of both loaders, their ratio, the share of a step spent waiting, and the loss's share of training."""
    model = build_model(name, bench.device)
    step = train_step(torch.compile(model) if compiled else model, bench.device)  # type: ignore[arg-type]
    data = ShardDataset(gpu_data.shards(bench.work, 256, bench.quick))
    index = WindowIndex(data.clip_lengths, 5, 2, 1)
    batch, size, steps, rounds = (4, 32, 2, 2) if bench.quick else (64, 224, 25, 5)
    options: dict[str, Any] = {"image_size": size, "device": bench.device, "channels_last": True}
    if bench.device.type == "cuda":
        options["dtype"] = torch.bfloat16
    with WindowLoader(data, index, batch, **options) as loader:
        real, free = endless(loader), endless(ReplayLoader(loader))
        seconds_a_step(bench, step, free, 2 if bench.quick else 8)
        seconds_a_step(bench, step, real, 2 if bench.quick else 8)
        pairs = []
        for _ in range(rounds):
            pairs.append((seconds_a_step(bench, step, real, steps), seconds_a_step(bench, step, free, steps)))
        waited = loader.stats()["wait_share"]
    frames = batch * 5
    return [
        ("frames_per_s_loader", [frames / a for a, _ in pairs], "1/s"),
        ("frames_per_s_free", [frames / b for _, b in pairs], "1/s"),
        ("loader_of_free", [b / a for a, b in pairs], "ratio"),
        ("wait_share", waited, "ratio"),
        *([] if compiled or bench.quick else [loss_share(bench, step)]),
    ]


def loss_share(bench: Bench, step: Callable[[torch.Tensor], torch.Tensor]) -> Figure:
    """Loss on 10,240 frames as a share of training on as many frames, in the largest batches that fit."""
    # As the trainer calls it: embeddings in fp32, whatever the network computes in.
    z = torch.randn(LOSS_FRAMES // 5, 5, 128, device=bench.device, requires_grad=True)
    loss_fn = TemporalInfoNCE()
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
