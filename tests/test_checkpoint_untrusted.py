"""Checkpoints from others, and odd run folders: one sentence, no memory out of proportion, nothing run."""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cltt import checkpoint
from cltt.config import DataSettings, ModelSettings
from cltt.errors import CLTTError, DataError
from cltt.metrics import History
from cltt.models.contrastive import ContrastiveModel
from cltt.models.weights import read_weights
from cltt.training.factory import build_model, load_weights

MODEL = nn.Linear(2, 3)
SETTINGS = {"model": dataclasses.asdict(ModelSettings()), "data": dataclasses.asdict(DataSettings(shards="x"))}
STATE: dict[str, Any] = {"model": MODEL.state_dict(), "settings": SETTINGS, "fingerprint": "0" * 32}


def _saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    "state",
    [
        {"version": 1},
        {"version": 1, "model": None},
        {"version": 1, "model": [1, 2]},
        {"version": 1, "model": {"weight": 3, "bias": "x"}},
        {"version": 1, "model": {1: torch.zeros(2)}},
        {"version": 1, "model": {}},
        {"version": 1, "model": {}, "settings": {"model": 3}},
        {"version": 1, "model": {}, "settings": {"model": {"backbone": "vgg"}, "data": {}}},
        {"version": torch.ones(2), "model": {}},
        {"version": "1", "model": {}},
        {"version": True, "model": {}},
        [1, 2, 3],
        torch.zeros(3),
        None,
    ],
)
def test_a_checkpoint_without_what_is_needed(tmp_path: Path, state: Any) -> None:
    path = _saved(tmp_path / "epoch-0001.pt", state)
    model = ContrastiveModel(MODEL, MODEL)
    for call in (lambda: load_weights(model, path), lambda: read_weights(path).build_encoder()):
        with pytest.raises(CLTTError) as caught:
            call()
        assert "\n" not in str(caught.value) and "epoch-0001.pt" in str(caught.value)


@pytest.mark.parametrize("head", [{"head.0.weight": 3}, {"head.0.bias": "x"}, {"head.0.bias": torch.zeros(3)}])
def test_a_head_that_is_none(tmp_path: Path, head: dict[str, Any]) -> None:
    path = _saved(tmp_path / "epoch-0001.pt", {"version": 1, "settings": SETTINGS, "model": head})
    with pytest.raises(CLTTError, match=r"epoch-0001\.pt"):
        read_weights(path).build_head()


def test_weights_alone_are_enough_where_they_fit(tmp_path: Path) -> None:
    saved, model = build_model(ModelSettings()), build_model(ModelSettings())
    load_weights(model, _saved(tmp_path / "epoch-0001.pt", {"version": 1, "model": saved.state_dict()}))
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["epoch-0001.pt", "other.bin"])
@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x80\x02}.", b"#!/bin/sh\n", bytes(5000)])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="is damaged or not a checkpoint") as caught:
        checkpoint.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_pickle_that_calls_anything_is_not_run(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    with pytest.raises(DataError):
        checkpoint.load(_saved(tmp_path / "epoch-0001.pt", {"version": 1, "model": Call()}))
    assert not (tmp_path / "made").exists()


def test_a_tensor_that_stands_for_more_than_the_file_holds(tmp_path: Path) -> None:
    endless = torch.zeros(1).expand(10**12)
    with pytest.raises(DataError, match="stands for more than its file can hold"):
        checkpoint.load(_saved(tmp_path / "epoch-0001.pt", {"version": 1, "model": {"weight": endless}}))


def test_compressed_records_are_not_unpacked(tmp_path: Path) -> None:
    path = _saved(tmp_path / "epoch-0001.pt", {"version": 1, "model": {"weight": torch.zeros(1000)}})
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content + bytes(1 << 24))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="compressed records"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "pointer", [b"\xff\xfe\x00", b"", b"\n", b"../../etc/passwd", b"x" * 100_000, b"epoch-0001.pt\0"]
)
def test_a_pointer_that_is_no_text_points_nowhere(tmp_path: Path, pointer: bytes) -> None:
    checkpoint.write(tmp_path / "epoch-0001.pt", STATE)
    checkpoint.write(tmp_path / "epoch-0002.pt", STATE)
    (tmp_path / checkpoint.LATEST).write_bytes(pointer)
    assert checkpoint.find_latest(tmp_path)[::2] == (tmp_path / "epoch-0002.pt", [])
    assert checkpoint.resolve(tmp_path) == tmp_path / "epoch-0002.pt"


def test_what_is_named_like_a_checkpoint_and_is_none_is_passed_over(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "epoch-0001.pt", STATE)
    (tmp_path / "epoch-0002.pt").mkdir()
    os.mkfifo(tmp_path / "epoch-0003.pt")
    (tmp_path / ("epoch-" + "9" * 100 + ".pt")).write_bytes(b"")
    assert checkpoint.list_checkpoints(tmp_path) == [tmp_path / "epoch-0001.pt"]
    with pytest.raises(DataError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "epoch-0003.pt")


@pytest.mark.parametrize("change", [{"train": 3}, {"epoch": "x"}, {"train": [1]}, {"step": None}, {"total_steps": 1.5}])
def test_a_history_that_is_none(change: dict[str, Any]) -> None:
    history = History()
    with pytest.raises(DataError, match="the history"):
        history.load_state_dict({**History().state_dict(), **change})
    history.load_state_dict({**History().state_dict(), "csv": None})
    assert callable(history.csv)


@pytest.mark.parametrize("name", ["x" * 300, "y" * 5000])
def test_a_name_that_no_system_takes_is_no_checkpoint(name: str) -> None:
    with pytest.raises(DataError, match="no checkpoint at"):
        read_weights(Path(name))
