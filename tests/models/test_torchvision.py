"""Our encoders are torchvision's: parameter names, shapes, outputs and gradients, where torchvision fits torch.

A release that does is pinned in constraints-cuda12.txt; its wheels do not load beside a CPU build of torch.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cltt.config import BACKBONES
from cltt.models.encoders import build_encoder

try:
    from torchvision import models
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    pytest.skip(f"no torchvision that fits torch {torch.__version__}: {error}", allow_module_level=True)

OURS = [name for name in BACKBONES if hasattr(models, name)]


def theirs(name: str) -> nn.Module:
    """torchvision's network without its classifier."""
    network = getattr(models, name)(weights=None)
    head = "head" if name.startswith("swin") else "fc"
    setattr(network, head, nn.Identity())
    return network


@pytest.mark.parametrize("name", OURS)
def test_names_and_shapes(name: str) -> None:
    ours, wanted = build_encoder(name).state_dict(), theirs(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in wanted.items()}


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_outputs_and_gradients(name: str, training: bool) -> None:
    """With our weights loaded strictly, at a size that no stride divides, with statistics unlike those at the start."""
    torch.manual_seed(0)
    ours, wanted = build_encoder(name), theirs(name)
    with torch.no_grad():
        for buffer_name, buffer in ours.named_buffers():
            if "running" in buffer_name:
                buffer.add_(torch.rand_like(buffer))
    wanted.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, 3, 97, 97)
    results = []
    for network in (ours, wanted):
        network.train(training)
        torch.manual_seed(1)  # stochastic depth
        y = network(x)
        y.square().mean().backward()
        results.append((y.detach(), {key: p.grad for key, p in network.named_parameters()}, network.state_dict()))
    (y, grads, state), (wanted_y, wanted_grads, wanted_state) = results
    torch.testing.assert_close(y, wanted_y, rtol=1e-5, atol=1e-5)
    for key, grad in wanted_grads.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    torch.testing.assert_close(state, wanted_state, rtol=1e-5, atol=1e-5)
