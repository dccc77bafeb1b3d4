"""Encoders by name: each maps images [n, 3, H, W] to features [n, feature_dim]."""

from __future__ import annotations

from collections.abc import Callable

from cltt.config import require_one_of
from cltt.models.resnet import ResNet, resnet18, resnet34, resnet50

_ENCODERS: dict[str, Callable[[], ResNet]] = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50}


def build_encoder(name: str) -> ResNet:
    """Make a randomly initialised ``resnet18``, ``resnet34`` or ``resnet50``; SettingsError for another name."""
    require_one_of("backbone", name, tuple(_ENCODERS))
    return _ENCODERS[name]()
