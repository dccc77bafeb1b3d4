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
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from cltt.loss import triton_kernels
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, (12, 5, 260)], ids=str)
def test_matches_reference(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    for temperature, with_ids in ((0.01, True), (0.5, False)):
        assert_matches_reference(make_case(*size), temperature, "triton", dtype, with_ids=with_ids)


@pytest.mark.parametrize("multiprocessors", [2, 5])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_columns_split_among_programs(
    multiprocessors: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_kernels, "_multiprocessors", lambda device: multiprocessors)
    assert_matches_reference(make_case(60, 5, 8), temperature, "triton", torch.float32, with_ids=True)


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
