"""The command ``cltt train``, which is also ``train.py``."""

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
    """The settings that flags give; exits with a sentence if they cannot work."""
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
    """The pixel normalisation of the weights that a run starts from, or of the run itself if it is resumed."""
    from cltt.checkpoint import SETTINGS_FILE, list_checkpoints  # these import torch: see main
    from cltt.models.weights import read_weights

    start = settings.checkpoint
    assert start.checkpoint_path is not None
    if start.resume and list_checkpoints(settings.run_dir):
        with suppress(OSError, ValueError, LookupError, TypeError):  # training gives the error
            return str(json.loads((settings.run_dir / SETTINGS_FILE).read_bytes())["data"]["normalise"])
        return settings.data.normalise
    return read_weights(
        Path(start.checkpoint_path),
        settings.model.backbone,
        image_size=settings.data.image_size,
        prefix=start.weights_prefix,
    ).normalise


def leave_when_asked() -> None:
    """Exit at once on SIGUSR1 or SIGTERM and ask to be started again; once it trains, the trainer saves first."""
    for name in ("SIGUSR1", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped on request before the run began\n")
    os._exit(EXIT_REQUEUE)


def main(argv: list[str] | None = None, prog: str = "train.py") -> int:
    """Train, or resume a run; returns the exit status (see ``train.py``)."""
    leave_when_asked()
    settings = parse(argv, prog)
    from cltt.training.run import train  # torch takes seconds to import: --help and errors in flags need not wait

    return train(settings, prog=prog)
