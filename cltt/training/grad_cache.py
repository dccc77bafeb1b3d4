"""Gradient caching: the gradient of a loss over the whole batch, with the memory of a sub-batch.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv:2101.06983): embed every
sub-batch without a graph, take the full loss on all embeddings together and its gradient with respect to them, then
embed each sub-batch again, with a graph, and send its rows of that gradient back through it. A loss per sub-batch would
have fewer negatives: another loss.

Both passes must compute the same embeddings: the second starts each sub-batch from the random state of the first, and
only the second moves BatchNorm's running statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def random_state(device: torch.device) -> list[torch.Tensor]:
    """States of the generators that a forward pass on ``device`` can draw from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Put back what :func:`random_state` gave; a state of a device that is not used now is passed over."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps" and len(states) > 1:
        torch.mps.set_rng_state(states[1])


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """BatchNorm in training still uses the statistics of its batch, but leaves the running ones as they are."""
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
    """Add the full-batch gradient to ``.grad`` of the model's parameters; returns the loss (a detached scalar).

    Args:
        model: the model, in DistributedDataParallel or not.
        frames: [b, T, C, H, W].
        sub_batch_size: windows embedded at a time.
        forward: ``(model, frames) -> z`` [n, T, D], with whatever autocast the run uses.
        loss_of: z [b, T, D] of the rank -> loss over the whole batch.
    """
    parts = frames.split(sub_batch_size)
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    states, pieces = [], []
    with torch.no_grad(), _running_statistics_kept(bare):
        for part in parts:
            states.append(random_state(frames.device))
            pieces.append(forward(bare, part))
    z = torch.cat(pieces).requires_grad_()
    loss = loss_of(z)
    (z_grad,) = torch.autograd.grad(loss, z)
    for i, (part, state, part_grad) in enumerate(zip(parts, states, z_grad.split(sub_batch_size), strict=True)):
        set_random_state(state, frames.device)
        # Ranks sum their gradients once, with the last sub-batch.
        with nullcontext() if i == len(parts) - 1 else _no_sync(model):
            forward(model, part).backward(part_grad)
    return loss.detach()


def _no_sync(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
