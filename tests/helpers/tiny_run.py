"""``train.py`` with a tiny model in place of a ResNet, and the loss of every step written to the file LOSSES.

    LOSSES=file [TINY_NORM=1] [MODEL=real] [MODEL_TYPE=float64] python -m tests.helpers.tiny_run FLAGS OF train.py

MODEL: that of train.py. Run in processes of its own by tests that kill it, signal it, or start several ranks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from cltt import cli
from cltt.commands import train
from cltt.config import ModelSettings
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.training import factory, run

FEATURES = 16
THAT_OF_TRAINING = factory.build_model


class TinyEncoder(nn.Sequential):
    """[n, 3, H, W] -> [n, 16], two convolutions, without BatchNorm."""

    feature_dim = FEATURES

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 4, 4),
            nn.ReLU(),
            nn.Conv2d(8, FEATURES, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


def tiny_model(settings: ModelSettings, image_size: int = 224) -> ContrastiveModel:
    """Tiny encoder with a linear head, or with the usual head (that has BatchNorm) if TINY_NORM is set."""
    usual = bool(os.environ.get("TINY_NORM"))
    head = ProjectionHead(FEATURES, settings.proj_dim) if usual else nn.Linear(FEATURES, settings.proj_dim)
    return ContrastiveModel(TinyEncoder(), head)


def real_model(settings: ModelSettings, image_size: int = 224) -> ContrastiveModel:
    """The model of train.py, in the type that MODEL_TYPE names."""
    dtype = getattr(torch, os.environ.get("MODEL_TYPE", "float32"))
    model = THAT_OF_TRAINING(settings, image_size).to(dtype)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(dtype),))
    return model


class LossLog:
    """Appends ``step loss`` a step, the loss in hexadecimal: exact, and on disk before the next step."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a")  # closed with the process, however that ends

    def __call__(self, loss: float) -> None:
        self.file.write(f"{loss.hex()}\n")
        self.file.flush()


def read_losses(path: Path) -> list[float]:
    return [float.fromhex(line) for line in path.read_text().split()]


def main() -> int:
    torch.set_num_threads(1)
    factory.build_model = real_model if "MODEL" in os.environ else tiny_model  # type: ignore[assignment]
    return run.train(train.parse(sys.argv[1:]), on_step=LossLog(Path(os.environ["LOSSES"])))


if __name__ == "__main__":
    cli.run(main, "tiny_run")
