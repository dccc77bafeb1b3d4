"""The Triton kernels on a real GPU; the same cases run in the interpreter on the CPU (tests/loss/interpreted.py)."""

from __future__ import annotations

import pytest
import torch

from cltt.loss.infonce import TemporalInfoNCE, resolve_backend
from tests.helpers.loss_cases import assert_matches_reference, evaluate, make_case

pytestmark = pytest.mark.gpu


# Each layout of tiles (_row_blocks and _grad_blocks) in the types that use it, with a ragged last block of rows. Each
# size, type and feature is a compilation of a second or more; the tests in the interpreter take all sizes.
LAYOUTS = [
    (torch.bfloat16, (45, 3, 40)),
    (torch.bfloat16, (30, 5, 150)),
    (torch.bfloat16, (7, 64, 512)),
    (torch.float16, (45, 3, 40)),
    (torch.float32, (13, 7, 16)),
    (torch.float32, (30, 5, 150)),
]
# Temperature and ids: the row kernel and the mirrored one, gradients shifted and not, each with spans and without.
FEATURES = [(0.01, True), (0.5, False), (0.01, False), (0.5, True)]


CASES = [(*layout, *features) for layout in LAYOUTS for features in FEATURES[: 4 if layout == LAYOUTS[0] else 2]]


@pytest.mark.parametrize("backend", ["triton", "chunked"])
@pytest.mark.parametrize(("dtype", "size", "temperature", "with_ids"), CASES, ids=str)
def test_matches_reference(
    dtype: torch.dtype, size: tuple[int, int, int], temperature: float, with_ids: bool, backend: str
) -> None:
    assert_matches_reference(make_case(*size), temperature, backend, dtype, with_ids=with_ids, device="cuda")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_many_frames(dtype: torch.dtype, tolerance: float, temperature: float) -> None:
    z = make_case(2053, 5, 128).z.to("cuda", dtype)  # 10,265 frames: no multiple of any tile
    loss, _, grad = evaluate(z, temperature, "triton")
    wanted, _, wanted_grad = evaluate(z.double(), temperature, "chunked")
    assert abs(loss - wanted) <= tolerance * wanted
    assert (grad - wanted_grad).norm() <= tolerance * wanted_grad.norm()


@pytest.mark.parametrize(("beta", "capacity"), [(0.7, 0), (0.0, 7), (2.0, 7)])
def test_hard_negatives_and_memory(beta: float, capacity: int) -> None:
    outcomes = {}
    for device in ("cuda", "cpu"):
        loss_fn = TemporalInfoNCE(0.4, hard_negatives=beta, memory=capacity)
        for seed in range(3):
            case = make_case(5, 3, 4, seed)
            z = case.z.to(device, torch.float32).requires_grad_()
            loss = loss_fn(z, **case.ids())
            outcomes[device, seed] = loss.cpu(), torch.autograd.grad(loss, z)[0].cpu()
    for seed in range(3):
        torch.testing.assert_close(outcomes["cuda", seed], outcomes["cpu", seed], rtol=1e-4, atol=1e-5)


def test_auto_takes_the_kernels() -> None:
    z = torch.randn(4, 3, 16, device="cuda")
    assert resolve_backend("auto", z) == ("triton" if torch.cuda.get_device_capability() >= (8, 0) else "chunked")
    assert resolve_backend("auto", z.double()) == "chunked"


def test_memory_is_linear_and_under_a_gigabyte() -> None:
    extra = {}
    for windows in (8192, 32_768):  # up to N = 131,072
        z = torch.randn(windows, 4, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        TemporalInfoNCE(backend="triton")(z).backward()
        extra[windows] = torch.cuda.max_memory_allocated() - before
    assert extra[32_768] < 1e9
    assert extra[32_768] < 4.5 * extra[8192]


def test_the_host_never_waits_for_the_device() -> None:
    case = make_case(64, 4, 32)
    z = case.z.to("cuda", torch.float32).requires_grad_()
    loss_fn = TemporalInfoNCE(backend="triton")
    loss_fn(z, **case.ids()).backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_fn(z, **case.ids()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nan_in_nan_out() -> None:
    z = make_case(70, 3, 16).z.float().cuda()
    z[41, 1, 2] = float("nan")
    for temperature in (0.01, 0.5):
        loss, accuracy, _ = evaluate(z, temperature, "triton")
        assert loss.isnan() and accuracy.isnan()


def test_passes_give_the_same_bits_and_autocast_halves_the_products() -> None:
    z = make_case(2053, 5, 128).z.float().cuda()
    first, second = (evaluate(z, 0.5, "triton") for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    with torch.autocast("cuda", torch.bfloat16):
        half = evaluate(z, 0.5, "triton")
    assert half[2].dtype == torch.float32 and not half[2].equal(first[2])
    assert abs(half[0] - first[0]) <= 0.01 / 0.5
    assert (half[2] - first[2]).abs().max() <= 0.01 * first[2].abs().max()
