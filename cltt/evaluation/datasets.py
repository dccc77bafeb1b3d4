"""Labelled images to evaluate an encoder on: class folders, flat COIL names, CIFAR archives, or labelled shards.

Where the data has no train, val and test parts of its own, they are made per class by a fixed permutation: 60%, 20% and
20% (clips stay whole where every class has at least three). With a test part but no val part, val is 10% of train.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cltt.errors import DataError, InvalidImage, SettingsError
from cltt.evaluation import cifar
from cltt.files.patience import Patience
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.shards import format
from cltt.shards.dataset import ShardDataset
from cltt.source import image, jpeg, pixels

PARTS = ("train", "val", "test")
SPLIT_SHARES = (0.6, 0.2, 0.2)
VAL_SHARE = 0.1
SPLIT_SEED = 20
MAX_IMAGES = 50_000  # a part larger than this is thinned out evenly: accuracies to 0.5% do not need more
READ_THREADS, READ_TOGETHER = 8, 16
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_COIL_NAME = re.compile(r"(obj\d+)__\d+", re.IGNORECASE)

log = logging.getLogger(__name__)

Reader = Callable[[np.ndarray, FrameDecoder], list[np.ndarray]]


@dataclass(frozen=True)
class Images:
    """Images with labels; ``read(ids, decoder)`` gives RGB uint8 [h, w, 3] arrays, framed by the decoder.

    Attributes:
        ids: int64 [n], what ``read`` is called with.
        labels: int64 [n], 0..classes-1.
    """

    ids: np.ndarray
    labels: np.ndarray
    read: Reader

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, start: int, stop: int, image_size: int) -> torch.Tensor:
        """Images ``start`` to ``stop``, framed as in training -> uint8 [stop - start, 3, S, S]."""
        ids, decoder = self.ids[start:stop], FrameDecoder(Framing(image_size=image_size))
        pieces = np.split(ids, range(READ_TOGETHER, len(ids), READ_TOGETHER))
        with ThreadPoolExecutor(READ_THREADS) as pool:
            framed = pool.map(lambda piece: self.read(piece, decoder), pieces)
            batch = np.stack([picture for pictures in framed for picture in pictures])
        return torch.from_numpy(batch).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class LabelledData:
    """Parts ``train``, ``val``, ``test`` (those there are) of labelled images, and how they came about."""

    parts: dict[str, Images]
    label_names: list[str]
    split_by: str


def open_labelled(path: str | Path, clips: str | None = None) -> LabelledData:
    """Find out what ``path`` is and open it. SettingsError if it is none of the four kinds, or has no labels.

    ``clips``: of shards, only the clips that this file lists (``ShardDataset.listed_clips``).
    Warns, on the log, of classes that are in val or test but not in train.
    """
    data = _open(Path(path), clips)
    if "train" in data.parts:
        _warn_of_unknown_classes(data)
    return data


def _open(path: Path, clips: str | None) -> LabelledData:
    if not path.is_dir():
        raise SettingsError(f"evaluation data {str(path)!r} is not a folder")
    if (path / format.INDEX).is_file():
        return _open_shards(path, clips)
    if clips is not None:
        raise SettingsError(f"--clips picks clips of shards, but {str(path)!r} holds none; leave it out")
    for folder in (path, path / "cifar-10-batches-py", path / "cifar-100-python"):
        if (folder / "data_batch_1").is_file() or ((folder / "meta").is_file() and (folder / "train").is_file()):
            return _open_cifar(folder)
    if (path / "train").is_dir() and any((path / part).is_dir() for part in ("val", "test")):
        return _open_part_folders(path)
    files = _class_folder_files(path) or _coil_files(path)
    if not files:
        raise SettingsError(
            f"no labelled images in {str(path)!r}: expected a folder a class, COIL files (obj3__45.png), CIFAR's "
            "python archives, or labelled shards"
        )
    names = sorted({label for _, label in files})
    labels = np.array([names.index(label) for _, label in files])
    return _split(_thin(_file_images([file for file, _ in files], labels)), names, "image")


def _warn_of_unknown_classes(data: LabelledData) -> None:
    """Name the classes of val and test that train lacks: no classifier learnt on train can get them right."""
    known = data.parts["train"].labels
    for part in ("val", "test"):
        labels = data.parts[part].labels if part in data.parts else np.empty(0, np.int64)
        lost = ~np.isin(labels, known)
        if lost.any():
            unknown = [data.label_names[label] for label in np.unique(labels[lost])]
            named = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            log.warning(
                "%d of the %d classes in the %s part are not in the train part (%s): their %d of its %d images count "
                "as wrong whatever the encoder; split so that every class is in train (shards: not --split-by parent)",
                *(len(unknown), len(np.unique(labels)), part, named, lost.sum(), len(labels)),
            )


# ---- files


def _class_folder_files(path: Path) -> list[tuple[Path, str]]:
    """(file, class) of a folder with one folder a class, at any depth below it, in a fixed order."""
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    return [(file, folder.name) for folder in classes for file in _image_files(folder.rglob("*"))]


def _coil_files(path: Path) -> list[tuple[Path, str]]:
    matches = [(file, _COIL_NAME.fullmatch(file.stem)) for file in _image_files(path.iterdir())]
    return [(file, match[1].lower()) for file, match in matches if match]


def _image_files(paths: Any) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".") and p.is_file())


def _file_images(files: Sequence[Path], labels: np.ndarray) -> Images:
    def read(ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        return [_decode(_read(files[i]), str(files[i]), decoder) for i in ids]

    return Images(np.arange(len(files)), labels, read)


def _read(file: Path) -> bytes:
    try:
        return Patience().ask(file, lambda: image.read_source(file))
    except InvalidImage as error:
        raise DataError(f"{file} cannot be decoded as an image ({error})") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error


def _decode(data: bytes, name: str, decoder: FrameDecoder) -> np.ndarray:
    """A file of any format, turned upright and framed; DataError if it cannot be decoded."""
    try:
        kind = "PPM" if data[:2] in (b"P5", b"P6") else image.image_kind(data[: image.HEAD])
        if kind == "JPEG":
            return _decode_jpeg(data, decoder)
        if kind:
            image.check_pixels(*pixels.size_of(kind, data), image.MAX_PIXELS)
            return decoder.fit(pixels.decode_other(kind, data))
        raise InvalidImage("not an image")
    except (InvalidImage, MemoryError, cv2.error) as error:
        raise DataError(
            f"{name} cannot be decoded as an image ({error or 'it takes more memory than there is'})"
        ) from error


def _decode_jpeg(data: bytes, decoder: FrameDecoder) -> np.ndarray:
    info = jpeg.jpeg_info(data)
    image.check_pixels(info.width, info.height, image.MAX_PIXELS)
    jpeg.check_scans(data, info)
    orientation = pixels.jpeg_orientation(data) if info.has_metadata else 1
    if orientation == 1:
        with contextlib.suppress(ValueError):  # OpenCV takes what libjpeg-turbo only warns of, and CMYK
            return decoder.frame(data)
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if found is None:
        raise InvalidImage("invalid JPEG")
    return decoder.fit(pixels.turned(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), orientation))


def _open_part_folders(path: Path) -> LabelledData:
    found = {part: _class_folder_files(path / part) for part in PARTS if (path / part).is_dir()}
    names = sorted({label for files in found.values() for _, label in files})
    parts = {
        part: _thin(_file_images([file for file, _ in files], np.array([names.index(label) for _, label in files])))
        for part, files in found.items()
    }
    return LabelledData(_with_val(parts), names, "folder")


# ---- CIFAR


def _open_cifar(folder: Path) -> LabelledData:
    """CIFAR-10 (``data_batch_1..5``, ``test_batch``) or CIFAR-100 (``train``, ``test``; fine labels)."""
    ten = (folder / "data_batch_1").is_file()
    train = sorted(folder.glob("data_batch_?")) if ten else [folder / "train"]
    test = folder / ("test_batch" if ten else "test")
    label_key, name_key = (b"labels", b"label_names") if ten else (b"fine_labels", b"fine_label_names")
    meta = folder / ("batches.meta" if ten else "meta")
    names = cifar.read_names(meta, name_key)
    parts = {"train": _cifar_images(train, label_key, len(names))}
    if test.is_file():
        parts["test"] = _cifar_images([test], label_key, len(names))
    return LabelledData(_with_val(parts), names, "archive")


def _cifar_images(paths: list[Path], label_key: bytes, classes: int) -> Images:
    archives = [cifar.read_archive(path, label_key, classes) for path in paths]
    pictures = np.concatenate([archive.pixels for archive in archives])
    labels = np.concatenate([archive.labels for archive in archives])

    def read(ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        return [decoder.fit(picture) for picture in pictures[ids]]

    return Images(np.arange(len(labels)), labels, read)


# ---- shards


def _open_shards(path: Path, listed: str | None) -> LabelledData:
    dataset = ShardDataset(path)
    labels = np.full(dataset.num_clips, -1)
    picked = dataset.listed_clips(listed)
    labels[picked] = dataset.labels[picked]
    if not (labels >= 0).any():
        raise SettingsError(f"the shards in {path} have no labels; build them with --label-from")
    if dataset.split_names:
        clips = {part: np.asarray(dataset.split_clips(part)) for part in PARTS if part in dataset.split_names}
        parts = {part: _clip_images(dataset, ids[labels[ids] >= 0]) for part, ids in clips.items()}
        if not len(parts.get("train", ())):
            raise SettingsError(
                f"the train split of the shards in {path} has no labelled clips; build them with others"
            )
        return LabelledData(
            _with_val({part: images for part, images in parts.items() if len(images)}), dataset.label_names, "split"
        )
    labelled = np.flatnonzero(labels >= 0)
    if np.unique(labels[labelled], return_counts=True)[1].min() >= len(PARTS):
        pieces = _stratified(labels[labelled])
        parts = {part: _clip_images(dataset, labelled[rows]) for part, rows in pieces.items()}
        return LabelledData(parts, dataset.label_names, "clip")
    return _split(_clip_images(dataset, labelled), dataset.label_names, "image")


def _clip_images(dataset: ShardDataset, clips: np.ndarray) -> Images:
    """All frames of ``clips``, each with its clip's label."""
    spans = [np.arange(dataset.clip_offsets[clip], dataset.clip_offsets[clip + 1]) for clip in clips]
    labels = np.repeat(np.asarray(dataset.labels)[clips], [len(span) for span in spans])
    ids = np.concatenate(spans) if spans else np.empty(0, np.int64)

    def read(ids: np.ndarray, decoder: FrameDecoder) -> list[np.ndarray]:
        return [_decode(jpeg, f"frame {i}", decoder) for i, jpeg in zip(ids, dataset.read(ids), strict=True)]

    return _thin(Images(ids, labels, read))


