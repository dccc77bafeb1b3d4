"""``--frame-step A-B`` and ``--clips-per-block``: what the loss is told, and a run that is stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cltt.commands import train
from cltt.distributed import RankInfo
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
    def arguments(name: str, *more: str) -> list[str]:
        return training.flags(shards, tmp_path / name, *FLAGS, *more)

    steps = ("1-3", "2")
    refused = {f"frame_step is {step} and was 1-4": arguments("parts", "--frame-step", step) for step in steps}
    training.assert_resumes(arguments, stop_after=15, refused=refused)
    assert "1-4" in json.dumps(json.loads((tmp_path / "whole/settings.json").read_text()))
