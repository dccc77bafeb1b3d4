"""Whether Triton can run its kernels here, found out by running one."""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache


@lru_cache(maxsize=1)
def why_triton_fails() -> str:
    """Why Triton's kernels cannot run on this CUDA device, as the end of a sentence; empty if they can.

    Triton compiles a driver module with gcc against Python.h when its first kernel starts; a node may lack either. That
    is a warning, once, as plain torch takes over.
    """
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    try:
        _run_one()
    except Exception as error:  # whatever a compiler, a header or a driver that is missing raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = f"cannot run here ({lines[-1][:200]}); it needs gcc and Python's headers on this node"
        logging.getLogger(__name__).warning(f"triton {why}; plain torch does the work of its kernels, more slowly")
        return why
    return ""


def _run_one() -> None:
    import torch
    import triton
    import triton.language as tl

    @triton.jit
    def store_one(x):  # type: ignore[no-untyped-def]
        tl.store(x, 1)

    x = torch.zeros(1, dtype=torch.int32, device="cuda")
    store_one[(1,)](x)
    if x.item() != 1:
        raise RuntimeError("a kernel ran and did nothing")
