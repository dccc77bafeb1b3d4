"""Builds the optimizer and its learning rate schedule from the settings.

The learning rate of step s (from 0) is ``lr * rise(s) * fall(s)``. With W warm-up steps, n steps per epoch, E epochs:

    rise(s) = min(1, (s + 1) / W), and 1 without warm-up
    fall(s) = 1                                        constant
              (1 + cos(pi * floor(s / n) / E)) / 2     epochs
              (1 + cos(pi * (s - W) / (n E - W))) / 2  cosine, from step W on; 1 before
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from cltt.config import OptimSettings, require
from cltt.config.recipe import DEFAULT_MOMENTUM


def build_optimizer(
    model: nn.Module, optim: OptimSettings, device: torch.device, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """The optimizer of ``model`` and its schedule.

    The schedule is stepped once per step if ``optim.moves_every_step``, else once per epoch. Raises SettingsError if
    the warm-up is longer than the run.
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
    """Load ``state`` of any device into ``optimizer``, which keeps its own memory layout.

    A state holds the choice of a fused kernel and the memory layout (channels-last on a GPU) of the machine that saved
    it. A fused kernel runs on one type of device and reads the moments in the memory layout of the parameter.
    """
    chosen = [group["fused"] for group in optimizer.param_groups]
    groups = [{**group, "fused": fused} for group, fused in zip(state["param_groups"], chosen, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: first the parameters with weight decay, then those without.

    Matrices and kernels named ``weight`` are decayed. Norms, biases, learnt positions and tokens, layer scales and the
    parameters that ``no_weight_decay()`` of a module names (as timm's models do) are not.
    """
    named = list(model.named_parameters())
    undecayed = {name for name, value in named if value.dim() <= 1 or not name.endswith("weight")}
    for prefix, module in model.named_modules():
        undecayed |= {f"{prefix}.{name}".removeprefix(".") for name in getattr(module, "no_weight_decay", tuple)()}
    return [
        {"params": [value for name, value in named if name not in undecayed], "weight_decay": weight_decay},
        {"params": [value for name, value in named if name in undecayed], "weight_decay": 0.0},
    ]


def learning_rate(optim: OptimSettings, steps_per_epoch: int) -> Callable[[int], float]:
    """A function from the step (from 0) to its learning rate, as a share of ``optim.lr``.

    A cosine reaches 0 after its last step. Raises SettingsError if the warm-up is longer than the run.
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


def _cosine(done: int, total: int) -> float:
    return (1 + math.cos(math.pi * done / total)) / 2
