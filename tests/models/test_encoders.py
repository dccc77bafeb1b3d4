"""Encoders against the committed list of torchvision's names and shapes, and what the model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cltt.config import BACKBONES
from cltt.errors import SettingsError
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder

GOLDEN = Path(__file__).parents[1] / "golden"


def torchvision_layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state_dict, in its order, without ``fc``."""
    lines = (line.split() for line in (GOLDEN / f"{name}_names.txt").read_text().splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


@pytest.mark.parametrize("name", BACKBONES)
def test_encoder_has_torchvisions_names_and_shapes(name: str) -> None:
    """A dictionary with torchvision's names, shapes and order loads with strict=True, and the other way round."""
    layout = torchvision_layout(name)
    encoder = build_encoder(name)
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert list(found.items()) == list(layout.items())
    encoder.load_state_dict({key: torch.zeros(shape) for key, shape in layout.items()}, strict=True)


@pytest.mark.parametrize(("name", "parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_number_of_parameters_is_torchvisions(name: str, parameters: int) -> None:
    """torchvision documents these counts with its classifier of 1,000 classes."""
    encoder = build_encoder(name)
    classifier = 1000 * (encoder.feature_dim + 1)
    assert sum(p.numel() for p in encoder.parameters()) + classifier == parameters


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet50", 2048)])
def test_model_gives_an_embedding_a_frame(name: str, features: int) -> None:
    encoder = build_encoder(name)
    model = ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim, 8)).eval()
    frames = torch.randn(2, 3, 3, 32, 32)
    z = model(frames)
    assert encoder.feature_dim == features
    assert z.shape == (2, 3, 8)
    alone = model(frames[1:, 2:])
    torch.testing.assert_close(alone[0, 0], z[1, 2], rtol=1e-4, atol=1e-5)


def test_unknown_backbone_is_refused() -> None:
    with pytest.raises(SettingsError, match="resnet18, resnet34, resnet50"):
        build_encoder("vgg")


def test_the_settings_know_every_encoder_by_name() -> None:
    from cltt.config import BACKBONES
    from cltt.models.encoders import _ENCODERS

    assert set(BACKBONES) == set(_ENCODERS)
