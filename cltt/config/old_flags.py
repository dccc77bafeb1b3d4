"""Flags of the older script ``train_simclr.py``, as they stand in people's batch files: they work, or say what does.

The table is shown in docs/old_names.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from cltt.config.fields import MANY, require, require_within

# What each flag says, after its name: what does its work here. They are refused, as their values mean something else.
SUCCESSORS = {
    "use-object-focus": "give --region center --region-effect blur",
    "two-view-offset": "two views K frames apart are a window of two: give --window-size 2 --frame-step K",
    "linear-eval-every": "give --eval-data FOLDER and --eval-every N; 0 is no --eval-data",
    "linear-eval-epochs": "the classifier is fitted to the end; for N epochs of SGD, cltt evaluate --probe sgd "
    "--probe-epochs N",
    "linear-eval-batch-size": "give cltt evaluate --probe sgd --probe-batch-size N",
    "linear-eval-lr": "give cltt evaluate --probe sgd --probe-lr RATE, the rate for 256 images a step",
    "linear-eval-weight-decay": "leave it out: the penalty is chosen on the val part",
    "linear-eval-max-batches": "give cltt evaluate --max-images N, images of a part",
    "linear-eval-train-fraction": "leave it out: a tenth of train is the val part, and folders train, val and test are "
    "kept",
    "linear-eval-split-seed": "leave it out: the split is the same in every run",
    "cifar-dataset": "give --eval-data DIR/cifar-10-batches-py or DIR/cifar-100-python",
    "cifar-data-dir": "give --eval-data DIR",
    "cifar-download": "nothing is downloaded: unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz in a folder and "
    "give --eval-data FOLDER",
    **dict.fromkeys(
        ("wandb", "wandb-project", "wandb-entity", "wandb-name", "wandb-tags", "wandb-mode"),
        "nothing is sent anywhere: give --csv-log or --tensorboard, whose files lie in the run's folder",
    ),
}
# What each flag that works does.
WORKING = {
    "single-window-short-clips": "--short-clip-windows 2, or what --short-clip-window-threshold says; there it was the "
    "default, here none is",
    "allow-multiple-short-windows": "--short-clip-windows 0, the default",
    "short-clip-window-threshold": "--short-clip-windows N",
}
DEFAULT_THRESHOLD = 2


class _Refuse(argparse.Action):
    """Ends the parsing with what does the flag's work here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        name = self.option_strings[0]
        parser.error(f"{name} is a flag of the older script: {SUCCESSORS[name.removeprefix('--')]}")


def add_old_flags(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` understand them; its help leaves them out."""
    for name in SUCCESSORS:
        parser.add_argument(f"--{name}", action=_Refuse, nargs="?", help=argparse.SUPPRESS)
    for name, value in (("single-window-short-clips", True), ("allow-multiple-short-windows", False)):
        parser.add_argument(
            f"--{name}", dest="old_short_rule", action="store_const", const=value, help=argparse.SUPPRESS
        )
    parser.add_argument("--short-clip-window-threshold", dest="old_threshold", type=int, help=argparse.SUPPRESS)


def take_old_flags(args: argparse.Namespace, is_given: Callable[[str], bool]) -> None:
    """Put into ``args`` what the flags that work say; SettingsError where, by ``is_given``, the new name is there."""
    rule, threshold = args.old_short_rule, args.old_threshold
    if rule is None and threshold is None:
        return
    require(
        not is_given("short_clip_windows"),
        "--short-clip-windows is given, and flags of the older script that say the same; give one of them",
    )
    if threshold is not None:
        require_within("--short-clip-window-threshold", threshold, 1, MANY)
    args.short_clip_windows = 0 if rule is False else (threshold or DEFAULT_THRESHOLD)
