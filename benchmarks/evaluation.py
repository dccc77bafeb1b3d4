"""How fast evaluation computes features: images per second against the network alone, from data already on hand.

``python -m benchmarks.evaluation [--quick]``. CIFAR's case: 32x32 images out of an archive through ResNet-18, 256 a
batch, on all cores. The bare loop calls the encoder on one ready float batch again and again; evaluation reads, frames,
normalises and batches each image as well. Wanted: at least 0.8 of the bare loop's rate. Also JPEG files at 224 pixels,
which have to be decoded. Turns alternate, so that a busy machine slows both alike. 5,000 images stand for 50,000:
nothing but the features themselves grows with the number.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import harness
from cltt import cli
from cltt.evaluation.features import extract_features
from cltt.evaluation.images import ArraySource, FileSource, Images, Source
from cltt.models import build_encoder
from tests.helpers.data import make_clips

BATCH = 256
WANTED = 0.8
CPU = torch.device("cpu")
Row = dict[str, Any]


def cifar_like(count: int) -> Images:
    """``count`` random 32x32 images in memory, as an archive is once it is opened."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images_of(ArraySource("cifar", pixels), count)


def files(folder: Path, count: int) -> Images:
    """``count`` JPEG files of 340x256 pixels."""
    make_clips(folder, {"a": count}, height=256, width=340)
    return images_of(FileSource(folder, sorted(f"a/{path.name}" for path in (folder / "a").iterdir())), count)


def images_of(source: Source, count: int) -> Images:
    return Images(np.arange(count), np.zeros(count, np.int64), np.arange(count), source)


@torch.inference_mode()
def bare_loop(encoder: nn.Module, batch: torch.Tensor, count: int) -> None:
    """The encoder alone on as many images, the last batch smaller."""
    for start in range(0, count, BATCH):
        encoder(batch[: min(BATCH, count - start)])


def measure(name: str, images: Images, image_size: int, rounds: int) -> Row:
    """Images per second of both, and their ratio round by round."""
    encoder = build_encoder("resnet18").eval()
    batch = torch.randn(BATCH, 3, image_size, image_size)
    calls: dict[str, Callable[[], Any]] = {
        "bare": lambda: bare_loop(encoder, batch, len(images)),
        "evaluation": lambda: extract_features(encoder, images, image_size=image_size, device=CPU, batch_size=BATCH),
    }
    timings = harness.time_interleaved(calls, rounds=rounds, min_seconds=0)
    share = harness.ratio(timings["bare"], timings["evaluation"])
    rates = {f"{call}_images_per_s": len(images) / timing.median for call, timing in timings.items()}
    return {"case": name, "images": len(images), "image_size": image_size, **rates, **share.columns()}


def main() -> int:
    args = harness.parser("evaluation", "Features of labelled images against the network alone.").parse_args()
    name = "evaluation_quick" if args.quick else "evaluation"
    rounds = 3 if args.quick else 5
    rows = [measure("CIFAR", cifar_like(1_024 if args.quick else 5_000), 32, rounds)]
    with tempfile.TemporaryDirectory() as folder:
        rows.append(measure("JPEG files", files(Path(folder), 64 if args.quick else 128), 224, rounds))
    harness.write_csv(name, rows)
    harness.print_table(rows, "Share of the bare loop's rate: median, 20th and 80th percentile")
    reached = rows[0]["median"] >= WANTED
    print(f"CIFAR at {WANTED} or more of the bare loop: {'yes' if reached else 'NO'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(cli.run(main, "benchmarks.evaluation"))
