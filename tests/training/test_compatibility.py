"""What version 0.1.0 wrote goes on working: its shards, its checkpoints' names, its weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader
from cltt.checkpoint import VERSION, list_checkpoints, load, write
from cltt.commands.train import main, parse
from cltt.errors import SettingsError
from cltt.shards.verify import verify_shards
from cltt.training.factory import build_model, load_weights
from tests.helpers.listing import listing

GOLDEN = Path(__file__).parents[1] / "golden"
SHARDS = GOLDEN / "shards-0.1.0"
NAMES = (GOLDEN / "checkpoint_names.txt").read_text().splitlines()  # of a checkpoint of 0.1.0, within an epoch
RUN = ["--shards", str(SHARDS), "--split", "all", "--window-size", "3", "--frame-step", "1", "--batch-size", "4"]
RUN += ["--image-size", "32", "--num-workers", "1", "--epochs", "1", "--device", "cpu"]


def test_shards_of_0_1_0_are_whole_and_read_as_they_were_built() -> None:
    assert verify_shards(SHARDS, decode=True) == []
    dataset = ShardDataset(SHARDS)
    assert (dataset.num_clips, dataset.num_frames) == (6, 55)
    assert dataset.fingerprint == "7f64ac131cbc3224df569fa3ec27df39"
    assert dataset.clip_lengths.tolist() == [6, 7, 9, 12, 11, 10]
    assert dataset.label_names == ["ada", "ben", "cleo"]
    assert [dataset.clip_key(clip) for clip in range(6)] == [
        *("ada/clip_1", "ada/clip_1", "ada/clip_2", "ben/clip.2", "ben/clip_1", "cleo/clip_10")
    ]
    assert [dataset.frame_name(frame) for frame in (5, 6, 37, 54)] == [
        *("ada/clip_1/frame_000005.jpg", "ada/clip_1/frame_000007.jpg"),
        *("ben/clip_1/frame_000003.png", "cleo/clip_10/frame_000009.JPG"),
    ]
    splits = {name: dataset.split_clips(name).tolist() for name in ("train", "test")}
    assert sorted(splits["train"] + splits["test"]) == list(range(6))
    shapes = {simplejpeg.decode_jpeg(jpeg).shape for jpeg in dataset.read(np.arange(55))}
    assert shapes == {(40, 56, 3)}


def test_shards_of_0_1_0_give_batches() -> None:
    dataset = ShardDataset(SHARDS)
    index = WindowIndex(dataset.clip_lengths, window_size=3, frame_step=1)
    with WindowLoader(dataset, index, 4, image_size=32, device="cpu", num_threads=1) as loader:
        batches = [batch.frames for batch in loader]
    assert len(batches) == len(index) // 4
    assert all(frames.shape == (4, 3, 3, 32, 32) and torch.isfinite(frames).all() for frames in batches)


def test_checkpoints_keep_the_names_types_and_shapes_of_0_1_0(tmp_path: Path) -> None:
    assert main([*RUN, "--checkpoint-dir", str(tmp_path / "run")]) == 0
    now = set(listing(load(list_checkpoints(tmp_path / "run")[-1])))
    # The state of the order has a version of its own: an older one is refused by name.
    kept = [line for line in NAMES if not line.startswith("/loader/plan/")]
    assert [line for line in kept if line not in now] == []


def test_a_run_of_0_1_0_is_not_resumed_with_another_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main([*RUN, "--checkpoint-dir", str(folder)]) == 0
    path = list_checkpoints(folder)[-1]
    state = load(path)
    for group, name in (("data", "run"), ("windows", "short_clip_windows")):
        del state["settings"][group][name]  # 0.1.0 had no such setting
    state["loader"]["plan"]["version"] = 1
    write(path, state)
    with pytest.raises(SettingsError, match=r"order of an epoch has changed.* cltt 0\.1\.0, or start a new run"):
        main([*RUN, "--checkpoint-dir", str(folder), "--resume"])
    assert main([*RUN, "--checkpoint-dir", str(tmp_path / "new"), "--checkpoint-path", str(folder)]) == 0


def made_of_names(prefix: str) -> dict[str, torch.Tensor]:
    """Tensors of the names, types and shapes under ``prefix`` in the list, each filled with its number."""
    tensors = {}
    for number, line in enumerate(line for line in NAMES if line.startswith(prefix)):
        name, dtype, shape = line.split(" ", 2)
        size = [int(side) for side in shape.strip("[]").split(",") if side.strip()]
        tensors[name.removeprefix(prefix)] = torch.full(size, number, dtype=getattr(torch, dtype))
    return tensors


def test_weights_of_0_1_0_load(tmp_path: Path) -> None:
    weights = made_of_names("/model/")
    write(tmp_path / "epoch-0001.pt", {"model": weights})
    model = build_model(parse([*RUN, "--checkpoint-dir", str(tmp_path / "run")]).model)
    load_weights(model, tmp_path / "epoch-0001.pt")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert set(weights) == set(model.state_dict())
    assert VERSION == 1


def test_a_copy_elsewhere_is_the_same_data(tmp_path: Path) -> None:
    shutil.copytree(SHARDS, tmp_path / "copy")
    assert ShardDataset(tmp_path / "copy").fingerprint == ShardDataset(SHARDS).fingerprint
