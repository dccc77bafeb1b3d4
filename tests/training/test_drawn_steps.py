"""``--frame-step A-B`` and ``--clips-per-block``: what the loss is told, and a run that is stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cltt.checkpoint import list_checkpoints, load
from cltt.commands import train
from cltt.distributed import RankInfo
from cltt.errors import SettingsError
from cltt.training import factory
from cltt.training.signals import StopSignals
from tests.helpers import tiny_run, training

FLAGS = ["--frame-step", "1-4", "--clips-per-block", "2", "--mask-overlaps", "--epochs", "2"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("drawn"))


def test_the_loss_is_told_the_frames_of_its_epoch(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = train.parse(training.flags(shards, tmp_path, *FLAGS))
    monkeypatch.setattr(factory, "build_model", tiny_run.tiny_model)
    dataset, cpu = factory.open_dataset(settings.data), torch.device("cpu")
    with factory.build_loader(dataset, factory.build_index(dataset, settings), settings, cpu, RankInfo()) as loader:
        model = factory.start_model(settings, weights=None, say=print)
        trainer = factory.build_trainer(settings, model, loader, cpu, RankInfo(), stop=StopSignals())
        assert trainer.places is not None and loader.plan.clips_per_block == 2
        for epoch in range(2):
            batches = list(zip(range(3), loader, strict=False))
            assert loader.epoch == epoch
            for _, batch in batches:
                assert torch.equal(trainer.places(batch.window_ids), batch.frame_ids)
            loader.set_epoch(epoch + 1)


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(shards: Path, tmp_path: Path) -> None:
    whole, parts = (training.flags(shards, tmp_path / name, *FLAGS) for name in ("whole", "parts"))
    status, losses = training.run_here(whole)
    stopped, first = training.run_here(parts, stop_after=15)
    for changed, told in (("1-3", "frame_step is 1-3 and was 1-4"), ("2", "frame_step is 2 and was 1-4")):
        with pytest.raises(SettingsError, match=told):
            training.run_here([*parts, "--frame-step", changed, "--resume"])
    ended, rest = training.run_here([*parts, "--resume"])
    assert (status, stopped, ended) == (0, 85, 0) and first + rest == losses and len(first) == 15
    models = [load(list_checkpoints(tmp_path / name)[-1])["model"] for name in ("whole", "parts")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    saved = json.loads((tmp_path / "whole/settings.json").read_text())
    assert "1-4" in json.dumps(saved)
