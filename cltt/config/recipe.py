"""Settings of the model, the loss, the optimizer and the schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cltt.config.fields import MANY, check_fields, require, setting
from cltt.text import shorten

TIMM = "timm:"  # prefix of the names of timm's models
_BACKBONE = re.compile(r"[a-z][a-z0-9_]*|timm:\S+")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("epochs", "cosine", "constant")
DEFAULT_MOMENTUM = 0.9


def is_backbone(name: object) -> bool:
    """Whether ``name`` has the form of an encoder's name; torchvision or timm checks it when the encoder is made."""
    return isinstance(name, str) and _BACKBONE.fullmatch(name) is not None


def require_backbone(name: str) -> None:
    require(
        is_backbone(name),
        f"--backbone is {shorten(name, 80)!r}; it must be a classification model of torchvision (resnet18, swin_t, "
        f"vit_b_16 ...), or {TIMM}NAME",
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Encoder, projection head and loss."""

    backbone: str = setting(
        "resnet18",
        "encoder: the name of a classification model of torchvision (resnet18, swin_t, convnext_tiny, vit_b_16 ...), "
        f"or {TIMM}NAME, a model of timm (extra: timm)",
        metavar="NAME",
    )
    proj_dim: int = setting(128, "dimensions of the projection that the loss compares (D)", within=(1, 65_536))
    proj_hidden: int | None = setting(
        None,
        "width of the projection head's hidden layers (default: the encoder's features)",
        within=(1, 65_536),
    )
    proj_layers: int = setting(2, "linear layers of the projection head, 2 or 3", within=(2, 3))
    temperature: float = setting(0.5, "temperature of the loss", within=(1e-4, 1e4))
    mask_overlaps: bool = setting(False, "do not use pairs of one clip whose windows overlap as negatives")
    hard_negatives: float = setting(
        0.0,
        "beta: how much more weight similar negatives get (0: all equal; 0.5 to 2 is usual)",
        within=(0, 100),
    )
    memory: int = setting(
        0,
        "windows of earlier batches that are added as negatives, except those that overlap in time",
        within=(0, 10_000_000),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require_backbone(self.backbone)


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """Optimizer, schedule, length of the run, and sub-batches."""

    epochs: int = setting(
        25,
        "epochs of the run; a cosine schedule ends with the last (to train a finished run longer, start a new one "
        "from its weights with --checkpoint-path)",
        within=(1, 1_000_000),
    )
    max_batches_per_epoch: int = setting(0, "end an epoch after this many batches (0: all)", within=(0, MANY))
    lr: float = setting(
        1e-3,
        "highest learning rate; metrics.csv has, at each epoch's end, the rate of the next step",
        within=(1e-12, 1e3),
    )
    optimizer: str = setting("adam", "optimizer of torch", choices=OPTIMIZERS)
    momentum: float | None = setting(
        None, f"momentum of --optimizer sgd (default: {DEFAULT_MOMENTUM})", within=(0, 0.99999)
    )
    weight_decay: float = setting(
        1e-4,
        "L2 penalty added to the gradient (adam, sgd), or decoupled decay (adamw); adamw and sgd leave out norms and "
        "biases",
        within=(0, 1e3),
    )
    schedule: str = setting(
        "epochs",
        "learning rate: a half cosine to 0 that changes per epoch (epochs) or per step (cosine), or constant",
        choices=SCHEDULES,
    )
    warmup_steps: int = setting(
        0, "steps over which the learning rate rises linearly to --lr (0: none)", within=(0, MANY)
    )
    max_grad_norm: float = setting(
        1.0, "largest norm of the gradient, which is clipped to it (0: never)", within=(0, 1e9)
    )
    sub_batch_size: int = setting(
        0,
        "windows that a rank embeds at a time (0: all); loss and gradient are still those of the whole batch, but "
        "BatchNorm takes its statistics from each sub-batch",
        within=(0, 1_000_000),
    )

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.momentum is None or self.optimizer == "sgd",
            f"--momentum needs --optimizer sgd, and the optimizer is {self.optimizer}; leave it out, or give sgd",
        )

    @property
    def moves_every_step(self) -> bool:
        """Whether the learning rate changes within an epoch."""
        return self.schedule == "cosine" or self.warmup_steps > 0

    def steps_per_epoch(self, batches: int) -> int:
        """The number of steps in an epoch of ``batches`` batches."""
        return min(batches, self.max_batches_per_epoch or batches)
