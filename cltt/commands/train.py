"""The face of training: ``cltt train``, or ``train.py``."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from cltt import cli
from cltt.config import TrainSettings
from cltt.errors import EXIT_REQUEUE

DESCRIPTION = "Train an encoder by contrastive learning through time on a folder of clips."


def parse(argv: list[str] | None = None, prog: str = "train.py") -> TrainSettings:
    """Settings from flags."""
    parser = cli.Parser(prog=prog, description=DESCRIPTION)
    groups = TrainSettings.groups()
    for name, group in groups.items():
        cli.add_settings(parser.add_argument_group(name), group)
    args = parser.parse_args(argv)
    made: dict[str, Any] = {name: cli.settings_from(args, group) for name, group in groups.items()}
    settings = TrainSettings(**made)
    if settings.checkpoint.checkpoint_path is None or "normalise" in args:
        return settings
    return replace(settings, data=replace(settings.data, normalise=_normalise_of(settings)))


def _normalise_of(settings: TrainSettings) -> str:
    """How pixels entered the network whose weights a run starts from or, if it goes on with its own, the run's."""
    from cltt.checkpoint import SETTINGS_FILE, list_checkpoints  # imports torch, see main
    from cltt.models.weights import read_weights

    start = settings.checkpoint
    assert start.checkpoint_path is not None
    if start.resume and list_checkpoints(settings.run_dir):
        with suppress(OSError, ValueError, LookupError, TypeError):  # the run itself says if it cannot go on
            return str(json.loads((settings.run_dir / SETTINGS_FILE).read_bytes())["data"]["normalise"])
        return settings.data.normalise
    return read_weights(
        Path(start.checkpoint_path),
        settings.model.backbone,
        image_size=settings.data.image_size,
        prefix=start.weights_prefix,
    ).normalise


def leave_when_asked() -> None:
    """Until the trainer minds SIGUSR1 and SIGTERM, there is nothing to save: exit at once, asking to be run again."""
    for name in ("SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped on request before the run began\n")
    os._exit(EXIT_REQUEUE)


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """Train, or go on with a run; the exit status says how it ended (see ``train.py``)."""
    leave_when_asked()
    settings = parse(argv, prog)
    from cltt.training.run import train  # torch takes seconds to import: --help and refused flags should not wait

    return train(settings, prog=prog)
