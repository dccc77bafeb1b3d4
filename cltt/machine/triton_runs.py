"""Whether Triton works here, found by running a kernel."""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache


@lru_cache(maxsize=1)
def why_triton_fails() -> str:
    """Why Triton's kernels cannot run on this CUDA device, as the end of a sentence; "" if they can.

    Triton compiles a module with gcc and Python.h when its first kernel starts, and a node may lack either. A warning
    is logged once, and plain torch is used.
    """
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    try:
        _run_one()
    except Exception as error:  # a missing compiler, header or driver may raise anything
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = f"cannot run here ({lines[-1][:200]}); it needs gcc and Python's headers on this node"
        logging.getLogger(__name__).warning(f"triton {why}; plain torch is used, which is slower")
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
        raise RuntimeError("a kernel ran without effect")
