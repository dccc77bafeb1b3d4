"""What the sections of the GPU benchmark share: sizes, data and the growing record."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from cltt.machine.gpus import hardware_jpeg_engines

FIELDS = ("section", "case", "metric", "value", "p20", "p80", "unit")


@dataclass
class Bench:
    """What all sections share: sizes, data, and the growing record."""

    device: torch.device
    quick: bool
    out: Path
    work: Path
    deadline: float
    records: list[dict[str, Any]] = field(default_factory=list)

    def record(self, section: str, case: str, metric: str, values: Sequence[float] | float | str, unit: str) -> None:
        """Add one figure (median and spread of ``values``), print it, and write all files anew."""
        row: dict[str, Any] = {"section": section, "case": case, "metric": metric, "unit": unit, "p20": "", "p80": ""}
        if isinstance(values, (str, float, int)):
            row["value"] = values
        else:
            row["value"] = statistics.median(values)
            row["p20"], row["p80"] = harness.percentile(values, 20), harness.percentile(values, 80)
        self.records.append(row)
        shown = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
        print(f"{section:<9} {case:<44} {metric:<22} {shown:>10} {unit}", flush=True)
        self.write()

    def write(self) -> None:
        machine = {**harness.machine_info(), **device_info(self.device)} if len(self.records) == 1 else self.machine
        self.machine = machine
        with (self.out / "gpu.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*FIELDS, *machine], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**row, **machine} for row in self.records)
        (self.out / "gpu.json").write_text(json.dumps({"machine": machine, "figures": self.records}, indent=1) + "\n")

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def device_info(device: torch.device) -> dict[str, str]:
    """GPU name, CUDA version and JPEG engines, as strings."""
    if device.type != "cuda":
        return {"device": "cpu", "cuda": "none", "jpeg_engines": "none"}
    engines = hardware_jpeg_engines()
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "jpeg_engines": "unknown" if engines is None else str(engines),
    }
