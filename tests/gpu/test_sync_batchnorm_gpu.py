"""BatchNorm over ranks on a GPU, by torch's kernels: against nn.BatchNorm2d, and without a wait of the host."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cltt.models.sync_batchnorm import SyncBatchNorm2d

pytestmark = pytest.mark.gpu
SHAPE = (32, 24, 14, 10)


def inputs(channels_last: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    x, dy = (torch.randn(SHAPE, device="cuda", generator=generator).to(dtype) for _ in range(2))
    return (x * 2 + 3).contiguous(memory_format=torch.channels_last) if channels_last else x * 2 + 3, dy


def steps(norm: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = x.clone().requires_grad_()
    y = norm(rows)
    y.backward(dy)
    assert rows.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    return {
        "y": y.detach(),
        "dx": rows.grad,
        "dw": norm.weight.grad,
        "db": norm.bias.grad,
        **dict(norm.named_buffers()),
    }


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-7)])
def test_values_gradients_and_statistics_are_those_of_batchnorm(
    dtype: torch.dtype, tolerance: float, channels_last: bool
) -> None:
    x, dy = inputs(channels_last, dtype)
    wanted, found = (steps(kind(SHAPE[1]).cuda(), x, dy) for kind in (nn.BatchNorm2d, SyncBatchNorm2d))
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        error = (found[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error <= tolerance, f"{name} is off by {error:.1e} of its largest value"


def test_the_host_never_waits() -> None:
    norm = SyncBatchNorm2d(SHAPE[1]).cuda()
    x, dy = inputs(True, torch.bfloat16)
    steps(norm, x, dy)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(norm, x, dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_in_one_graph() -> None:
    norm = SyncBatchNorm2d(SHAPE[1]).cuda()
    x, _ = inputs(True, torch.bfloat16)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True)(x), SyncBatchNorm2d(SHAPE[1]).cuda()(x))
