"""inspect_windows.py --region: the frames drawn are those the network sees, and what has no box is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.visualize import inspect
from cltt.visualize import windows as windows_module
from tests.helpers.inspecting import LENGTHS, SMALL, WINDOWS, drawn_frames, info, refusal


@pytest.fixture(scope="module")
def boxed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a box for every frame but those of the clip b/one."""
    out = tmp_path_factory.mktemp("boxed")
    rows = [f"{c}/frame_{k:06d}.jpg,{k},2,{k + 20},30\n" for c, n in LENGTHS.items() if c != "b/one" for k in range(n)]
    (out / "boxes.csv").write_text("".join(rows))
    build_shards(folder, out / "shards", workers=1, boxes=f"csv:{out / 'boxes.csv'}")
    return out / "shards"


@pytest.mark.parametrize("augment", ["none", "crop"])
@pytest.mark.parametrize("effect", ["blur", "crop"])
def test_a_batch_is_drawn_as_training_sees_it(
    boxed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, effect: str, augment: str
) -> None:
    argv = ["--shards", boxed, *SMALL, "--mode", "batch", "--batch-size", "6", "--batch-sampling", "plan"]
    argv += ["--region", "boxes", "--region-effect", effect, "--augment", augment, "--save-path", tmp_path / "b.png"]
    shown = info(capsys, *argv)
    dataset = ShardDataset(boxed)
    index = WindowIndex(dataset.clip_lengths, 3, 4, 2)
    options = {"image_size": 32, "device": "cpu", "region": "boxes", "region_effect": effect, "augment": augment}
    with WindowLoader(dataset, index, 6, normalise="none", **options) as loader:  # type: ignore[arg-type]
        batch = next(iter(loader))
    frames = (batch.frames * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    layout = windows_module.Layout(6, 1 if augment == "none" else 2, 3, 32)
    times = layout.cell // 32
    drawn = drawn_frames(tmp_path / "b.png", layout, layout.rows - 1)
    assert np.array_equal(drawn[:, :, ::times, ::times], frames)
    assert (shown["region"], shown["region_effect"], shown["region_scale"]) == ("boxes", effect, 0.5)
    seen = np.unique(batch.frame_ids.numpy())
    boxes = dataset.frame_boxes(seen)
    assert boxes is not None and shown["without_box"] == np.isnan(boxes[:, 0]).sum() > 0


def test_frames_without_a_box_are_said_in_one_line(
    boxed: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    inspect.main(["--shards", str(boxed), *SMALL, "--region", "boxes", "--save-path", str(tmp_path / "w.png")])
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "note: boxes: 41 of 127 frames have none and take the center",
        f"wrote {tmp_path / 'w.png'}",
    ]


def test_a_center_needs_no_shards_and_boxes_do(
    folder: Path, shards: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = info(capsys, "--root-dir", folder, *SMALL, "--region", "center", "--save-path", tmp_path / "w.png")
    assert (shown["region"], shown["region_effect"], shown["region_scale"]) == ("center", "blur", None)
    for source in (["--root-dir", folder], ["--shards", shards]):
        assert "build_shards --boxes csv:FILE" in refusal(capsys, *source, *WINDOWS, "--json", "--region", "boxes")
