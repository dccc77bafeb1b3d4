"""Builds encoders by name: models of torchvision and timm without their classifier.

Names and shapes of the parameters are those of the library, so a trained encoder loads there.
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

IMAGE_SIZE = 224  # pixels, if no size is given


class Encoder(nn.Module):
    """A torchvision or timm model without its classifier: [n, 3, H, W] -> [n, feature_dim].

    Attributes:
        feature_dim: length of the feature vector.
        code: lines of Python that build the same encoder without this package.
    """

    feature_dim: int
    code: list[str]


def build_encoder(name: str, image_size: int = IMAGE_SIZE) -> Encoder:
    """Build an encoder with random weights, drawn from torch's random state.

    Args:
        name: a classification model of torchvision, or ``timm:NAME`` for one of timm.
        image_size: side of the images in pixels; only some models depend on it.

    Raises SettingsError for an unknown name, with the nearest names, for a model that cannot serve as an encoder or
    refuses the size, and if timm is not installed.
    """
    require_backbone(name)
    return _of_timm(name) if name.startswith(TIMM) else _of_torchvision(name, image_size)


def check_takes(encoder: nn.Module, backbone: str, image_size: int) -> None:
    """Raise SettingsError unless ``encoder`` works with images of ``image_size`` pixels."""
    was_training, any_weight = encoder.training, next(encoder.parameters())
    encoder.eval()
    try:
        with torch.no_grad():
            shape = tuple(encoder(any_weight.new_zeros(1, 3, image_size, image_size)).shape)
    except Exception as error:  # models raise errors of any type
        raise _unsuitable(backbone, image_size, error) from error
    finally:
        encoder.train(was_training)
    if shape != (1, encoder.feature_dim):
        raise _unsuitable(backbone, image_size, f"gives features of shape {shape}")


def _unsuitable(backbone: str, image_size: int, why: object) -> SettingsError:
    reason = shorten(" ".join(str(why).split()), 160) or type(why).__name__
    return SettingsError(
        f"--backbone {shorten(backbone, 80)} does not work with images of {image_size} pixels ({reason}); give another "
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
    import torchvision  # imported here, as it takes a second or two
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise _unknown(name, name, torchvision, names)
    build = models.get_model_builder(name)
    parameters = inspect.signature(get_type_hints(build)["return"]).parameters
    require(
        "aux_logits" not in parameters,
        f"--backbone {name} has auxiliary outputs, so it cannot be an encoder; give another",
    )
    sizes = {"image_size": image_size, "input_size": (image_size, image_size)}
    options = {key: value for key, value in sizes.items() if key in parameters}
    try:
        model = build(weights=None, **options)
    except (AssertionError, ValueError) as error:  # a size that the model refuses
        raise _unsuitable(name, image_size, error) from error
    linear = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
    require(
        bool(linear), f"--backbone {name} has no linear layer as classifier, so it cannot be an encoder; give another"
    )
    classifier = linear[-1]
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


# ---- timm (PyTorch Image Models, https://github.com/huggingface/pytorch-image-models), if it is installed


def _of_timm(backbone: str) -> Encoder:
    try:
        import timm
    except ImportError as error:  # also if timm is installed, but its torchvision is not
        raise SettingsError(
            f"--backbone {shorten(backbone, 80)} needs the package timm: pip install 'cltt[timm]' ({error})"
        ) from None
    name = backbone.removeprefix(TIMM)
    if not timm.is_model(name):
        raise _unknown(backbone, name, timm, timm.list_models())
    option = ", dynamic_img_size=True"  # transformers with learnt positions then take images of any size
    encoder: Any
    try:
        encoder = timm.create_model(name, num_classes=0, dynamic_img_size=True)
    except TypeError:
        encoder, option = timm.create_model(name, num_classes=0), ""
    # Not num_features if convolutions follow the pooling.
    encoder.feature_dim = int(getattr(encoder, "head_hidden_size", None) or encoder.num_features)
    encoder.code = ["import timm, torch", f'encoder = timm.create_model("{name}", num_classes=0{option})']
    return encoder