# ---- parts


def _thin(images: Images) -> Images:
    """At most MAX_IMAGES of ``images``, evenly spread."""
    if len(images) <= MAX_IMAGES:
        return images
    kept = np.linspace(0, len(images) - 1, MAX_IMAGES).astype(np.int64)
    return Images(images.ids[kept], images.labels[kept], images.read)


def _take(images: Images, rows: np.ndarray) -> Images:
    return Images(images.ids[rows], images.labels[rows], images.read)


def _stratified(labels: np.ndarray, shares: tuple[float, ...] = SPLIT_SHARES) -> dict[str, np.ndarray]:
    """Rows of each part: in every class a fixed permutation cut by ``shares``, rounded; train takes what is left."""
    pieces: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(np.random.SeedSequence([SPLIT_SEED, int(label)]).generate_state(len(rows), np.uint64))]
        val, test = (max(round(share * len(rows)), share > 0) if len(rows) >= len(PARTS) else 0 for share in shares[1:])
        cuts = np.split(rows, [len(rows) - val - test, len(rows) - test])
        for part, piece in zip(PARTS, cuts, strict=True):
            pieces[part].append(piece)
    return {part: np.sort(np.concatenate(found)) for part, found in pieces.items()}


def _split(images: Images, names: list[str], split_by: str) -> LabelledData:
    parts = {part: _take(images, rows) for part, rows in _stratified(images.labels).items()}
    return LabelledData({part: piece for part, piece in parts.items() if len(piece)}, names, split_by)


def _with_val(parts: dict[str, Images]) -> dict[str, Images]:
    """``parts``, with val cut out of train where there is a test part but no val."""
    if "val" in parts or "test" not in parts:
        return parts
    rows = _stratified(parts["train"].labels, (1 - VAL_SHARE, VAL_SHARE, 0.0))
    return {
        "train": _take(parts["train"], rows["train"]),
        "val": _take(parts["train"], rows["val"]),
        "test": parts["test"],
    }
