"""``region``: what batches hold, what is counted, what a state refuses, and the road from the flags to the loader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.commands import train
from cltt.config import differences
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.region import NO_REGION, Region
from cltt.shards.folder import FolderDataset
from cltt.training import factory
from tests.helpers import data
from tests.helpers.training import ROOT

SIZE = 24
WITHOUT = 9  # frames without a box
FLAGS = ["--window-size", "3", "--frame-step", "2", "--batch-size", "4", "--image-size", "16", "--device", "cpu"]


def build(folder: Path, name: str, boxes: str | None) -> Path:
    """Shards of 40 frames; of all but every fifth and the first the table of ``boxes`` holds a row."""
    root = folder / "clips"
    if not root.exists():
        data.make_clips(root, {"a": 20, "b": 20})
    table = folder / f"{name}.csv"
    rows = [
        f"{clip}/frame_{k:06d}.jpg,{boxes}\n" for clip in "ab" for k in range(20) if k % 5 and (clip, k) != ("a", 1)
    ]
    table.write_text("".join(rows))
    build_shards(root, folder / name, workers=1, boxes=None if boxes is None else f"csv:{table}")
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("region")
    build(folder, "boxed", "4,5,30,40")
    build(folder, "gazed", "60,2")
    build(folder, "bare", None)
    return folder


def make(shards: Path, **options: Any) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, 3, 2)
    defaults = {"image_size": SIZE, "device": "cpu", "num_threads": 2, "dtype": torch.uint8}
    return WindowLoader(dataset, index, 4, **{**defaults, **options})


@pytest.mark.parametrize("name", ["boxed", "gazed"])
@pytest.mark.parametrize("region", [Region("center"), Region("boxes"), Region("boxes", "crop", 0.4)], ids=str)
def test_batches_hold_what_the_decoder_gives_of_each_frame_and_its_box(folder: Path, name: str, region: Region) -> None:
    options = {"region": region.kind, "region_effect": region.effect, "region_scale": region.scale}
    decoder, plain = (FrameDecoder(Framing(image_size=SIZE, region=one)) for one in (region, NO_REGION))
    different, without = 0, {}
    with make(folder / name, **options) as loader:
        dataset = loader.dataset
        assert isinstance(dataset, ShardDataset)
        for batch in loader:
            for frame, pixels in zip(batch.frame_ids.flatten().tolist(), batch.frames.flatten(0, 1), strict=True):
                (jpeg,) = dataset.read([frame])
                (box,) = dataset.frame_boxes([frame]).tolist()  # type: ignore[union-attr]
                without[frame] = bool(np.isnan(box[0]))
                wanted = decoder.frame(jpeg, None if np.isnan(box[0]) else tuple(box))
                assert np.array_equal(pixels.permute(1, 2, 0).numpy(), wanted)
                different += not np.array_equal(wanted, plain.frame(jpeg))
        stats = loader.stats()
    assert different > 0 and stats["frames_decoded"] == len(without)
    assert stats["frames_without_box"] == (0 if region.kind == "center" else sum(without.values()))


def test_frames_without_a_box_are_counted(folder: Path) -> None:
    dataset = ShardDataset(folder / "boxed")
    assert dataset.frames_without_box(np.arange(2)) == WITHOUT
    assert [dataset.frames_without_box(np.array([clip])) for clip in (0, 1)] == [5, 4]
    assert ShardDataset(folder / "bare").frames_without_box(np.arange(2)) == 40


def test_boxes_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"no boxes|build_shards --boxes csv:FILE.*--region center"):
        make(folder / "bare", region="boxes")
    dataset = FolderDataset(folder / "clips")
    index = WindowIndex(dataset.clip_lengths, 3, 2)
    with pytest.raises(SettingsError, match="build_shards --boxes"):
        WindowLoader(dataset, index, 4, device="cpu", region="boxes")
    with WindowLoader(dataset, index, 4, device="cpu", image_size=16, region="center", num_threads=1) as loader:
        assert next(iter(loader)).frames.shape == (4, 3, 3, 16, 16)
    with pytest.raises(SettingsError, match=r"region_effect is crop, but there is no region"):
        make(folder / "bare", region_effect="crop")


def test_a_state_is_of_one_region_and_of_its_boxes(folder: Path) -> None:
    with make(folder / "boxed") as plain, make(folder / "boxed", region="boxes", region_effect="crop") as boxes:
        old = {name: value for name, value in plain.state_dict().items() if "region" not in name}
        plain.load_state_dict(old)
        with pytest.raises(SettingsError, match="region is boxes and was none; region_effect is crop and was None"):
            boxes.load_state_dict(old)
        state = boxes.state_dict()
        boxes.load_state_dict(state)
        with make(folder / "gazed", region="boxes", region_effect="crop") as others:
            with pytest.raises(SettingsError, match=r"fingerprint is \w+ and was "):
                others.load_state_dict(state)
        for name, value, shown in (("region_effect", "blur", "crop"), ("region_scale", 0.6, "0.5")):
            with make(folder / "boxed", **{"region": "boxes", "region_effect": "crop", name: value}) as other:
                with pytest.raises(SettingsError, match=f"{name} is {value} and was {shown}"):
                    other.load_state_dict(state)


def test_the_flags_reach_the_loader_and_forbid_another_resume(folder: Path) -> None:
    flags = ["--shards", str(folder / "boxed"), *FLAGS]
    plain = train.parse(flags)
    crop = train.parse([*flags, "--region", "boxes", "--region-effect", "crop", "--region-scale", "0.4"])
    dataset = ShardDataset(folder / "boxed")
    with factory.build_loader(
        dataset, factory.build_index(dataset, crop), crop, torch.device("cpu"), RankInfo()
    ) as loader:
        state = loader.state_dict()
        assert [state[name] for name in ("region", "region_effect", "region_scale")] == ["boxes", "crop", 0.4]
    assert differences(plain.to_dict(), crop.to_dict()) == [
        "region is boxes and was none",
        "region_effect is crop and was None",
        "region_scale is 0.4 and was None",
    ]
    saved = plain.to_dict()
    for name in ("region", "region_effect", "region_scale"):
        del saved["data"][name]  # a run of 0.1.0
    assert differences(saved, plain.to_dict()) == []
    shown, left_out = train.parse([*flags, "--region", "center", "--region-effect", "blur"]), [*flags, "--region"]
    assert differences(shown.to_dict(), train.parse([*left_out, "center"]).to_dict()) == [], "the default, written out"
    assert shown.to_dict()["data"]["region_effect"] == "blur"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--shards", "x", "--region-effect", "crop"], "region_effect is crop, but there is no region"),
        (["--shards", "x", "--region-scale", "0.3"], "region_scale is 0.3, but there is no region"),
        (["--shards", "x", "--region", "center", "--region-scale", "2"], "region_scale is 2.0; it must be from"),
        (["--root-dir", "x", "--region", "boxes"], "build_shards --boxes csv:FILE"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_opened(flags: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        train.parse(flags)


def test_a_sweep_takes_the_flags_and_names_the_line_that_cannot_work(tmp_path: Path) -> None:
    table = tmp_path / "sweep.txt"
    command = [sys.executable, "slurm/sweep_table.py", "check", str(table), "--shards", "x"]
    for last, status, says in (("boxes crop 0.4", 0, "3\n"), ("none crop -", 2, "line 4: region_effect is crop, but")):
        table.write_text(f"region region-effect region-scale\nnone - -\ncenter blur -\n{last}\n")
        done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True)
        assert done.returncode == status and says in done.stdout + done.stderr
