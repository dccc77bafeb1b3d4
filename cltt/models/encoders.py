"""Encoders by name: each maps images [n, 3, H, W] to features [n, feature_dim] and says its ``feature_dim``."""

from __future__ import annotations

from collections.abc import Callable

from cltt.config.recipe import TIMM, require_backbone
from cltt.models.resnet import ResNet, resnet18, resnet34, resnet50
from cltt.models.swin import Swin, swin_b, swin_s, swin_t
from cltt.models.timm_models import TimmEncoder, build_timm

Encoder = ResNet | Swin | TimmEncoder
_ENCODERS: dict[str, Callable[[], Encoder]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "swin_t": swin_t,
    "swin_s": swin_s,
    "swin_b": swin_b,
}


def build_encoder(name: str) -> Encoder:
    """Make a randomly initialised encoder.

    ``name``: one of ``config.BACKBONES``, or ``timm:NAME``. SettingsError for others, and where timm is missing.
    """
    require_backbone(name)
    return build_timm(name) if name.startswith(TIMM) else _ENCODERS[name]()
