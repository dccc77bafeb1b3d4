"""What a part of the GPU benchmark is told, and how it hands its figures to the process that keeps them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness

if TYPE_CHECKING:
    import torch

MARK = "figure: "  # begins a line of a part's output that is a row of the table


@dataclass(frozen=True)
class Bench:
    """What all parts are told.

    Attributes:
        device: to measure.
        quick: at toy size.
        work: folder that the parts share: frames that the first one draws serve the others.
    """

    device: torch.device
    quick: bool
    work: Path

    def record(self, section: str, case: str, metric: str, values: Sequence[float] | float | str, unit: str) -> None:
        """Print one figure: the median and the spread of ``values``."""
        row: dict[str, Any] = {"section": section, "case": case, "metric": metric, "unit": unit}
        if isinstance(values, (str, float, int)):
            row["value"] = values
        else:
            row["value"] = statistics.median(values)
            row["p20"], row["p80"] = harness.percentile(values, 20), harness.percentile(values, 80)
        print(MARK + json.dumps(row), flush=True)

    def sync(self) -> None:
        if self.device.type == "cuda":
            import torch  # not above: the process that starts the parts does without

            torch.cuda.synchronize(self.device)


def figures(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The rows that a part printed."""
    return [json.loads(line.removeprefix(MARK)) for line in lines if line.startswith(MARK) and line.endswith("}\n")]
