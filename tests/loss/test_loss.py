"""The loss on one process: values, gradients, masks, accuracy, numerics and errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import harness
from cltt import positive_mask
from cltt.errors import SettingsError
from cltt.loss import chunked as chunked_module
from cltt.loss.infonce import TemporalInfoNCE
from tests.helpers.largest import LargestTensor
from tests.helpers.loss_cases import SIZES, assert_matches_reference, evaluate, loss_by_hand, make_case

EVERY = ["reference", "chunked"]
ROOT = Path(__file__).parents[2]


def test_positive_mask_is_what_the_docstring_draws() -> None:
    block = [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    expected = torch.block_diag(torch.tensor(block), torch.tensor(block)).bool()
    assert positive_mask(2, 3).equal(expected)
    assert positive_mask(3, 2).sum() == 3 * 2 * 1


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("gap", [0, 3])
def test_value_and_accuracy_by_hand(backend: str, with_ids: bool, gap: int) -> None:
    case = make_case(9, 3, 4, seed=gap)
    ids = case.ids() if with_ids else {}
    loss, accuracy, _ = evaluate(case.z, 0.3, backend, ids, gap)
    expected_loss, expected_accuracy = loss_by_hand(case.z, 0.3, ids, gap)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    assert accuracy.item() == pytest.approx(expected_accuracy, rel=1e-12)
    if with_ids:
        assert loss.item() != pytest.approx(evaluate(case.z, 0.3, backend)[0].item()), "no pair was ignored"


@pytest.mark.parametrize("side", [6, 20, 512])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_chunked_matches_reference(
    side: int, size: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_module, "_TILE_SIDE", {"cpu": side})
    for temperature in (0.01, 0.07, 0.5, 10):
        for with_ids in (False, True):
            assert_matches_reference(make_case(*size), temperature, "chunked", dtype, with_ids=with_ids)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(2, 6), st.integers(1, 9)),
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([1, 8, 512]),
    st.integers(0, 99),
)
def test_chunked_matches_reference_on_random_shapes(
    size: tuple[int, int, int], temperature: float, side: int, seed: int
) -> None:
    case = make_case(*size, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_module, "_TILE_SIDE", {"cpu": side})
        assert_matches_reference(case, temperature, "chunked", torch.float64, with_ids=seed % 2 == 0)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("with_ids", [False, True])
def test_gradcheck_of_the_chunked_form(temperature: float, with_ids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_module, "_TILE_SIDE", {"cpu": 6})
    case = make_case(5, 3, 3)
    loss = TemporalInfoNCE(temperature, "chunked")
    ids = case.ids() if with_ids else {}
    z = (case.z * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, **ids), (z,), eps=1e-7, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_equals_supcon_of_pytorch_metric_learning(backend: str, temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = make_case(11, 4, 13).z
    leaf = z.flatten(0, 1).clone().requires_grad_()
    expected = losses.SupConLoss(temperature=temperature)(leaf, torch.arange(44) // 4)
    expected.backward()
    loss, _, grad = evaluate(z, temperature, backend)
    assert leaf.grad is not None
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad.flatten(0, 1), leaf.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("backend", "linear"), [("reference", False), ("chunked", True)])
def test_no_square_matrix_in_the_chunked_form(backend: str, linear: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_module, "_TILE_SIDE", {"cpu": 50})
    case = make_case(100, 5, 16)
    with LargestTensor() as largest:
        evaluate(case.z, 0.5, backend, case.ids())
    assert (largest.elements < 100 * 5 * 16 * 2) == linear, largest.elements


@pytest.mark.slow
def test_a_fifteenth_of_the_dense_forms_memory() -> None:
    dense, chunked = (harness.peak_memory("benchmarks.loss:memory_work", name, 10_240) for name in ("dense", "chunked"))
    assert 15 * chunked <= dense, f"{chunked / 1e6:.0f} MB against {dense / 1e6:.0f} MB"


# ------------------------------------------------------------------------------------------------------------ numerics
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("temperature", [0.01, 0.5, 10])
def test_all_equal_embeddings(backend: str, temperature: float) -> None:
    loss, _, grad = evaluate(torch.ones(6, 3, 5), temperature, backend)
    assert loss.item() == pytest.approx(math.log(17), rel=1e-4)
    assert grad.abs().max() < 1e-4
    exact = torch.zeros(6, 3, 5)
    exact[..., 0] = 2.0  # logits that are equal to the last bit: ties are misses
    assert evaluate(exact, temperature, backend)[1] == 0


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_a_zero_vector_and_a_tiny_one(temperature: float) -> None:
    z = make_case(4, 3, 5).z
    z[1, 2] = 0
    z[2, 0] *= 1e-9  # below eps: scaled by 1/eps, not to unit length
    for got, wanted in zip(*(evaluate(z, temperature, backend) for backend in EVERY), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("backend", EVERY)
def test_half_input_far_beyond_its_range(backend: str) -> None:
    z = make_case(4, 3, 5).z
    z = (z / z.abs().max() * 60_000).half()  # squares, lengths and, at this temperature, exponentials overflow fp16
    loss, _, grad = evaluate(z, 0.01, backend)
    wanted, _, wanted_grad = evaluate(z.double(), 0.01, "reference")
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert grad.isfinite().all() and (grad - wanted_grad).abs().max() < 1e-3


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nan_in_nan_out(backend: str, bad: float, temperature: float) -> None:
    case = make_case(7, 3, 5)
    case.z[4, 1, 2] = bad
    for ids in ({}, case.ids()):
        loss, accuracy, _ = evaluate(case.z.float(), temperature, backend, ids)
        assert loss.isnan() and accuracy.isnan()


@pytest.mark.parametrize("backend", EVERY)
def test_autocast_is_off_inside(backend: str) -> None:
    z = make_case(8, 3, 16).z.float()
    leaf = z.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, accuracy = TemporalInfoNCE(0.1, backend)(leaf, return_accuracy=True)
    loss.backward()
    for got, wanted in zip((loss, accuracy, leaf.grad), evaluate(z, 0.1, backend), strict=True):
        assert got is not None and got.dtype == torch.float32 and got.equal(wanted)


def test_autocast_is_off_inside_the_backward_pass() -> None:
    z = make_case(8, 3, 16).z.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = evaluate(z, 0.1, "chunked")
    for got, wanted in zip(inside, evaluate(z, 0.1, "chunked"), strict=True):
        assert got.equal(wanted)


def test_a_gradient_scale_passes_through() -> None:
    z = make_case(8, 3, 16).z.float().requires_grad_()
    parameter = torch.nn.Parameter(torch.eye(16))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    loss = TemporalInfoNCE(0.1, "chunked")
    scaler.scale(loss(z @ parameter)).backward()
    scaled = parameter.grad.clone()  # type: ignore[union-attr]
    (plain,) = torch.autograd.grad(loss(z @ parameter), parameter)
    torch.testing.assert_close(scaled, plain * 2.0**14)
    scaler.step(optimizer)
    torch.testing.assert_close(parameter.detach(), torch.eye(16) - plain)


@pytest.mark.parametrize("backend", EVERY)
def test_strides_do_not_matter(backend: str) -> None:
    z = make_case(6, 3, 8).z
    strided = z.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    for got, wanted in zip(evaluate(strided, 0.2, backend), evaluate(z, 0.2, backend), strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_gradient_flows_through_the_accuracy() -> None:
    z = make_case(4, 3, 5).z.requires_grad_()
    for backend in EVERY:
        assert not TemporalInfoNCE(backend=backend)(z, return_accuracy=True)[1].requires_grad
    assert not TemporalInfoNCE(backend="chunked")(z.detach()).requires_grad


# -------------------------------------------------------------------------------------------------------------- errors
def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("z", "given", "words"),
    [
        (torch.zeros(4, 5), (), ["(4, 5)", "[B, T, D]"]),
        (torch.zeros(4, 1, 5), (), ["(4, 1, 5)", "T >= 2"]),
        (torch.zeros(0, 2, 5), (), ["(0, 2, 5)"]),
        (torch.zeros(4, 2, 5, dtype=torch.int64), (), ["torch.int64", "floating-point"]),
        (torch.zeros(4, 2, 5), (ids(3), ids(4, 2)), ["(3,)", "(4,)", "(4, 2)"]),
        (torch.zeros(4, 2, 5), (ids(4), ids(4, 3)), ["(4, 3)", "(4, 2)"]),
        (torch.zeros(4, 2, 5), (ids(4), None), ["None", "(4, 2)"]),
    ],
)
def test_a_wrong_input_gets_one_sentence(z: torch.Tensor, given: tuple, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        TemporalInfoNCE(backend="chunked")(z, *given)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": math.nan}, {"backend": "fast"}, {"ignore_gap": -1}]
)
def test_a_wrong_setting_is_named(bad: dict) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(bad))} is .*{next(iter(bad.values()))}"):
        TemporalInfoNCE(**bad)


@pytest.mark.parametrize(("dtype", "last"), [(torch.uint8, 250), (torch.int16, 32765), (torch.int32, 2**31 - 3)])
def test_ids_near_the_end_of_their_type_are_masked_all_the_same(dtype: torch.dtype, last: int) -> None:
    z, clips = torch.randn(2, 2, 4), torch.zeros(2, dtype=dtype)
    frames = torch.tensor([[last - 1, last], [last, last + 1]]).to(dtype)
    loss = TemporalInfoNCE(backend="chunked", ignore_gap=10)
    assert loss(z, clips, frames) == loss(z, clips.long(), frames.long()) != loss(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_of_another_type_than_integers_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(SettingsError, match="integers are expected"):
        TemporalInfoNCE()(torch.randn(2, 2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 2, dtype=dtype))


def test_a_second_derivative_is_refused_not_wrong() -> None:
    z = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(TemporalInfoNCE(backend="chunked")(z), z, create_graph=True)
    assert torch.autograd.gradgradcheck(TemporalInfoNCE(backend="reference"), z)


def test_triton_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SettingsError, match="needs a CUDA device, but z is on cpu"):
        TemporalInfoNCE(backend="triton")(torch.randn(2, 2, 4))
    with pytest.raises(SettingsError, match="z is fp64"):
        TemporalInfoNCE(backend="triton")(torch.randn(2, 2, 4).double())
    assert TemporalInfoNCE(backend="auto")(torch.randn(2, 2, 4)).isfinite()


# ------------------------------------------------------------------------------------------------------------- kernels
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(which: str) -> None:
    """The interpreter is chosen when the kernels are defined, so it needs a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, "tests/loss/interpreted.py"]
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("multiprocessors", [66, 78, 108, 114, 132, 148])
@pytest.mark.parametrize("N", [4096, 8192, 10_240, 16_384, 32_768, 65_536, 131_072])
def test_no_wave_of_programs_is_left_half_empty(N: int, multiprocessors: int) -> None:
    """The tiles that the busiest multiprocessor does, one after the other, are few more than a fair share."""
    triton_launch = pytest.importorskip("cltt.loss.triton_launch")
    blocks = tiles = N // 128
    splits, each = triton_launch._split(blocks, tiles, multiprocessors)
    assert splits * each >= tiles > (splits - 1) * each
    waves = -(-blocks * splits // multiprocessors)
    assert waves * each <= 1.25 * blocks * tiles / multiprocessors
    assert splits * N <= N + 4 * 128 * multiprocessors + 128  # rows of partial results: linear
