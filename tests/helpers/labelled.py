"""Small labelled images for the tests of evaluation, and an encoder that tells them apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from cltt import checkpoint
from cltt.config import DataSettings, ModelSettings, TrainSettings, WindowSettings
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder

COLOURS = {"blue": (220, 20, 20), "green": (20, 220, 20), "red": (20, 20, 220)}


class MeanColour(nn.Module):
    """[n, 3, H, W] -> [n, 3], with a BatchNorm that must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).mean((2, 3))


def write_image(path: Path, bgr: tuple[int, int, int] = (10, 90, 200)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((20, 24, 3), bgr, np.uint8))


def colour_folder(root: Path, images: int = 10) -> Path:
    """A folder a colour, with what a Mac leaves behind."""
    for name, (b, g, r) in COLOURS.items():
        for k in range(images):
            write_image(root / name / f"{k}.png", (b + k, g + k, r + k))
            (root / name / f"._{k}.png").write_bytes(b"\x00\x05\x16\x07")
    return root


def save_run(
    run: Path, *, steps: tuple[int, ...] = (0, 7), windows: WindowSettings | None = None, **saved: object
) -> ContrastiveModel:
    """Checkpoints of a ResNet-18 that was never trained, at epoch 1; returns the model."""
    settings = TrainSettings(
        windows=windows or WindowSettings(), data=DataSettings(shards="x", image_size=32), model=ModelSettings()
    )
    torch.manual_seed(5)
    model = ContrastiveModel(build_encoder("resnet18"), ProjectionHead(512, 128))
    state = {"model": model.state_dict(), "settings": settings.to_dict(), "fingerprint": "none", **saved}
    with checkpoint.CheckpointStore(run, keep_last=9) as store:
        for step in steps:
            store.save(state, epoch=1, step=step)
    return model
