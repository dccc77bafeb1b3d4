"""What hard negatives, a memory and few clips per block do, and which window teaches most, in short runs.

``python -m benchmarks.experiments [--quick] [--resume] [--data FOLDER]`` makes three studies (:mod:`benchmarks.arms`),
three seeds each:

- ``harder``, on COIL-20: training as in ``time_teaches.py``, and the same with ``--hard-negatives 1``, with
  ``--memory 256`` and with ``--clips-per-block 4``;
- ``harder_demo``, the same on the demo's clips;
- ``windows``, on COIL-20: other ``--window-size``, ``--frame-step`` and ``--window-stride``, at a constant learning
  rate. ``abx_step_4`` is ABX across clips on windows of two frames, four apart, the same for all runs; ``abx_across``
  is on the run's own windows. All clips are trained on.

On COIL-20 a small ResNet (timm's ``test_resnet``, 0.4 million weights; extra ``timm``), 16 windows per batch, one epoch
of the arm "time": 85 steps. On the demo's clips, of which it learns nothing in so few steps, ResNet-18, 32 windows per
batch, two epochs: about 60 steps. ``one_shot``: nearest neighbour by cosine, one labelled image per class, mean of ten
draws. ``probe``: a linear classifier; on COIL-20 fitted on four views per object, mean of ten draws.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from benchmarks.arms import COIL, DEMO, TIME, UNTRAINED, Study, parse, run_study
from cltt import cli

BACKBONE = "timm:test_resnet"
HARDER = Study(
    name="harder",
    arms={
        UNTRAINED: {},
        TIME: {},
        "hard negatives": {"model": {"hard_negatives": 1.0}},
        "memory": {"model": {"memory": 256}},
        "clips per block": {"data": {"clips_per_block": 4}},
    },
    measures=("one_shot", "probe"),
    epochs={COIL: 1},
    backbone=BACKBONE,
    batch_size=16,
)
HARDER_DEMO = replace(HARDER, name="harder_demo", epochs={DEMO: 2}, backbone="resnet18", batch_size=32)


def window(size: int, step: int | str, stride: int) -> dict[str, dict[str, Any]]:
    windows = {"window_size": size, "frame_step": step, "window_stride": stride}
    return {"windows": windows, "optim": {"schedule": "constant"}}


WINDOWS = Study(
    name="windows",
    arms={
        f"T {size}, step {step}, stride {stride}": window(size, step, stride)
        for size, step, stride in ((5, 1, 1), (5, 4, 1), (5, 1, 4), (2, 1, 1), (2, 4, 1), (2, 15, 1), (2, "1-15", 1))
    },
    measures=("one_shot", "probe", "abx_step_1", "abx_step_4", "abx_step_15", "abx_across", "abx_across_before"),
    epochs={COIL: 1},
    backbone=BACKBONE,
    batch_size=16,
)


def main() -> int:
    args = parse("experiments", "Hard negatives, memory, few clips per block; and which window teaches most.")
    for study in (HARDER, HARDER_DEMO, WINDOWS):
        run_study(study, args)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.experiments"))
