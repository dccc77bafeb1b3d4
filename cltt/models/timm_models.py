"""Encoders of timm (PyTorch Image Models, https://github.com/huggingface/pytorch-image-models), where it is installed.

Made without pretrained weights and without a classifier. Names and shapes of parameters are timm's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cltt.config.recipe import TIMM
from cltt.errors import SettingsError
from cltt.text import shorten


class TimmEncoder(nn.Module):
    """What a model of timm's is here: [n, 3, H, W] -> [n, feature_dim]."""

    feature_dim: int


def build_timm(backbone: str) -> TimmEncoder:
    """The model that ``timm:NAME`` names; SettingsError where timm is missing or has none of that name."""
    timm, name = _timm(backbone), backbone.removeprefix(TIMM)
    if not timm.is_model(name):
        raise SettingsError(
            f"backbone is {shorten(backbone, 80)!r}, but timm {timm.__version__} has no model of that name; "
            "timm.list_models('*small*') names some"
        )
    model: TimmEncoder = _created(timm, name)
    # Not num_features where convolutions follow the pooling.
    model.feature_dim = int(getattr(model, "head_hidden_size", None) or model.num_features)  # type: ignore[arg-type]
    return model


def check_takes(encoder: nn.Module, backbone: str, image_size: int) -> None:
    """SettingsError unless ``encoder``, on the CPU, makes features of frames of ``image_size`` pixels.

    Other encoders than timm's take every size, and are not asked.
    """
    if not backbone.startswith(TIMM):
        return
    was_training, shape = encoder.training, None
    encoder.eval()
    try:
        with torch.no_grad():
            shape = tuple(encoder(torch.zeros(1, 3, image_size, image_size)).shape)
        why = f"gives features of shape {shape}"
    except Exception as error:  # whatever a model of others raises
        why = shorten(" ".join(str(error).split()), 160) or type(error).__name__
    encoder.train(was_training)
    if shape != (1, encoder.feature_dim):
        raise SettingsError(
            f"{backbone} is no encoder of frames of {image_size} pixels ({why}); give another --image-size or "
            "--backbone"
        )


def _timm(backbone: str) -> Any:
    try:
        import timm
    except ImportError as error:  # also where timm is there, and its torchvision is not
        raise SettingsError(
            f"--backbone {shorten(backbone, 80)} needs the package timm: pip install 'cltt[timm]' ({error})"
        ) from None
    return timm


def _created(timm: Any, name: str) -> Any:
    """Transformers with learnt places take every size where they can: their weights are the same."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:
        return timm.create_model(name, pretrained=False, num_classes=0)
