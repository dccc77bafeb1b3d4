"""The kernels compiled for GPUs that are not here: they fit, use the tensor cores, spill nothing, and are short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from cltt.loss import triton_kernels, triton_launch  # noqa: E402
from tests.helpers.compiled import PRODUCT, SHARED_KIB, Compiled, count, pinned  # noqa: E402

POINTERS = {"spans": "*i64", "out": "*fp32", "scale": "*fp32"}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
KERNELS = {
    "row": triton_kernels.row_kernel,
    "mirrored": triton_kernels.mirrored_kernel,
    "weighted": triton_kernels.gradient_kernel,
}


def compiled(name: str, arch: int, dtype: torch.dtype, D: int, folder: Path, **features: bool) -> Compiled:
    """The kernel with every feature that ``features`` does not switch."""
    blocks = sizes(name, D, dtype)
    constants: dict[str, Any] = {"T": 5, "D": D, "BM": blocks.bm, "BN": blocks.bn, "DB": blocks.db, "DC": blocks.dc}
    constants |= {"RESIDENT": blocks.resident, "HAS_SPANS": True, "UNSHIFTED": False, "WITH_TOP1": True, **features}
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages(SHARED_KIB[arch][0] * 1024)}
    return Compiled(KERNELS[name], arch, POINTERS | {"v": "*" + TYPES[dtype]}, constants, options, folder)


def sizes(name: str, D: int, dtype: torch.dtype) -> triton_launch._Blocks:
    return (triton_launch._grad_blocks if name == "weighted" else triton_launch._row_blocks)(D, dtype)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("D", [3, 128, 512])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_fit_and_use_the_tensor_cores(name: str, arch: int, dtype: torch.dtype, D: int, tmp_path: Path) -> None:
    kernel = compiled(name, arch, dtype, D, tmp_path)
    assert kernel.shared <= SHARED_KIB[arch][0] * 1024
    assert kernel.loops()


default_set = pytest.mark.skipif(
    triton.__version__ != pinned("triton"), reason=f"measured with triton {pinned('triton')}, the default set's"
)


@default_set
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("D", [128, 256, 512])
@pytest.mark.parametrize("name", KERNELS)
def test_nothing_is_spilled_and_as_many_programs_run_as_the_launch_counts_on(
    name: str, arch: int, dtype: torch.dtype, D: int, tmp_path: Path
) -> None:
    kernel = compiled(name, arch, dtype, D, tmp_path, UNSHIFTED=True, HAS_SPANS=False, WITH_TOP1=False)
    assert not any(count(loop, "STL|LDL") for loop in kernel.loops())
    # Triton 3.8 keeps two integers of the mirrored kernel's outer loop in memory on 8.0: once per block of rows.
    assert kernel.spilled == 0 or (name, arch, D, kernel.spilled) == ("mirrored", 80, 128, 8)
    assert kernel.programs() >= sizes(name, D, dtype).programs


@default_set
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "serves", "arch", "most"),
    [
        ("row", 1, 80, 450),
        ("row", 1, 90, 250),
        ("mirrored", 2, 80, 450),
        ("mirrored", 2, 90, 250),
        ("weighted", 1, 80, 750),
        ("weighted", 1, 90, 381),  # as many as with two tiles in flight instead of three
    ],
)
def test_instructions_of_the_main_loop(name: str, serves: int, arch: int, most: int, tmp_path: Path) -> None:
    """Of one of 8 warps, for each 128 x 128 entries of S that are summed (a mirrored tile: twice), bf16, D = 128.

    With 4 warps a program, each does the work of two. The loop must be the one without masks: as many exponentials as
    entries, and hardly a comparison.
    """
    kernel = compiled(name, arch, torch.bfloat16, 128, tmp_path, UNSHIFTED=True, HAS_SPANS=False, WITH_TOP1=False)
    masked, body = kernel.loops()
    tile = sizes(name, 128, torch.bfloat16)
    assert count(body, PRODUCT[arch]) == count(masked, PRODUCT[arch])
    assert count(body, "MUFU.EX2") == tile.bm * tile.bn / (32 * tile.warps)
    assert count(body, "ISETP") < 20 < 60 < count(masked, "ISETP")
    share = (128 * 128 * 8) / (tile.bm * tile.bn * tile.warps)
    assert len(body) / (share * serves) <= most, f"{len(body)} of {tile.warps} warps"


@default_set
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "in_flight"), [(80, 0), (90, 2)])
@pytest.mark.parametrize("D", [128, 256])
def test_tiles_in_flight(arch: int, in_flight: int, D: int, tmp_path: Path) -> None:
    """Groups of copies that the gradient's main loop leaves under way when it waits for the tile it needs."""
    kernel = compiled("weighted", arch, torch.bfloat16, D, tmp_path, UNSHIFTED=True, HAS_SPANS=False, WITH_TOP1=False)
    waits = [text for text in kernel.loops()[-1] if text.startswith("DEPBAR")]
    assert waits == [f"DEPBAR.LE SB0, {in_flight:#x}"]
    assert kernel.spilled == 0
