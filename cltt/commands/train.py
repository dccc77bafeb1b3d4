"""The face of training: ``cltt train``, or ``train.py``."""

from __future__ import annotations

import argparse
import os
import signal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from cltt import cli
from cltt.config import TrainSettings
from cltt.config.old_flags import add_old_flags, take_old_flags
from cltt.errors import CLTTError

DESCRIPTION = "Train an encoder by contrastive learning through time on a folder of clips."


def parse(argv: list[str] | None = None, prog: str = "train.py") -> TrainSettings:
    """Settings from flags."""
    parser = cli.Parser(prog=prog, description=DESCRIPTION)
    for name, settings in TrainSettings.groups().items():
        cli.add_settings(parser.add_argument_group(name), settings)
    add_old_flags(parser)
    args = parser.parse_args(argv)
    take_old_flags(args, partial(cli.is_given, parser, argv))
    if args.checkpoint_path and not cli.is_given(parser, argv, "normalise"):
        args.normalise = _normalise_of(args, args.normalise if args.resume else None)
    made: dict[str, Any] = {name: cli.settings_from(args, group) for name, group in TrainSettings.groups().items()}
    return TrainSettings(**made)


def _normalise_of(args: argparse.Namespace, otherwise: str | None) -> str:
    """How pixels entered the network whose weights a run starts from.

    A run that is gone on with no longer needs them: ``otherwise``, if they cannot be read.
    """
    from cltt.models.weights import read_weights  # imports torch, see main

    try:
        return read_weights(Path(args.checkpoint_path), args.backbone, image_size=args.image_size).normalise
    except CLTTError:
        if otherwise is None:
            raise
        return otherwise


def leave_when_asked() -> None:
    """Until the trainer minds SIGUSR1 and SIGTERM, there is nothing to save: exit at once, asking to be run again."""
    for name in ("SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped on request before the run began\n")
    os._exit(cli.EXIT_REQUEUE)


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """Train, or go on with a run; the exit status says how it ended (see ``train.py``)."""
    leave_when_asked()
    settings = parse(argv, prog)
    from cltt.training.run import train  # torch takes seconds to import: --help and refused flags should not wait

    return train(settings, prog=prog)
