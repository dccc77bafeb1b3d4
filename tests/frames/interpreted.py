"""The gathering kernel in Triton's interpreter; run by test_gather.py in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

import os

import pytest
import torch

from cltt.frames.gather import BatchFormat, gather_plain
from cltt.frames.gpu.gather_kernel import launch

assert os.environ["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("normalise", ["imagenet", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("image_size", "extra"), [(1, 0), (7, 5), (32, 0), (33, 12), (40, 3)])
def test_equals_its_plain_twin(
    image_size: int, extra: int, dtype: torch.dtype, normalise: str, channels_last: bool
) -> None:
    """Sizes below, at and above a program's block, rows longer than a frame, slots repeated and out of order."""
    torch.manual_seed(0)
    rows = torch.randint(0, 256, (9, image_size * image_size * 3 + extra), dtype=torch.uint8)
    slots = torch.tensor([8, 0, 3, 3, 5])
    wanted = BatchFormat(dtype, channels_last, normalise)
    ours = launch(rows, slots, image_size, wanted)
    twin = gather_plain(rows, slots, image_size, wanted)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert ours.is_contiguous(memory_format=order) and twin.is_contiguous(memory_format=order) and ours.dtype == dtype
    # The interpreter cuts float32 to bfloat16 where a GPU rounds: a unit in the last place.
    torch.testing.assert_close(ours, twin, rtol=1 / 128 if dtype == torch.bfloat16 else 0, atol=0)
