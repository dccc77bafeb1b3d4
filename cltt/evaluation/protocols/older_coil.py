"""The COIL evaluation of the script before this project: its splits, pixels and linear head, for numbers to compare.

Its accuracies and ours are not of one scale: ``docs/older_script.md`` says why.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from cltt.errors import DataError, SettingsError
from cltt.evaluation.datasets import LabelledData
from cltt.evaluation.images import SUFFIXES, FileSource, Images
from cltt.evaluation.probe import LinearProbe
from cltt.frames.decode_cpu import FrameDecoder

NAME = "older-coil"
IMAGE_SIZE = 224
NORMALISE = "imagenet"
SPLIT_SEED = HEAD_SEED = 42
EPOCHS, BATCH_SIZE = 20, 64
_FLAT = re.compile(r"obj(\d+)__\d+\.\w+", re.IGNORECASE)


class PilSource(FileSource):
    """Image files as torchvision frames them: RGB, short side resized to S by PIL (bilinear), the centre kept."""

    def read(self, ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        from torchvision.transforms import CenterCrop, Compose, Resize  # slow to import, and this protocol's alone

        framed = Compose([Resize(decoder.framing.image_size), CenterCrop(decoder.framing.image_size)])
        return [np.asarray(framed(_open(self.root / self.paths[i]))) for i in ids]


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded as an image ({error})") from error


def open_older_coil(path: str | Path) -> LabelledData:
    """COIL images in ``path``, flat (``obj3__45.png``) or a folder per class, in train, val and test: 70, 15 and 15%.

    Images are sorted by name as strings and split at random, without regard to which views are neighbours. Classes are
    numbered by object number, or by folder name. SettingsError if there are none of two classes.
    """
    root = Path(path)
    if not root.is_dir():
        raise SettingsError(f"evaluation data {str(path)!r} is not a folder")
    named = _flat(root) or _by_folder(root)
    names = list(dict.fromkeys(name for _, name in named))
    if len(names) < 2:
        raise SettingsError(
            f"no COIL images of two classes or more in {str(path)!r}; --protocol {NAME} takes obj3__45.png ... or a "
            "folder per class"
        )
    if named[0][0].count("/") == 0:
        names.sort(key=lambda name: int(name[3:]))
    number = {name: k for k, name in enumerate(names)}
    labels = np.array([number[name] for _, name in named], np.int64)
    source = PilSource(root, [file for file, _ in named])
    everything = Images(np.arange(len(named)), labels, np.arange(len(named)), source)
    rows = split_rows(len(named))
    parts = {part: everything.take(chosen) for part, chosen in zip(("train", "val", "test"), rows, strict=True)}
    return LabelledData({part: images for part, images in parts.items() if len(images)}, names, NAME)


def _flat(root: Path) -> list[tuple[str, str]]:
    """(file name, class) of the flat COIL files in ``root``, sorted by name."""
    matches = [match for name in _images(root) if (match := _FLAT.fullmatch(name))]
    return [(match[0], f"obj{int(match[1])}") for match in matches]


def _by_folder(root: Path) -> list[tuple[str, str]]:
    """(path, class) of the images in the folders of ``root``, both sorted by name."""
    folders = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return [(f"{folder}/{name}", folder) for folder in folders for name in _images(root / folder)]


def _images(folder: Path) -> list[str]:
    suffixes = tuple(suffix.decode() for suffix in SUFFIXES)
    names = (file.name for file in folder.iterdir() if file.name.lower().endswith(suffixes))
    return sorted(name for name in names if not name.startswith("."))


def split_rows(n: int) -> list[np.ndarray]:
    """Rows of train, val and test, each int64."""
    train, val = int(0.7 * n), int(0.15 * n)
    rows: Any = range(n)
    parts = random_split(rows, [train, val, n - train - val], generator=torch.Generator().manual_seed(SPLIT_SEED))
    return [np.array(part.indices, np.int64) for part in parts]


def fit_older_head(features: torch.Tensor, labels: torch.Tensor, classes: int, seed: int = HEAD_SEED) -> LinearProbe:
    """One linear layer on the raw ``features`` [n, F], by SGD: rate 0.1, momentum 0.9, 20 epochs, batches of 64.

    Nothing decays, and the head of the last epoch is returned. ``seed`` sets its first weights and the batches.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        head = nn.Linear(features.shape[1], classes)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
        batches = DataLoader(TensorDataset(features.cpu(), labels.cpu()), batch_size=BATCH_SIZE, shuffle=True)
        for _ in range(EPOCHS):
            for x, y in batches:
                optimizer.zero_grad()
                F.cross_entropy(head(x), y).backward()
                optimizer.step()
    weight = head.weight.detach()
    return LinearProbe(
        weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1]), weight, head.bias.detach(), None
    )
