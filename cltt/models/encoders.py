"""Encoders by name: each maps images [n, 3, H, W] to features [n, feature_dim] and says its ``feature_dim``."""

from __future__ import annotations

from collections.abc import Callable

from cltt.config import require_one_of
from cltt.models.resnet import ResNet, resnet18, resnet34, resnet50
from cltt.models.swin import Swin, swin_b, swin_s, swin_t

Encoder = ResNet | Swin
_ENCODERS: dict[str, Callable[[], Encoder]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "swin_t": swin_t,
    "swin_s": swin_s,
    "swin_b": swin_b,
}


def build_encoder(name: str) -> Encoder:
    """Make a randomly initialised encoder; SettingsError for a name that is not among ``config.BACKBONES``."""
    require_one_of("backbone", name, tuple(_ENCODERS))
    return _ENCODERS[name]()
