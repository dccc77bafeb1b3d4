"""Gradient caching: the gradient of the whole batch with the memory of one sub-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv:2101.06983):

1. Embed every sub-batch without a graph.
2. Compute the loss of all embeddings together, and its gradient with respect to them.
3. Embed each sub-batch again, with a graph, and backpropagate its rows of that gradient.

A separate loss per sub-batch would be another loss: it would have fewer negatives. Both passes must compute the same
embeddings. The second pass therefore starts each sub-batch from the random state of the first, and only the second pass
updates BatchNorm's running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def random_state(device: torch.device) -> list[torch.Tensor]:
    """States of the random generators used on ``device``, the CPU's first."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Restore what :func:`random_state` returned.

    The state of a device other than ``device`` is ignored.
    """
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps" and len(states) > 1:
        torch.mps.set_rng_state(states[1])


def without_ddp(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel; another model as it is."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


@contextmanager
def _running_statistics_frozen(model: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are.

    In training it still normalises by those of its batch.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for module in norms:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in norms:
            module.track_running_stats = True


def cached_backward(
    model: nn.Module,
    frames: torch.Tensor,
    sub_batch_size: int,
    *,
    forward: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Add the gradient of the full batch to ``.grad`` of the parameters.

    Returns the loss, a detached scalar.

    Args:
        model: the model, in DistributedDataParallel or not.
        frames: [b, T, C, H, W].
        sub_batch_size: windows per sub-batch.
        forward: ``(model, frames) -> z`` [n, T, D], with the autocast of the run.
        loss_of: z [b, T, D] of this rank -> loss of the whole batch.
    """
    parts = frames.split(sub_batch_size)
    bare = without_ddp(model)
    states, embeddings = [], []
    with torch.no_grad(), _running_statistics_frozen(bare):
        for part in parts:
            states.append(random_state(frames.device))
            embeddings.append(forward(bare, part))
    z = torch.cat(embeddings).requires_grad_()
    loss = loss_of(z)
    (z_grad,) = torch.autograd.grad(loss, z)
    for i, (part, state, part_grad) in enumerate(zip(parts, states, z_grad.split(sub_batch_size), strict=True)):
        set_random_state(state, frames.device)
        # The ranks sum their gradients once, with the last sub-batch.
        with nullcontext() if bare is model or i == len(parts) - 1 else model.no_sync():  # type: ignore[operator]
            forward(model, part).backward(part_grad)
    return loss.detach()
