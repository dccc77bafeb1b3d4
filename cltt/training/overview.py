"""Describes a run before its first step: data, windows, steps, device, memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from cltt.loader.control_group import ranks_on_node
from cltt.loader.loader import WindowLoader
from cltt.loader.memory import free_memory
from cltt.shards.dataset import ShardDataset
from cltt.text import byte_size, counted

# Copies of the weights in main memory. CPU: weights, gradients and Adam's two averages. GPU: weights and averages,
# which are copied to the host when a checkpoint is saved.
COPIES_CPU, COPIES_GPU = 4, 3


def overview(
    dataset: ShardDataset, split: str, model: nn.Module, loader: WindowLoader, steps_per_epoch: int, device: str
) -> Iterator[str]:
    """The lines printed at the start.

    ``device`` is the text of :func:`cltt.distributed.described`.
    """
    index, windows = loader.index, steps_per_epoch * loader.plan.batch_size
    frames, size = int(index.clip_lengths[index.clips].sum()), int(dataset.shard_sizes.sum())
    clips = f"{counted(index.num_clips, 'clip')} of {dataset.num_clips:,}"
    yield f"data: {dataset.path} ({byte_size(size)}), split {split}: {clips}, {counted(frames, 'frame')}"
    yield f"windows: {len(index):,} of {index.window_size} frames, {index.frame_step} apart (span {index.span} frames)"
    yield f"steps: {steps_per_epoch:,} per epoch, {counted(loader.plan.batch_size, 'window')} each"
    if without := int((index.windows_per_clip == 0).sum()):
        line = f"left out: {counted(without, 'clip')} too short for a window"
        most = 2 * without > len(index.clips)
        yield f"warning: {line}; a smaller --frame-step or --window-size uses more clips" if most else line
    if rest := len(index) - windows:
        why = "as a batch is never cut short" if rest < loader.plan.batch_size else "by --max-batches-per-epoch"
        yield f"left out: {counted(rest, 'window')} per epoch, others in each, {why}"
    yield f"device: {device}"
    if loader.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(loader.device)
        yield f"GPU memory: {byte_size(free)} of {byte_size(total)} are free"
    yield memory_line(model, loader)


def memory_line(model: nn.Module, loader: WindowLoader) -> str:
    """One line: the main memory that all ranks of this node need, and the memory that is free.

    Counted are frame memory, batches, the model and decoded frames that are kept. The line begins with "warning" if
    they do not fit. The activations that a network keeps for the backward pass on a CPU are not counted.
    """
    cache, batches = loader.host_bytes()
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    held = weights * (COPIES_CPU if loader.device.type == "cpu" else COPIES_GPU)
    ranks, left = ranks_on_node(), free_memory()
    kept, share = loader.keeps()
    total = ranks * (cache + batches + held) + kept
    line = (
        f"main memory: frame memory {byte_size(cache)}, batches {byte_size(batches)}, model {byte_size(held)} per rank"
    )
    line += f"; decoded frames kept from epoch to epoch {byte_size(kept)} ({share:.0%} of those used)" if kept else ""
    line += f"; by {ranks} ranks here {byte_size(total)}" if ranks > 1 else ""
    line += f"; {byte_size(left)} are left"
    if total <= left:
        return line
    return (
        f"warning: {line}: give a smaller --keep-gb, --cache-gb or --batch-size, or ask for more memory (--mem-per-cpu)"
    )
