"""Stored frames to normalised batches: the plain twin against arithmetic by hand, and the kernel against the twin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cltt.frames.gather import BatchFormat, gather, gather_plain, statistics
from tests.helpers.compiled import Compiled

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_plain_twin_by_hand(dtype: torch.dtype, channels_last: bool) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (4, 5 * 5 * 3 + 2), dtype=np.uint8)
    slots = [3, 1, 1]
    frames = rows[slots, :75].reshape(3, 5, 5, 3).transpose(0, 3, 1, 2) / 255
    mean, std = (np.reshape(v, (3, 1, 1)) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for normalise, expected in (("none", frames), ("imagenet", (frames - mean) / std)):
        for function in (gather_plain, gather):
            wanted = BatchFormat(dtype, channels_last, normalise)
            ours = function(torch.from_numpy(rows), torch.tensor(slots), 5, wanted)
            order = torch.channels_last if channels_last else torch.contiguous_format
            assert ours.dtype == dtype and ours.is_contiguous(memory_format=order)
            tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
            np.testing.assert_allclose(ours.double().numpy(), expected, atol=tolerance, rtol=tolerance)


def test_without_normalising_bytes_span_0_to_1() -> None:
    rows = torch.tensor([[0, 255, 51]], dtype=torch.uint8)
    out = gather(rows, torch.tensor([0]), 1, BatchFormat(torch.float32, False, "none"))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 1.0, 0.2]))


def test_the_kernel_in_the_interpreter() -> None:
    """The interpreter is chosen when the kernel is defined, so it needs a process of its own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/frames/interpreted.py"]
    environ = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_kernel_compiles_and_writes_whole_vectors(
    arch: int, channels_last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from cltt.frames.gpu.gather_kernel import _BLOCK, gather_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = {"rows": "*u8", "slots": "*i64", "out": "*bf16"}
    kinds |= {f"{name}{c}": "fp32" for name in ("offset", "scale") for c in range(3)}
    constants = {"CHANNELS_LAST": channels_last, "BLOCK": _BLOCK}
    kernel = Compiled(gather_kernel, arch, kinds, constants, {"num_warps": 4, "num_stages": 1}, tmp_path)
    assert kernel.spilled == 0
    stores = [text for text in kernel.instructions() if "STG" in text]
    assert stores and all(".128" in text or ".64" in text for text in stores), stores


def test_statistics_are_those_of_imagenet() -> None:
    offset, scale = statistics("imagenet")
    torch.testing.assert_close(offset / 255, torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(1 / scale / 255, torch.tensor([0.229, 0.224, 0.225]))
