"""Encoders by name: classification models of torchvision and of timm, with random weights and without a classifier.

Names and shapes of parameters are theirs, so an encoder trained here loads there.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from typing import Any, cast, get_type_hints

import torch
from torch import nn

from cltt.config import require
from cltt.config.recipe import TIMM, require_backbone
from cltt.errors import SettingsError
from cltt.text import shorten

IMAGE_SIZE = 224  # pixels, where no size is said


class Encoder(nn.Module):
    """What a model of torchvision's or timm's is here: [n, 3, H, W] -> [n, feature_dim].

    Attributes:
        feature_dim: length of the feature vector.
        code: lines of Python that make the same encoder without this package.
    """

    feature_dim: int
    code: list[str]


def build_encoder(name: str, image_size: int = IMAGE_SIZE) -> Encoder:
    """Make an encoder with weights drawn from torch's random state.

    Args:
        name: a classification model of torchvision's, or ``timm:NAME``, one of timm's.
        image_size: side of the images in pixels, for a model that asks for it.

    Raises SettingsError for a name that they do not have, with the nearest names, for a model that is no encoder or
    refuses the size, and where timm is missing.
    """
    require_backbone(name)
    return _of_timm(name) if name.startswith(TIMM) else _of_torchvision(name, image_size)


def check_takes(encoder: nn.Module, backbone: str, image_size: int) -> None:
    """SettingsError unless ``encoder`` makes features of images of ``image_size`` pixels."""
    was_training, any_weight = encoder.training, next(encoder.parameters())
    encoder.eval()
    try:
        with torch.no_grad():
            shape = tuple(encoder(any_weight.new_zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:  # whatever a model of others raises
        raise _no_encoder(backbone, image_size, error) from error
    finally:
        encoder.train(was_training)
    if shape != (1, encoder.feature_dim):
        raise _no_encoder(backbone, image_size, f"gives features of shape {shape}")


def _no_encoder(backbone: str, image_size: int, why: object) -> SettingsError:
    words = shorten(" ".join(str(why).split()), 160) or type(why).__name__
    return SettingsError(
        f"--backbone {shorten(backbone, 80)} is no encoder of images of {image_size} pixels ({words}); give another "
        "--image-size or --backbone"
    )


def _unknown(backbone: str, name: str, library: Any, names: Iterable[str]) -> SettingsError:
    near = ", ".join(difflib.get_close_matches(name[:80], names, n=3, cutoff=0))
    return SettingsError(
        f"--backbone is {shorten(backbone, 80)!r}, but {library.__name__} {library.__version__} has no model of that "
        f"name; the nearest: {near}"
    )


# ---- torchvision


def _of_torchvision(name: str, image_size: int) -> Encoder:
    import torchvision  # a second or two: for those who make an encoder
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise _unknown(name, name, torchvision, names)
    build = models.get_model_builder(name)
    asked = inspect.signature(get_type_hints(build)["return"]).parameters
    require("aux_logits" not in asked, f"--backbone {name} has auxiliary outputs, so it is no encoder; give another")
    sizes = {"image_size": image_size, "input_size": (image_size, image_size)}
    options = {key: value for key, value in sizes.items() if key in asked}
    try:
        model = build(weights=None, **options)
    except (AssertionError, ValueError) as error:  # a size that does not suit it
        raise _no_encoder(name, image_size, error) from error
    classifier = _last_linear(model)
    require(classifier != "", f"--backbone {name} ends without a linear layer, so it is no encoder; give another")
    encoder = cast(Encoder, model)
    encoder.feature_dim = model.get_submodule(classifier).in_features
    model.set_submodule(classifier, nn.Identity())
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    place = re.sub(r"\.(\d+)", r"[\1]", classifier)
    encoder.code = [
        "import torch, torchvision",
        f"encoder = torchvision.models.{name}({given})",
        f"encoder.{place} = torch.nn.Identity()",
    ]
    return encoder


def _last_linear(model: nn.Module) -> str:
    """Name of the classifier; empty if there is none."""
    return ([""] + [name for name, module in model.named_modules() if isinstance(module, nn.Linear)])[-1]


# ---- timm (PyTorch Image Models, https://github.com/huggingface/pytorch-image-models), where it is installed


def _of_timm(backbone: str) -> Encoder:
    timm, name = _timm(backbone), backbone.removeprefix(TIMM)
    if not timm.is_model(name):
        raise _unknown(backbone, name, timm, timm.list_models())
    encoder, options = _created(timm, name)
    # Not num_features where convolutions follow the pooling.
    encoder.feature_dim = int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)
    encoder.code = ["import timm, torch", f'encoder = timm.create_model("{name}", num_classes=0{options})']
    return cast(Encoder, encoder)


def _timm(backbone: str) -> Any:
    try:
        import timm
    except ImportError as error:  # also where timm is there, and its torchvision is not
        raise SettingsError(
            f"--backbone {shorten(backbone, 80)} needs the package timm: pip install 'cltt[timm]' ({error})"
        ) from None
    return timm


def _created(timm: Any, name: str) -> tuple[Any, str]:
    """Transformers with learnt places take every size where they can: their weights are the same."""
    try:
        return timm.create_model(name, num_classes=0, dynamic_img_size=True), ", dynamic_img_size=True"
    except TypeError:
        return timm.create_model(name, num_classes=0), ""
