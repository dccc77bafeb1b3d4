"""What hard negatives, a memory and few clips per block do, and which window teaches most, in short runs.

``python -m benchmarks.experiments [--quick] [--resume] [--data FOLDER]`` makes two studies (:mod:`benchmarks.arms`):

- ``harder``, on COIL-20 and the demo's clips, three seeds: training as in ``time_teaches.py``, and the same with
  ``--hard-negatives 1``, with ``--memory 256`` and with ``--clips-per-block 4``;
- ``windows``, on COIL-20, one seed: other ``--window-size``, ``--frame-step`` and ``--window-stride``, at a constant
  learning rate.

A small ResNet (timm's ``test_resnet``, 0.4 million weights; extra ``timm``) on the CPU, 16 windows per batch, one epoch
of the arm "time": 85 steps on COIL-20, about 60 on the demo's clips. ``one_shot``: nearest neighbour by cosine, one
labelled image per class, mean of ten draws. ``probe``: a linear classifier; on COIL-20 fitted on four views per object,
mean of ten draws.
"""

from __future__ import annotations

import sys
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
    epochs={COIL: 1, DEMO: 1},
    backbone=BACKBONE,
    batch_size=16,
)


def window(size: int, step: int | str, stride: int) -> dict[str, dict[str, Any]]:
    windows = {"window_size": size, "frame_step": step, "window_stride": stride}
    return {"windows": windows, "optim": {"schedule": "constant"}}


WINDOWS = Study(
    name="windows",
    arms={
        f"T {size}, step {step}, stride {stride}": window(size, step, stride)
        for size, step, stride in ((5, 1, 1), (5, 4, 1), (5, 1, 4), (2, 1, 1), (2, 4, 1), (2, 15, 1), (2, "1-15", 1))
    },
    measures=("one_shot", "probe", "abx_within", "abx_within_before", "abx_across", "abx_across_before"),
    epochs={COIL: 1},
    backbone=BACKBONE,
    batch_size=16,
    seeds=(0,),
)


def main() -> int:
    args = parse("experiments", "Hard negatives, memory, few clips per block; and which window teaches most.")
    for study in (HARDER, WINDOWS):
        run_study(study, args)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.experiments"))
