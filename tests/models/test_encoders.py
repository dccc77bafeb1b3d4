"""Encoders by name: the six of 0.1.0 unchanged, all others of torchvision, and models that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from cltt.errors import SettingsError
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder, check_takes
from cltt.models.search import BACKBONES, empty_encoder
from cltt.training.optim import decay_groups

GOLDEN = Path(__file__).parents[1] / "golden"
REFUSED = {"googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1"}
HUGE = {"regnet_y_128gf", "regnet_x_32gf", "regnet_y_32gf"}  # they cannot be made without memory
OTHERS = sorted(set(models.list_models(module=models)) - REFUSED - HUGE)
FAMILIES = {"resnet50", "swin_v2_t", "convnext_tiny", "vit_b_16", "efficientnet_v2_s", "regnet_y_400mf", "maxvit_t"}
FAMILIES |= {"mobilenet_v3_small", "densenet121", "mnasnet0_5", "shufflenet_v2_x0_5", "vgg11_bn", "alexnet"}


def torchvision_layout(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's state_dict, in its order, without ``fc``."""
    lines = (line.split() for line in (GOLDEN / f"{name}_names.txt").read_text().splitlines())
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, shape in lines}


@pytest.mark.parametrize("name", BACKBONES)
def test_encoder_has_the_names_and_shapes_it_always_had(name: str) -> None:
    """A dictionary with torchvision's names, shapes and order loads with strict=True, and the other way round."""
    layout = torchvision_layout(name)
    encoder = build_encoder(name)
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert list(found.items()) == list(layout.items())
    encoder.load_state_dict({key: torch.zeros(shape) for key, shape in layout.items()}, strict=True)


def with_known_weights(encoder: nn.Module) -> nn.Module:
    """Weights by a formula, so that features can be compared with those of other versions."""
    state = encoder.state_dict()
    for number, (name, value) in enumerate(state.items()):
        if value.is_floating_point():
            wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + number).reshape(value.shape)
            if name.endswith("running_var"):
                wave = wave.abs() + 0.5
            elif value.dim() > 1:
                wave = wave * (1 / value[0].numel()) ** 0.5
            else:
                wave = 0.1 * wave + (1 if name.endswith("weight") else 0)
            state[name] = wave.to(value.dtype)
    encoder.load_state_dict(state)
    return encoder.eval()


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_weights_give_the_features_that_0_1_0_gave(name: str) -> None:
    """``tests/golden/encoder_features.txt`` was written by 0.1.0, whose encoders were its own; sides of no stride's."""
    golden = dict(line.split(" ", 1) for line in (GOLDEN / "encoder_features.txt").read_text().splitlines())
    x = torch.sin(torch.arange(2 * 3 * 70 * 61, dtype=torch.float64) * 0.37).reshape(2, 3, 70, 61).float()
    with torch.no_grad():
        found = with_known_weights(build_encoder(name))(x)[1, :8]
    wanted = torch.tensor([float(value) for value in golden[name].split()])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAMILIES else pytest.mark.slow) for n in OTHERS])
def test_every_classification_model_gives_features_of_the_length_it_says(name: str) -> None:
    """On no device, in training and in evaluation; its decayed parameters are matrices and kernels."""
    encoder = empty_encoder(name).to("meta")
    for training in (True, False):
        y = encoder.train(training)(torch.empty(2, 3, 224, 224, device="meta"))
        assert tuple(y.shape) == (2, encoder.feature_dim)
    free = {id(value) for value in decay_groups(encoder, 0.1)[1]["params"]}  # type: ignore[attr-defined]
    for key, value in encoder.named_parameters():
        assert (id(value) in free) == (value.dim() < 2 or not key.endswith("weight")), key


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_no_encoder_is_one_sentence(name: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{name} (has auxiliary outputs|has no linear layer as classifier), so it cannot be"
    ):
        build_encoder(name)


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("convnext", "convnext_tiny"), ("vit", "vit_")])
def test_a_name_that_torchvision_does_not_have_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(SettingsError, match=rf"'{name}', but torchvision .* has no model of that name; .*{near}"):
        build_encoder(name)


def test_a_model_that_asks_for_the_size_of_images_gets_it() -> None:
    encoder = build_encoder("vit_b_32", 64)
    assert encoder.state_dict()["encoder.pos_embedding"].shape == (1, 5, 768)
    check_takes(encoder, "vit_b_32", 64)
    with pytest.raises(
        SettingsError, match=r"vit_b_32 does not work with images of 96 pixels \(.*64.*\); give another"
    ):
        check_takes(encoder, "vit_b_32", 96)
    with pytest.raises(SettingsError, match="vit_b_32 does not work with images of 50 pixels"):
        build_encoder("vit_b_32", 50)
    with pytest.raises(SettingsError, match="alexnet does not work with images of 32 pixels"):
        check_takes(build_encoder("alexnet"), "alexnet", 32)


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


def test_settings_and_reading_weights_do_not_import_torchvision() -> None:
    """It takes a second or two, which only those who make an encoder pay."""
    code = "import sys; from cltt.commands import train; import cltt.training.run, cltt.evaluation.__main__; "
    code += "train.parse(['--shards', 'x', '--backbone', 'convnext_tiny']); assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "convnext_tiny"])
def test_its_code_makes_the_same_encoder(name: str) -> None:
    encoder = build_encoder(name, 64)
    space: dict[str, Any] = {}
    exec("\n".join(encoder.code), space)
    theirs = space["encoder"].state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert len(encoder.code) == 3 and ("image_size=64" in encoder.code[1]) == (name == "vit_b_32")
