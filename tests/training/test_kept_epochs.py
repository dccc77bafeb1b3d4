"""Decoded frames stay in memory where a later epoch uses them again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cltt.config import CheckpointSettings, DataSettings, OptimSettings, TrainSettings, WindowSettings
from cltt.distributed import RankInfo
from cltt.training import factory


@pytest.mark.parametrize(
    ("data", "epochs", "expected"),
    [
        ({}, 2, None),
        ({}, 1, 0),
        ({"keep_gb": 0.5}, 1, 500_000_000),
        ({"keep_gb": 0.0}, 5, 0),
        ({"keep_dir": "frames"}, 1, None),
    ],
)
def test_a_run_of_one_epoch_keeps_frames_only_where_told_to(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, Any], epochs: int, expected: int | None
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(factory, "WindowLoader", lambda *_, **options: given.update(options))
    settings = TrainSettings(
        windows=WindowSettings(),
        data=DataSettings(shards="x", **data),
        optim=OptimSettings(epochs=epochs),
        checkpoint=CheckpointSettings(),
    )
    device: Any = SimpleNamespace(type="cpu")
    nothing: Any = None
    factory.build_loader(nothing, nothing, settings, device, RankInfo(0, 1))
    assert given["keep_bytes"] == expected
