"""Random weights on COIL-20 by the older script's protocol and by ours, and which part makes the difference.

``python -m benchmarks.older_coil [--quick] [--data FOLDER]``. One encoder per seed, ResNet-18 as it is drawn, at 128
and 224 pixels; test accuracy of four linear heads on its features:

- ``older``: the older script's protocol, whole (``cltt evaluate --protocol older-coil``);
- ``older_standardised``: the same splits, pixels, SGD and epochs, on features less their mean, over their deviation;
- ``closed``: the same splits and pixels, our probe (logistic regression to convergence on standardised features);
- ``ours``: our splits and our probe on the same pixels. ``cltt evaluate`` resizes by another filter; the column
  ``ours_own_pixels`` of the quick run has its pixels, too.

``--quick`` is one seed at 64 pixels, and writes ``older_coil_quick.csv``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from cltt import cli
from cltt.errors import SettingsError
from cltt.evaluation.datasets import LabelledData, open_labelled
from cltt.evaluation.evaluator import Features
from cltt.evaluation.features import extract_features
from cltt.evaluation.probe import choose_linear_probe
from cltt.evaluation.protocols.older_coil import fit_older_head, open_older_coil
from cltt.models.encoders import Encoder, build_encoder
from tests.helpers.data import SHARED

SEEDS = (0, 1, 2)
SIZES = (128, 224)
CPU = torch.device("cpu")
Row = dict[str, Any]
Labelled = tuple[torch.Tensor, torch.Tensor]


def features_of(encoder: Encoder, data: LabelledData, size: int) -> Features:
    return {
        part: extract_features(encoder, images, image_size=size, device=CPU, batch_size=64)
        for part, images in data.parts.items()
    }


def labelled(features: Features, data: LabelledData) -> dict[str, Labelled]:
    return {part: (values, torch.from_numpy(data.parts[part].labels)) for part, values in features.items()}


def by_older_head(parts: dict[str, Labelled], classes: int, seed: int) -> float:
    return fit_older_head(*parts["train"], classes, seed).score(*parts["test"]).top1


def by_our_probe(parts: dict[str, Labelled], classes: int) -> float:
    return choose_linear_probe(parts["train"], parts["val"], classes).score(*parts["test"]).top1


def standardised(parts: dict[str, Labelled]) -> dict[str, Labelled]:
    mean, deviation = parts["train"][0].mean(0), parts["train"][0].std(0).clamp_min(1e-6)
    return {part: ((x - mean) / deviation, y) for part, (x, y) in parts.items()}


def same_features(by_part: Features, older: LabelledData, ours: LabelledData) -> Features:
    """The features of the same files, in our parts."""
    row_of = {path: row for part in by_part for path, row in zip(_paths(older, part), by_part[part], strict=True)}
    return {part: torch.stack([row_of[path] for path in _paths(ours, part)]) for part in ours.parts}


def _paths(data: LabelledData, part: str) -> list[str]:
    return data.source.places(data.parts[part].ids).path


def measure(seed: int, size: int, older: LabelledData, ours: LabelledData, *, own_pixels: bool) -> Row:
    torch.manual_seed(seed)
    encoder = build_encoder("resnet18")
    classes = len(ours.label_names)
    by_part = features_of(encoder, older, size)
    theirs = labelled(by_part, older)
    train = theirs["train"][0]
    row: Row = {
        "seed": seed,
        "size": size,
        "images": sum(len(part) for part in older.parts.values()),
        "feature_mean": train.mean().item(),
        "feature_deviation": train.std(0).mean().item(),
        "older": by_older_head(theirs, classes, seed),
        "older_standardised": by_older_head(standardised(theirs), classes, seed),
        "closed": by_our_probe(theirs, classes),
        "ours": by_our_probe(labelled(same_features(by_part, older, ours), ours), classes),
    }
    if own_pixels:
        row["ours_own_pixels"] = by_our_probe(labelled(features_of(encoder, ours, size), ours), classes)
    return row


def main() -> int:
    parser = harness.parser("older_coil", "Random weights on COIL-20 by the older script's protocol and by ours.")
    parser.add_argument(
        "--data", type=Path, default=SHARED / "coil20", help="folder with one folder of views per object"
    )
    args = parser.parse_args()
    if not args.data.is_dir():
        raise SettingsError(f"no folder {args.data}; give COIL-20's views, one folder per object, with --data")
    name, sizes, seeds = ("older_coil_quick", (64,), SEEDS[:1]) if args.quick else ("older_coil", SIZES, SEEDS)
    rows: list[Row] = []
    older, ours = open_older_coil(args.data), open_labelled(args.data)
    for size in sizes:
        for seed in seeds:
            rows.append(measure(seed, size, older, ours, own_pixels=args.quick))
            harness.print_table(rows[-1:])
            harness.write_csv(name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.older_coil"))
