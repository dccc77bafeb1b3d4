"""``normalise``: what float batches hold, what a state refuses, and the road from the flag to loader and evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.commands import train
from cltt.config import differences
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.evaluation.datasets import open_labelled
from cltt.evaluation.evaluator import extract_features
from cltt.training import factory
from tests.helpers import data


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("normalise")
    build_shards(data.make_clips(folder / "clips", {"a": 20, "b": 20}), folder / "shards", workers=1)
    return folder / "shards"


def make(shards: Path, **options: object) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 2)
    defaults = {"image_size": 16, "device": "cpu", "num_threads": 1}
    return WindowLoader(dataset, index, 4, **{**defaults, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_what_float_batches_hold(shards: Path, augment: str) -> None:
    first = {}
    for name in ("imagenet", "none"):
        with make(shards, normalise=name, augment=augment) as loader:
            first[name] = next(iter(loader)).frames
    with make(shards, dtype=torch.uint8, augment=augment) as loader:
        raw = next(iter(loader)).frames
    torch.testing.assert_close(first["none"], raw / 255)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = (raw / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(first["imagenet"], wanted, rtol=1e-5, atol=1e-5)


def test_an_unknown_one_is_refused(shards: Path) -> None:
    with pytest.raises(SettingsError, match=r"normalise is 'zero'.*imagenet, none"):
        make(shards, normalise="zero")


def test_a_state_is_of_one_normalisation_and_an_old_one_of_imagenet(shards: Path) -> None:
    with make(shards) as imagenet, make(shards, normalise="none") as none:
        state = imagenet.state_dict()
        with pytest.raises(SettingsError, match="normalise is none and was imagenet"):
            none.load_state_dict(state)
        old = {name: value for name, value in state.items() if name != "normalise"}
        imagenet.load_state_dict(old)
        with pytest.raises(SettingsError, match="normalise"):
            none.load_state_dict(old)


def test_the_flag_reaches_the_loader_and_forbids_another_resume(shards: Path, tmp_path: Path) -> None:
    flags = ["--shards", str(shards), "--window-size", "3", "--frame-step", "2", "--batch-size", "4"]
    flags += ["--image-size", "16", "--device", "cpu"]
    plain, none = train.parse(flags), train.parse([*flags, "--normalise", "none"])
    dataset = ShardDataset(shards)
    with factory.build_loader(
        dataset, factory.build_index(dataset, none), none, torch.device("cpu"), RankInfo()
    ) as loader:
        assert loader.state_dict()["normalise"] == "none"
        batch = next(iter(loader)).frames
        assert batch.min() >= 0 and batch.max() <= 1
    assert differences(plain.to_dict(), none.to_dict()) == ["normalise is none and was imagenet"]
    saved = plain.to_dict()
    del saved["data"]["normalise"]  # a run of 0.1.0
    assert differences(saved, plain.to_dict()) == []
    assert differences(saved, replace(plain, data=none.data).to_dict()) == ["normalise is none and was imagenet"]


def test_evaluation_sees_pixels_as_training_did(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "images", {"a": 4, "b": 4})
    images = next(iter(open_labelled(tmp_path / "images").parts.values()))

    class Means(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    device = torch.device("cpu")
    raw, scaled = (
        extract_features(Means(), images, image_size=16, device=device, normalise=name).numpy()
        for name in ("none", "imagenet")
    )
    assert raw.min() >= 0 and raw.max() <= 1
    np.testing.assert_allclose(scaled, (raw - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], atol=1e-4)
