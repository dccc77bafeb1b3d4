"""Augmentation as settings: presets and values, from flags to pixels; what a saved state and a resume agree on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader
from cltt.commands import train
from cltt.config import PRESETS, AugmentSettings, differences
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.training import factory
from tests.helpers import training

SIMCLR = {"crop_area": (0.2, 1.0), "flip": 0.5, "jitter": (0.8, 0.8, 0.8, 0.2), "grey": 0.2, "blur": 0.5}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("augment"))


def make(shards: Path, augment: Any, **options: Any) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 2)
    defaults = {"image_size": 24, "device": "cpu", "dtype": torch.uint8, "seed": 1, "num_threads": 1}
    return WindowLoader(dataset, index, 4, augment=augment, **{**defaults, **options})


def frames(shards: Path, augment: Any) -> torch.Tensor:
    with make(shards, augment) as loader:
        return next(iter(loader)).frames.clone()


@pytest.mark.parametrize("values", [{"augment": "none", **SIMCLR}, {"augment": "crop", **SIMCLR}])
def test_a_preset_is_its_values(shards: Path, values: dict[str, Any]) -> None:
    written_out = AugmentSettings(**values)
    assert written_out.augmentation == PRESETS["simclr"]
    assert torch.equal(frames(shards, written_out), frames(shards, "simclr"))
    assert AugmentSettings(**{**values, "augment": "simclr"}) == AugmentSettings(augment="simclr")


def test_without_crops_frames_are_those_of_no_augmentation_mirrored_or_not(shards: Path) -> None:
    plain, flipped = frames(shards, "none"), frames(shards, AugmentSettings(flip=0.5))
    mirrored = plain.flip(-1)
    is_plain, is_mirrored = ((flipped == want).all(dim=(-3, -2, -1)) for want in (plain, mirrored))
    assert (is_plain | is_mirrored).all() and 0 < is_mirrored.sum() < is_mirrored.numel()
    assert torch.equal(frames(shards, AugmentSettings(flip=1.0)), mirrored)


def test_a_state_agrees_on_the_values(shards: Path) -> None:
    state = json.loads(json.dumps(make(shards, AugmentSettings(augment="simclr", crop_area=(0.08, 1))).state_dict()))
    make(shards, AugmentSettings(augment="simclr", crop_area=[0.08, 1])).load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"crop_area is None and was \[0.08, 1\]"):
        make(shards, "simclr").load_state_dict(state)
    older = {name: value for name, value in make(shards, "simclr").state_dict().items() if name not in SIMCLR}
    make(shards, "simclr").load_state_dict(older)
    with pytest.raises(SettingsError, match=r"blur is 0\.1 and was None"):
        make(shards, AugmentSettings(augment="simclr", blur=0.1)).load_state_dict(older)


def test_the_flags_reach_the_loader_and_forbid_another_resume(shards: Path) -> None:
    flags = ["--shards", str(shards), "--window-size", "3", "--frame-step", "2", "--batch-size", "4"]
    flags += ["--image-size", "24", "--device", "cpu"]
    plain, given = train.parse(flags), train.parse([*flags, "--augment", "crop", "--jitter", "0.4", "0.4", "0.4", "0"])
    dataset = ShardDataset(shards)
    index = factory.build_index(dataset, given)
    with factory.build_loader(dataset, index, given, torch.device("cpu"), RankInfo()) as loader:
        assert loader.state_dict()["jitter"] == [0.4, 0.4, 0.4, 0]
        assert loader.state_dict()["augment"] == "crop" and loader.state_dict()["crop_area"] is None
    changed = ["augment is crop and was none", "jitter is [0.4, 0.4, 0.4, 0.0] and was None"]
    assert differences(plain.to_dict(), given.to_dict()) == changed
    needs_one = [*flags, "--frame-step", "0", "--crop-area", "0.2", "1", "--flip", "0.5"]
    assert train.parse(needs_one).data.augmentation == PRESETS["crop"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"crop_area": (0.5, 0.2)}, "crop_area is 0.5 0.2; give the smaller fraction first"),
        ({"crop_area": (0.5,)}, r"crop_area is \(0\.5,\); it must be 2 numbers"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "jitter turns hue by up to 0.6; it must be from 0 to 0.5"),
        ({"flip": 1.5}, "flip is 1.5; it must be from 0 to 1"),
        ({"augment": "mixup"}, "none, crop, simclr"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        AugmentSettings(**values)
