"""The shape of a checkpoint: every name in it with its type, so that a change of layout shows as a changed line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


def listing(value: Any, name: str = "") -> Iterator[str]:
    """A line for each leaf of nested dicts and lists: its path, its type and, for a tensor, dtype and shape.

    A list stands for its first item: how many there are depends on the run.
    """
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from listing(value[key], f"{name}/{key}")
    elif isinstance(value, (list, tuple)) and value:
        yield from listing(value[0], f"{name}/*")
    elif isinstance(value, torch.Tensor):
        shape = "generator" if value.dtype == torch.uint8 else list(value.shape)
        yield f"{name} {str(value.dtype).removeprefix('torch.')} {shape}"
    else:
        yield f"{name} {type(value).__name__}"
