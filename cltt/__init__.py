"""cltt: data pipeline and trainer for contrastive learning through time.

Importing this package needs neither torch nor DALI: each public name is loaded when first touched.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_HOME = {
    "build_shards": "cltt.packing.builder",
    "BuildReport": "cltt.packing.report",
    "ShardDataset": "cltt.shards.dataset",
    "WindowIndex": "cltt.sampling.windows",
    "EpochPlan": "cltt.sampling.epoch_plan",
    "WindowLoader": "cltt.loader.loader",
    "TemporalInfoNCE": "cltt.loss.infonce",
    "positive_mask": "cltt.loss.reference",
}
__all__ = [
    "BuildReport",
    "EpochPlan",
    "ShardDataset",
    "TemporalInfoNCE",
    "WindowIndex",
    "WindowLoader",
    "build_shards",
    "positive_mask",
]

if TYPE_CHECKING:
    from cltt.loader.loader import WindowLoader
    from cltt.loss.infonce import TemporalInfoNCE
    from cltt.loss.reference import positive_mask
    from cltt.packing.builder import build_shards
    from cltt.packing.report import BuildReport
    from cltt.sampling.epoch_plan import EpochPlan
    from cltt.sampling.windows import WindowIndex
    from cltt.shards.dataset import ShardDataset


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cltt' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
