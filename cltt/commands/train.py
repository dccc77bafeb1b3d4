"""The face of training: ``cltt train``, or ``train.py``."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from cltt import cli
from cltt.config import TrainSettings
from cltt.errors import EXIT_REQUEUE, CLTTError

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
    """How pixels entered the network whose weights a run starts from.

    A run that is gone on with no longer needs these: the default, if they cannot be read.
    """
    from cltt.models.weights import read_weights  # imports torch, see main

    assert settings.checkpoint.checkpoint_path is not None
    path, size = Path(settings.checkpoint.checkpoint_path), settings.data.image_size
    try:
        return read_weights(path, settings.model.backbone, image_size=size).normalise
    except CLTTError:
        if not settings.checkpoint.resume:
            raise
        return settings.data.normalise


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
