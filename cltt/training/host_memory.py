"""What a run takes of main memory, said before its first step: the out-of-memory killer says nothing."""

from __future__ import annotations

from torch import nn

from cltt.loader.control_group import ranks_on_node
from cltt.loader.loader import WindowLoader
from cltt.loader.memory import free_memory

# Copies of the weights: on the CPU the gradients and Adam's two averages stand beside them; from a GPU, weights and
# averages come to the host when a checkpoint is saved.
COPIES_CPU, COPIES_GPU = 4, 3


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
