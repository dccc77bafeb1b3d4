"""What is trained, and how: encoder, head and loss; optimizer and schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cltt.config.fields import MANY, check_fields, require, setting
from cltt.text import shorten

TIMM = "timm:"  # before a name that timm knows
_BACKBONE = re.compile(r"[a-z][a-z0-9_]*|timm:\S+")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("epochs", "cosine", "constant")
DEFAULT_MOMENTUM = 0.9


def is_backbone(name: object) -> bool:
    """Whether ``name`` has the form of an encoder's; torchvision or timm is asked when the encoder is made."""
    return isinstance(name, str) and _BACKBONE.fullmatch(name) is not None


def require_backbone(name: str) -> None:
    require(
        is_backbone(name),
        f"--backbone is {shorten(name, 80)!r}; it must be a classification model of torchvision's (resnet18, swin_t, "
        f"vit_b_16 ...), or {TIMM}NAME",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Encoder, projection head and loss."""

    backbone: str = setting(
        "resnet18",
        "encoder: a classification model of torchvision's by its name there (resnet18, swin_t, convnext_tiny, "
        f"vit_b_16 ...), or {TIMM}NAME, one of timm's (extra: timm)",
        metavar="NAME",
    )
    proj_dim: int = setting(128, "numbers a frame is projected to for the loss (D)", within=(1, 65_536))
    proj_hidden: int | None = setting(
        None,
        "width of the projection head's hidden layers (default: the encoder's features)",
        within=(1, 65_536),
    )
    proj_layers: int = setting(2, "linear layers of the projection head, 2 or 3", within=(2, 3))
    temperature: float = setting(0.5, "temperature of the loss", within=(1e-4, 1e4))
    mask_overlaps: bool = setting(False, "leave pairs of one clip whose windows overlap out of the negatives")
    hard_negatives: float = setting(
        0.0,
        "beta: how much more a negative counts the more similar it is (0: all alike; 0.5 to 2 is usual)",
        within=(0, 100),
    )
    memory: int = setting(
        0,
        "windows of earlier batches that are further negatives, those that overlap in time left out",
        within=(0, 10_000_000),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require_backbone(self.backbone)


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """Optimizer and schedule, how long the run is, and how a step is made."""

    epochs: int = setting(
        25,
        "epochs of the run; a cosine schedule ends with the last (to train a finished run longer, start a new one "
        "from its weights with --checkpoint-path)",
        within=(1, 1_000_000),
    )
    max_batches_per_epoch: int = setting(0, "end an epoch after this many batches (0: all)", within=(0, MANY))
    lr: float = setting(
        1e-3,
        "learning rate at its highest, in the first epoch; progress lines and CSV give that of the next step, at each "
        "epoch's end",
        within=(1e-12, 1e3),
    )
    optimizer: str = setting("adam", "what updates the weights, as torch has it", choices=OPTIMIZERS)
    momentum: float | None = setting(
        None, f"momentum of --optimizer sgd (default: {DEFAULT_MOMENTUM})", within=(0, 0.99999)
    )
    weight_decay: float = setting(
        1e-4,
        "L2 penalty added to the gradient (adam, sgd), or decay apart from it (adamw); with adamw and sgd norms and "
        "biases are left out",
        within=(0, 1e3),
    )
    schedule: str = setting(
        "epochs",
        "learning rate: a half cosine to 0 that moves once an epoch, a cosine that moves at every step, or constant",
        choices=SCHEDULES,
    )
    warmup_steps: int = setting(
        0, "steps over which the learning rate rises, in a line, to --lr (0: none)", within=(0, MANY)
    )
    max_grad_norm: float = setting(1.0, "clip the gradient to this norm (0: never)", within=(0, 1e9))
    sub_batch_size: int = setting(
        0,
        "windows a rank embeds at a time (0: all); the loss and its gradient are still those of the whole batch, but "
        "BatchNorm in training takes its statistics from each sub-batch",
        within=(0, 1_000_000),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.momentum is None or self.optimizer == "sgd",
            f"--momentum is of --optimizer sgd, and the optimizer is {self.optimizer}; leave it out, or give sgd",
        )

    @property
    def moves_every_step(self) -> bool:
        """Whether the learning rate changes within epochs."""
        return self.schedule == "cosine" or self.warmup_steps > 0

    def steps_per_epoch(self, batches: int) -> int:
        """Steps of an epoch in which there are ``batches``."""
        return min(batches, self.max_batches_per_epoch or batches)
