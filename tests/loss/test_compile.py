"""The kernels compile for GPUs that are not here: they fit, use the tensor cores, and do not spill where it counts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from cltt.loss import triton_kernels  # noqa: E402

POINTERS = {"spans": "*i64", "out": "*fp32", "scale": "*fp32"}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
PRODUCT = {80: "mma.sync", 86: "mma.sync", 90: "wgmma.mma_async"}
# CUDA C++ programming guide, technical specifications per compute capability: shared memory of a thread block.
SHARED_KIB = {80: 163, 86: 99, 90: 227}


def compile_kernel(kernel, arch: int, dtype: torch.dtype, D: int, unshifted: bool):  # type: ignore[no-untyped-def]
    """The compiled kernel with all features on, arguments aligned as torch's are."""
    blocks = triton_kernels._blocks(D, dtype, roomy=SHARED_KIB[arch] > 99)
    constants = {"T": 5, "D": D, "BM": blocks.bm, "BN": blocks.bn, "DB": blocks.db, "RESIDENT": blocks.resident}
    constants |= {
        "HAS_SPANS": True,
        "UNSHIFTED": unshifted,
        "WITH_HITS": True,
        "DC": triton_kernels._output_width(blocks),
    }
    types = POINTERS | {"v": "*" + TYPES[dtype]}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n not in constants}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def spilled_bytes(ptx: str, arch: int, folder: Path) -> int:
    """Bytes of registers that ptxas moves to memory."""
    path = folder / "kernel.ptx"
    path.write_text(ptx)
    ptxas = Path(triton.__path__[0]) / "backends/nvidia/bin/ptxas"
    name = "sm_90a" if arch == 90 else f"sm_{arch}"
    command = [ptxas, "-v", "--gpu-name", name, path, "-o", folder / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"(\d+) bytes spill stores", done.stderr)[1])  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 86, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("D", [3, 64, 128, 256, 512])
def test_kernels_compile_and_fit(
    arch: int, dtype: torch.dtype, D: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for kernel in (triton_kernels._row_kernel, triton_kernels._weighted_kernel):
        for unshifted in (True, False):
            compiled = compile_kernel(kernel, arch, dtype, D, unshifted)
            assert compiled.metadata.shared <= SHARED_KIB[arch] * 1024
            assert PRODUCT[arch] in compiled.asm["ptx"]
            if dtype == torch.bfloat16 and arch == 90:
                assert spilled_bytes(compiled.asm["ptx"], arch, tmp_path) == 0
