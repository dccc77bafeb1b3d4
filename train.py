#!/usr/bin/env python3
"""Train an encoder by contrastive learning through time on a folder of clips; ``python train.py --help``.

    python train.py --root-dir FRAMES --window-size 5 --frame-step 10 --checkpoint-dir checkpoints/run --csv-log
    torchrun --nproc-per-node 4 train.py --shards shards/NAME --checkpoint-dir checkpoints/run --resume

Exit status: 0 complete, 2 refused (one sentence says why), 85 stopped by SIGUSR1 or SIGTERM with a checkpoint saved,
130 the same by Ctrl-C (a second Ctrl-C stops at once, without a checkpoint).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from cltt import cli
from cltt.config import TrainSettings


def parse(argv: list[str] | None = None) -> TrainSettings:
    """Settings from flags."""
    assert __doc__ is not None
    parser = cli.Parser(prog="train.py", description=__doc__.splitlines()[0])
    for name, settings in TrainSettings.groups().items():
        cli.add_settings(parser.add_argument_group(name), settings)
    args = parser.parse_args(argv)
    made: dict[str, Any] = {name: cli.settings_from(args, group) for name, group in TrainSettings.groups().items()}
    return TrainSettings(**made)


def leave_when_asked() -> None:
    """Until the trainer minds SIGUSR1 and SIGTERM, there is nothing to save: exit at once, asking to be run again."""
    for name in ("SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: os._exit(cli.EXIT_REQUEUE))


def main() -> int:
    leave_when_asked()
    settings = parse()
    from cltt.training import run  # torch takes seconds to import: --help and refused flags should not wait for it

    return run.train(settings)


if __name__ == "__main__":
    sys.exit(cli.run(main, "train.py"))
