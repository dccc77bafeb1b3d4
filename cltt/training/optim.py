"""Optimizer and learning rate from their settings.

The learning rate of step s (from 0) is ``lr * rise(s) * fall(s)``; W warm-up steps, n steps an epoch, E epochs:

    rise(s) = min(1, (s + 1) / W), and 1 without warm-up
    fall(s) = 1                                        constant
              (1 + cos(pi * floor(s / n) / E)) / 2     epochs
              (1 + cos(pi * (s - W) / (n E - W))) / 2  cosine, from step W on; 1 before
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from cltt.config import OptimSettings, require
from cltt.config.recipe import DEFAULT_MOMENTUM


def build_optimizer(
    model: nn.Module, optim: OptimSettings, device: torch.device, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """The optimizer of ``model`` and its schedule, to be stepped once an epoch or, if it moves there, at every step.

    SettingsError where the warm-up is longer than the run.
    """
    optimizer = _optimizer(model, optim, device)
    if optim.schedule == "epochs" and not optim.moves_every_step:
        return optimizer, CosineAnnealingLR(optimizer, T_max=optim.epochs)
    return optimizer, LambdaLR(optimizer, learning_rate(optim, steps_per_epoch))


def _optimizer(model: nn.Module, optim: OptimSettings, device: torch.device) -> torch.optim.Optimizer:
    fused = True if device.type == "cuda" else None
    if optim.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)
    groups = decay_groups(model, optim.weight_decay)
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, fused=fused)
    momentum = DEFAULT_MOMENTUM if optim.momentum is None else optim.momentum
    return torch.optim.SGD(groups, lr=optim.lr, momentum=momentum, fused=fused)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load ``state`` into ``optimizer`` as that was built for its device, wherever the state was saved.

    A fused kernel reads moments as the parameter lies in memory, and runs on the device it was chosen for; a state
    holds the choice and the layout of the machine that saved it (channels-last on a GPU).
    """
    chosen = [group["fused"] for group in optimizer.param_groups]
    groups = [{**group, "fused": fused} for group, fused in zip(state["param_groups"], chosen, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups: what is decayed, matrices and kernels named ``weight``; and all else, with what the encoder's
    ``no_weight_decay`` names, which is not: norms, biases, learnt places and tokens, scales of layers."""
    named = list(model.named_parameters())
    free = set(_undecayed(model))
    decayed = [value for name, value in named if name not in free]
    others = [value for name, value in named if name in free]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _undecayed(model: nn.Module) -> Iterator[str]:
    for name, value in model.named_parameters():
        if value.dim() <= 1 or not name.endswith("weight"):
            yield name
    for prefix, module in model.named_modules():
        for name in getattr(module, "no_weight_decay", tuple)():  # as timm's models say it
            yield f"{prefix}.{name}" if prefix else name


def learning_rate(optim: OptimSettings, steps_per_epoch: int) -> Callable[[int], float]:
    """Step, from 0 -> its learning rate as a share of ``optim.lr``; 0 after the last step of a cosine.

    SettingsError where the warm-up is longer than the run.
    """
    warmup, total = optim.warmup_steps, steps_per_epoch * optim.epochs
    require(
        warmup <= total,
        f"--warmup-steps is {warmup}, but the run has {total} steps ({optim.epochs} epochs of {steps_per_epoch}); "
        "give fewer, or more epochs",
    )

    def share(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if optim.schedule == "constant":
            return rise
        if optim.schedule == "epochs":
            return rise * _cosine(step // steps_per_epoch, optim.epochs)
        return rise * _cosine(max(0, step - warmup), max(1, total - warmup))

    return share


def _cosine(done: int, whole: int) -> float:
    return (1 + math.cos(math.pi * done / whole)) / 2
