"""The Triton kernels in Triton's interpreter; run by tests/loss/test_loss.py in a process with TRITON_INTERPRET=1.

The interpreter keeps bf16 as bit patterns and multiplies them as integers (triton-lang/triton issue 11584: "we just
don't support it yet"), so the operands of its product are widened here.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cltt.loss import chunked, triton_launch
from cltt.loss.chunked import Rows
from cltt.loss.reference import unit_rows
from cltt.loss.triton_launch import NATS
from tests.helpers.loss_cases import SIZES, assert_matches_reference, evaluate, make_case

assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.fixture(autouse=True)
def widened_products(monkeypatch: pytest.MonkeyPatch) -> None:
    original = InterpreterBuilder.create_dot

    def widen(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: original(self, widen(a), widen(b), *rest)
    )


@pytest.fixture(autouse=True)
def bounds_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes integers of arrays of one element, which NumPy 2.4 refuses; 3.7 does as here."""
    original = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, (12, 5, 260)], ids=str)
def test_matches_reference(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    for temperature, with_ids in ((0.01, True), (0.5, False)):
        assert_matches_reference(make_case(*size), temperature, "triton", dtype, with_ids=with_ids)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 16, so that there are many of them."""
    for name, dc in (("_row_blocks", 0), ("_grad_blocks", 16)):
        blocks = triton_launch._Blocks(16, 16, 16, dc, True, 8)
        monkeypatch.setattr(triton_launch, name, lambda width, dtype, blocks=blocks: blocks)


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("multiprocessors", [1, 3, 40])
@pytest.mark.parametrize("temperature", [0.01, 0.5])  # running maximum and whole rows; half of the tiles
@pytest.mark.parametrize("windows_and_size", [(5, 3), (8, 2), (8, 4), (14, 3), (16, 4), (27, 3), (3, 37)], ids=str)
def test_tiles_shared_out_among_programs(
    windows_and_size: tuple[int, int], temperature: float, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 to 6 whole blocks of rows, even and odd, with and without a ragged one, and windows longer than a block."""
    monkeypatch.setattr(triton_launch, "_multiprocessors", lambda device: multiprocessors)
    case = make_case(*windows_and_size, 8)
    for with_ids in (False, True):
        assert_matches_reference(case, temperature, "triton", torch.float32, with_ids=with_ids)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("multiprocessors", [1, 7])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("first", [0, 15, 48, 60])
def test_the_rows_of_one_rank(
    first: int, temperature: float, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 15 to 33, say, of 75: they start and end inside a tile, and see all columns."""
    monkeypatch.setattr(triton_launch, "_multiprocessors", lambda device: multiprocessors)
    v = unit_rows(make_case(25, 3, 8).z.float(), temperature)
    spans = torch.stack([torch.arange(25) // 9, torch.arange(25), torch.arange(25) + 1], 1)
    for known in (None, spans):
        rows = Rows(3, first, min(18, 75 - first), 1 / temperature, known)
        wanted_lse, wanted_hits = chunked.row_logsumexp(v.double(), rows, with_top1=True)
        lse, hits = triton_launch.row_logsumexp(v / NATS**0.5, rows, with_top1=True)
        torch.testing.assert_close(lse * NATS, wanted_lse.float(), rtol=1e-5, atol=1e-4)
        assert hits is not None and wanted_hits is not None and hits.equal(wanted_hits)
        full = chunked.row_logsumexp(v.double(), Rows(3, 0, 75, 1 / temperature, known), with_top1=False)[0]
        grad = triton_launch.grad_rows(v / NATS**0.5, full.float() / NATS, rows) * NATS**0.5
        torch.testing.assert_close(grad, chunked.grad_rows(v.double(), full, rows).float(), rtol=1e-4, atol=1e-4)


def test_sums_of_partials_have_one_order() -> None:
    """No atomics: two passes give the same bits."""
    case = make_case(60, 5, 8)
    first, second = (evaluate(case.z.float(), 0.5, "triton", case.ids()) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_autocast_multiplies_in_half_precision_within_the_tolerance_said(temperature: float) -> None:
    z = make_case(60, 5, 40).z.float()
    with torch.autocast("cpu", torch.bfloat16):
        half = evaluate(z, temperature, "triton")
    full = evaluate(z.double(), temperature, "reference")
    assert half[0].dtype == half[2].dtype == torch.float32
    assert not half[2].equal(evaluate(z, temperature, "triton")[2])
    assert abs(half[0] - full[0]) <= 0.01 / temperature
    assert (half[2] - full[2]).abs().max() <= 0.01 * full[2].abs().max()


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_rows_that_see_nothing_in_whole_tiles(temperature: float) -> None:
    case = make_case(60, 3, 8)
    case.clip_ids[:] = 0
    case.frame_ids[:] = case.frame_ids[0]  # every window overlaps every other: only positives are left
    case.clip_ids[59] = 1
    assert_matches_reference(case, temperature, "triton", torch.float32, with_ids=True)


def test_all_equal_embeddings_and_a_zero_vector() -> None:
    z = torch.ones(6, 3, 5)
    assert evaluate(z, 0.5, "triton")[0].item() == pytest.approx(math.log(17), rel=1e-5)
    z[2, 1] = 0
    for got, wanted in zip(evaluate(z, 0.5, "triton"), evaluate(z, 0.5, "reference"), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_nan_in_nan_out(temperature: float) -> None:
    z = make_case(7, 3, 5).z.float()
    z[4, 1, 2] = math.nan
    loss, accuracy, _ = evaluate(z, temperature, "triton")
    assert loss.isnan() and accuracy.isnan()
