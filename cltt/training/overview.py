"""What a run is made of, said before its first step: data, windows, steps, device, memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from cltt.loader.control_group import ranks_on_node
from cltt.loader.loader import WindowLoader
from cltt.loader.memory import free_memory
from cltt.shards.dataset import ShardDataset
from cltt.text import counted

# Copies of the weights: on the CPU the gradients and Adam's two averages stand beside them; from a GPU, weights and
# averages come to the host when a checkpoint is saved.
COPIES_CPU, COPIES_GPU = 4, 3


def overview(
    dataset: ShardDataset, split: str, model: nn.Module, loader: WindowLoader, steps_per_epoch: int, device: str
) -> Iterator[str]:
    """The lines of the block at the start; ``device`` as :func:`cltt.distributed.described` names it."""
    index, windows = loader.index, steps_per_epoch * loader.plan.batch_size
    frames, size = int(index.clip_lengths[index.clips].sum()), int(dataset.shard_sizes.sum())
    clips = f"{counted(index.num_clips, 'clip')} of {dataset.num_clips:,}"
    yield f"data: {dataset.path} ({size / 1e6:,.1f} MB), split {split}: {clips}, {counted(frames, 'frame')}"
    yield f"windows: {len(index):,} of {index.window_size} frames, {index.frame_step} apart (span {index.span} frames)"
    yield f"steps: {steps_per_epoch:,} per epoch, {counted(loader.plan.batch_size, 'window')} each"
    if without := int((index.windows_per_clip == 0).sum()):
        yield f"left out: {counted(without, 'clip')} too short for a window"
    if rest := len(index) - windows:
        why = "as a batch is never cut short" if rest < loader.plan.batch_size else "by --max-batches-per-epoch"
        yield f"left out: {counted(rest, 'window')} per epoch, others in each, {why}"
    yield f"device: {device}"
    if loader.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(loader.device)
        yield f"GPU memory: {_gb(free)} of {_gb(total)} GB are free"
    yield memory_line(model, loader)


def memory_line(model: nn.Module, loader: WindowLoader) -> str:
    """One line: kept frames, frame cache, batches and model of all ranks of this node against what is left for them.

    It begins with "warning" if they do not fit. What the network's layers keep for the backward pass on a CPU is not in
    it: that depends on the network.
    """
    cache, batches = loader.host_bytes()
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    held = weights * (COPIES_CPU if loader.device.type == "cpu" else COPIES_GPU)
    ranks, left = ranks_on_node(), free_memory()
    kept, share = loader.keeps()
    total = ranks * (cache + batches + held) + kept
    line = f"main memory: frame cache {_gb(cache)}, batches {_gb(batches)}, model {_gb(held)} GB a rank"
    line += f"; decoded frames kept from epoch to epoch {_gb(kept)} GB ({share:.0%} of those used)"
    line += f"; by {ranks} ranks here {_gb(total)} GB" if ranks > 1 else ""
    line += f"; {_gb(left)} GB are left"
    if total <= left:
        return line
    return (
        f"warning: {line}: give a smaller --keep-gb, --cache-gb or --batch-size, or ask for more memory (--mem-per-cpu)"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
