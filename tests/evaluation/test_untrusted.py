"""Evaluation data from others: archives with anything in them, shards without a train part, pictures of any size."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltt import build_shards
from cltt.errors import CLTTError, DataError, SettingsError
from cltt.evaluation import cifar
from cltt.evaluation.datasets import open_labelled
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from tests.helpers import data, hostile

IMAGES = 6
BATCH = {b"data": np.zeros((IMAGES, 3072), np.uint8), b"labels": [0, 1, 2, 0, 1, 2]}


def _archive(folder: Path, batch: Any = BATCH, meta: Any = {b"label_names": [b"a", b"b", b"c"]}) -> Path:  # noqa: B006
    for name, value in (("data_batch_1", batch), ("test_batch", BATCH), ("batches.meta", meta)):
        content = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("protocol", range(6))
def test_an_archive_of_any_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    found = open_labelled(_archive(tmp_path, pickle.dumps(BATCH, protocol=protocol)))
    assert found.label_names == ["a", "b", "c"] and len(found.parts["test"]) == IMAGES


@pytest.mark.parametrize("protocol", (2, 4, 5))
@pytest.mark.parametrize(
    "batch",
    [
        {"data": BATCH[b"data"], "labels": BATCH[b"labels"]},
        {"data": BATCH[b"data"].reshape(-1, 3, 32, 32), "labels": np.array(BATCH[b"labels"])},
        {"data": BATCH[b"data"], "labels": np.array(BATCH[b"labels"], ">i4")},
        {"data": BATCH[b"data"], "labels": tuple(BATCH[b"labels"])},
    ],
    ids=["text keys", "arrays", "big-endian labels", "a tuple"],
)
def test_an_archive_saved_again_by_others_is_read(tmp_path: Path, batch: Any, protocol: int) -> None:
    """After https://github.com/wenxinxu/resnet-in-tensorflow/issues/22 and https://github.com/keras-team/keras/pull/4319:
    the keys are text or bytes.
    """
    batch = {**batch, "data": batch["data"].copy()}
    batch["data"][1] = np.arange(3072).reshape(batch["data"][1].shape) % 251
    found = open_labelled(_archive(tmp_path, pickle.dumps(batch, protocol), {"label_names": ["a", "b", "c"]}))
    (image,) = found.parts["train"].source.read(np.array([1]), FrameDecoder(Framing(image_size=32)))
    assert (image == (np.arange(3072) % 251).reshape(3, 32, 32).transpose(1, 2, 0)).all()
    images = found.parts["train"]
    assert [found.label_names[label] for label in images.labels] == ["abcabc"[i] for i in images.ids]


def test_what_an_archive_has_otherwise_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'data' must be uint8 of shape \(6, 3072\).* an array of f4 of shape \(6, 32"):
        open_labelled(_archive(tmp_path, {**BATCH, b"data": np.zeros((IMAGES, 32, 32, 3), np.float32)}))
    with pytest.raises(DataError, match=r"'labels' must be a list .* is missing"):
        open_labelled(_archive(tmp_path, {b"data": BATCH[b"data"], b"y": BATCH[b"labels"]}))


BATCHES = {
    "no data": {b"labels": [0] * IMAGES},
    "no labels": {b"data": BATCH[b"data"]},
    "a label below": {**BATCH, b"labels": [-1, 0, 0, 0, 0, 0]},
    "a label beyond": {**BATCH, b"labels": [3, 0, 0, 0, 0, 0]},
    "a label of text": {**BATCH, b"labels": ["0", 0, 0, 0, 0, 0]},
    "a label in halves": {**BATCH, b"labels": [0.5, 0, 0, 0, 0, 0]},
    "a label too few": {**BATCH, b"labels": [0] * (IMAGES - 1)},
    "pixels of floats": {**BATCH, b"data": np.zeros((IMAGES, 3072))},
    "pixels of objects": {**BATCH, b"data": np.zeros((IMAGES, 3072), object)},
    "pixels of another shape": {**BATCH, b"data": np.zeros((IMAGES * 3072,), np.uint8)},
    "pixels of another size": {**BATCH, b"data": np.zeros((IMAGES, 3000), np.uint8)},
    "pixels of text": {**BATCH, b"data": b"x" * 3072},
    "a list": [BATCH],
    "nothing": b"",
    "text": b"this is no pickle",
    "more memory than there is": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a long name": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b"x.",
    "a call": b"cos\nsystem\n(S'echo hello'\ntR.",
    "a call of numpy": b"cnumpy\nfromfile\n(S'x'\ntR.",
}


@pytest.mark.parametrize("name", BATCHES)
def test_an_archive_that_is_none_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="data_batch_1") as caught:
        open_labelled(_archive(tmp_path, BATCHES[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("meta", [{}, {b"label_names": []}, {b"label_names": 3}, {b"label_names": [1, 2]}, b"", []])
def test_names_that_are_none(tmp_path: Path, meta: Any) -> None:
    with pytest.raises(DataError, match=r"batches\.meta"):
        open_labelled(_archive(tmp_path, meta=meta))


def test_tuples_in_tuples_do_not_hang(tmp_path: Path) -> None:
    """Each holds the one before twice, so hashing the last, as the key of a table, takes 2**60 steps."""
    program = b"\x80\x04}K\x00\x85\x94"  # a table, and (0,) kept in place 0
    for place in range(60):
        program += b"0" + 2 * (b"h" + bytes([place])) + b"\x86\x94"  # drop it; the pair of it, kept in the next place
    start = time.monotonic()
    with pytest.raises(DataError):
        open_labelled(_archive(tmp_path, program + b"K\x01s."))
    assert time.monotonic() - start < 60


def test_an_array_is_never_made_by_the_pickle() -> None:
    assert isinstance(cifar._Unpickler(pickle.dumps(np.zeros(3, np.uint8), protocol=2)).load(), cifar._Array)


def test_shards_whose_train_split_is_empty(tmp_path: Path) -> None:
    root = data.make_clips(tmp_path / "root", {"p/a": 3, "p/b": 3, "q/a": 3, "q/b": 3})
    build_shards(root, tmp_path / "out", workers=1, splits="train=0,val=0.5,test=0.5", label_from="parent")
    with pytest.raises(SettingsError, match=r"the train split of the shards .* has no labelled clips"):
        open_labelled(tmp_path / "out")


@pytest.mark.parametrize("name", ["bomb.png", "bomb.jpg", "huge.jpg", "cut.png"])
def test_pictures_that_harm_are_named(tmp_path: Path, name: str) -> None:
    odd = hostile.odd_pictures()
    contents = {
        "bomb.png": hostile.png_of(40_000, 40_000),
        "bomb.jpg": hostile.of_size(odd["jpeg progressive"], 40_000, 40_000),
        "huge.jpg": b"",
        "cut.png": odd["png"][:-100],
    }
    for number in range(4):
        folder = tmp_path / f"class_{number % 2}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(odd["jpeg"])
    with (tmp_path / "class_0" / name).open("wb") as file:
        file.write(contents[name])
        if name == "huge.jpg":
            file.truncate(10**11)
    found = open_labelled(tmp_path)
    with pytest.raises(CLTTError, match=name):
        for images in found.parts.values():
            images.batch(0, len(images), 16)


@pytest.mark.parametrize("name", [name for name in hostile.odd_pictures() if "bits" not in name])
def test_pictures_of_every_kind_are_read(tmp_path: Path, name: str) -> None:
    for number in range(2):
        folder = tmp_path / f"class_{number}"
        folder.mkdir()
        (folder / "0.jpg").write_bytes(hostile.odd_pictures()[name])
    found = open_labelled(tmp_path)
    assert all(images.batch(0, len(images), 16).shape[1:] == (3, 16, 16) for images in found.parts.values())
