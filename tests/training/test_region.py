"""A run with boxes: what it says at its start, what it saves, and what it refuses to go on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.commands.train import main
from cltt.errors import SettingsError
from cltt.training import factory
from tests.helpers import data, training
from tests.helpers.tiny_run import tiny_model


def test_a_run_counts_frames_without_a_box_and_resumes_with_its_own_region_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "build_model", tiny_model)
    data.make_clips(tmp_path / "frames", {"a": 30, "b": 25})
    (tmp_path / "boxes.csv").write_text("".join(f"a/frame_{k:06d}.jpg,{k},{k}\n" for k in range(30)))
    build_shards(tmp_path / "frames", tmp_path / "shards", workers=1, boxes=f"csv:{tmp_path / 'boxes.csv'}")
    argv = training.flags(tmp_path / "shards", tmp_path / "run", "--epochs", "1", "--max-batches-per-epoch", "2")
    with pytest.raises(SettingsError, match="region_effect is crop, but there is no region"):
        main([*argv, "--region-effect", "crop"])
    boxes = ["--region", "boxes", "--region-effect", "crop"]
    assert main([*argv, *boxes]) == 0
    assert "boxes: 25 of 55 frames have none and take the center\n" in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "settings.json").read_text())["data"]
    assert [saved[name] for name in ("region", "region_effect", "region_scale")] == ["boxes", "crop", 0.5]
    with pytest.raises(SettingsError, match="region is center and was boxes"):
        main([*argv, "--region", "center", "--region-effect", "crop", "--resume"])
    with pytest.raises(SettingsError, match=r"region_scale is 0\.4 and was 0\.5"):
        main([*argv, *boxes, "--region-scale", "0.4", "--resume"])
    assert main([*argv, *boxes, "--region-scale", "0.5", "--resume"]) == 0
