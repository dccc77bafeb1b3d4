"""Flags of the older script ``train_simclr.py``: they work, or the error says which flag to give.

Each setting names the flags that it replaces. docs/older_script.md lists them; ``--help`` does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cltt.config.fields import MANY, require, require_within


@dataclass(frozen=True)
class Refused:
    """Flags that are refused, since their values mean something else here.

    Attributes:
        says: what to do instead, by flag. A flag that ends in ``*`` stands for all flags that begin with it.
    """

    says: Mapping[str, str]

    def add(self, parser: argparse._ActionsContainer) -> None:
        for name, says in self.says.items():
            parser.add_argument(f"--{name}", action=_Refuse, dest="old_refused", const=says, nargs="?", **_HIDDEN)

    def take(self, args: argparse.Namespace) -> None:
        """Raise SettingsError, which names all of these flags that were given."""
        flags: dict[str, list[str]] = {}
        for flag, says in getattr(args, "old_refused", {}).items():
            flags.setdefault(says, []).append(flag)
        answers = "; ".join(f"{', '.join(names)}: {says}" for says, names in flags.items())
        require(not flags, f"flags of the older script, and what to do here: {answers}")


class _Refuse(argparse.Action):
    def __call__(self, parser: Any, args: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        args.old_refused = {**getattr(args, "old_refused", {}), str(option_string): str(self.const)}


class ShortClipRule:
    """Two switches and a number that ``--short-clip-windows`` replaces."""

    says: Mapping[str, str] = {
        "single-window-short-clips": "--short-clip-windows 2, or the number of --short-clip-window-threshold; "
        "it was the default there and is not here",
        "allow-multiple-short-windows": "--short-clip-windows 0, the default",
        "short-clip-window-threshold": "--short-clip-windows N",
    }
    default_threshold = 2

    def add(self, parser: argparse._ActionsContainer) -> None:
        single, several, threshold = (f"--{name}" for name in self.says)
        parser.add_argument(single, dest="old_single", action="store_true", **_HIDDEN)
        parser.add_argument(several, dest="old_single", action="store_false", **_HIDDEN)
        parser.add_argument(threshold, dest="old_threshold", type=int, **_HIDDEN)

    def take(self, args: argparse.Namespace) -> None:
        """Set ``short_clip_windows`` in ``args``; SettingsError if the new flag is given too."""
        single, threshold = (vars(args).pop(name, None) for name in ("old_single", "old_threshold"))
        if single is None and threshold is None:
            return
        require(
            not hasattr(args, "short_clip_windows"),
            "--short-clip-windows is given together with flags of the older script that it replaces; leave those out",
        )
        if threshold is not None:
            require_within("--short-clip-window-threshold", threshold, 1, MANY)
        args.short_clip_windows = 0 if single is False else (threshold or self.default_threshold)


_HIDDEN: dict[str, Any] = {"help": argparse.SUPPRESS, "default": argparse.SUPPRESS}

SHORT_CLIPS = ShortClipRule()
OBJECT_FOCUS = Refused({"use-object-focus": "give --region center --region-effect blur"})
TWO_VIEWS = Refused(
    {
        "two-view-offset": "give --window-size 2 --frame-step N with N = (window_size - 1) * frame_step + K, the "
        "distance of the two views of --two-view-offset K, with the window size and step given there"
    }
)
LINEAR_EVALUATION = Refused(
    {
        "linear-eval-every": "give --eval-data FOLDER and --eval-every N; instead of 0 leave out --eval-data",
        "linear-eval-epochs": "the classifier is fitted to convergence; for N epochs of SGD, cltt evaluate --probe sgd "
        "--probe-epochs N",
        "linear-eval-batch-size": "give cltt evaluate --probe sgd --probe-batch-size N",
        "linear-eval-lr": "give cltt evaluate --probe sgd --probe-lr RATE, the old rate * 256 / batch size",
        "linear-eval-weight-decay": "leave it out: the penalty is chosen on the val part",
        "linear-eval-max-batches": "give cltt evaluate --max-images N, images per part",
        "linear-eval-train-fraction": "leave it out: folders train, val and test are kept, and data without them are "
        "split 60/20/20",
        "linear-eval-split-seed": "leave it out: the split is the same in every run",
        "linear-eval-*": "leave it out: cltt evaluate has --probe sgd and --probe-epochs, --probe-lr, "
        "--probe-batch-size",
        "cifar-dataset": "give --eval-data DIR/cifar-10-batches-py or DIR/cifar-100-python",
        "imagenet-data-dir": "give --eval-data DIR, with DIR/train and DIR/val",
        "cifar-data-dir": "give --eval-data DIR",
        "cifar-download": "nothing is downloaded: unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz in a folder "
        "and give --eval-data FOLDER",
    }
)
WANDB = Refused(
    dict.fromkeys(
        ("wandb", "wandb-project", "wandb-entity", "wandb-name", "wandb-tags", "wandb-mode"),
        "nothing is sent to a server: give --csv-log or --tensorboard, which write files to the run's folder",
    )
)
