"""``--shuffle-frames``: batches, the loss and a resumed run against clips whose frames were put in order by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cltt import TemporalInfoNCE, WindowIndex
from cltt.commands import train
from cltt.config import TrainSettings
from cltt.distributed import RankInfo
from cltt.training import factory
from cltt.training.signals import StopSignals
from cltt.training.trainer import Trainer
from tests.helpers import tiny_run, training
from tests.helpers.loss_cases import loss_by_hand
from tests.helpers.obvious import count_overlaps, list_windows

CPU = torch.device("cpu")
SEED, SIZE, STEP = 7, 3, 2
FLAGS = ["--shuffle-frames", "--seed", str(SEED)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("shuffled"))


def settings_of(shards: Path, run_dir: Path, *more: str) -> TrainSettings:
    return train.parse(training.flags(shards, run_dir, *FLAGS, *more))


def windows_by_hand(lengths: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clip [N], places [N, T] and frames [N, T] of every window, cut from a list of each clip's shuffled frames."""
    order = WindowIndex(lengths, 1, 1, shuffle_seed=SEED).frames(np.arange(sum(lengths))).ravel()
    begins = np.cumsum([0, *lengths])
    listed = np.array(list_windows(lengths, SIZE, STEP, 1))
    places = (begins[listed[:, 0]] + listed[:, 1])[:, None] + np.arange(SIZE) * STEP
    return listed[:, 0], places, order[places]


def make_trainer(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(factory, "build_model", tiny_run.tiny_model)
    dataset = factory.open_dataset(settings.data)
    loader = factory.build_loader(dataset, factory.build_index(dataset, settings), settings, CPU, RankInfo())
    model = factory.start_model(settings, weights=None, say=print)
    return factory.build_trainer(settings, model, loader, CPU, RankInfo(), stop=StopSignals())


def test_batches_are_windows_of_shuffled_clips_that_do_not_overlap(shards: Path, tmp_path: Path) -> None:
    settings = settings_of(shards, tmp_path)
    dataset = factory.open_dataset(settings.data)
    index = factory.build_index(dataset, settings)
    clip, places, frames = windows_by_hand(dataset.clip_lengths.tolist())
    seen: list[int] = []
    with factory.build_loader(dataset, index, settings, CPU, RankInfo()) as loader:
        for batch in loader:
            ids = batch.window_ids.numpy()
            np.testing.assert_array_equal(batch.frame_ids.numpy(), frames[ids])
            np.testing.assert_array_equal(batch.clip_ids.numpy(), clip[ids])
            assert count_overlaps(clip[ids], places[ids, 0], (SIZE - 1) * STEP + 1) == 0
            seen += ids.tolist()
        assert loader.plan.overlaps == 0 and loader.state_dict()["plan"]["shuffle_seed"] == SEED
    assert len(seen) == len(set(seen)) == len(clip) - len(clip) % settings.data.batch_size
    assert (np.diff(frames, axis=1) == STEP).mean() < 0.1


@pytest.mark.filterwarnings("ignore:.*some batches hold windows")
def test_the_loss_leaves_out_windows_that_share_places(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of most windows, many of which overlap: the loss pair by pair, positives and negatives by hand."""
    settings = settings_of(shards, tmp_path, "--mask-overlaps", "--batch-size", "40", "--max-batches-per-epoch", "1")
    trainer = make_trainer(settings, monkeypatch)
    clip, places, frames = windows_by_hand(trainer.loader.index.clip_lengths.tolist())  # type: ignore[attr-defined]
    seen: list[tuple[torch.Tensor, ...]] = []
    loss_fn = TemporalInfoNCE(settings.model.temperature)

    def spy(z: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        loss = loss_fn(z, *ids)
        seen.append((z.detach(), loss.detach()))
        return loss

    trainer.loss_fn = spy
    batch = next(iter(trainer.loader))
    trainer._loss(trainer._embed(trainer.model, batch.frames), batch)
    ids = batch.window_ids.numpy()
    ((z, loss),) = seen

    def by_hand(stand: np.ndarray) -> float:
        told: Any = {"clip_ids": torch.from_numpy(clip[ids]), "frame_ids": torch.from_numpy(stand[ids])}
        return loss_by_hand(z.double(), settings.model.temperature, told, gap=0)[0]

    assert loss.item() == pytest.approx(by_hand(places), abs=1e-6)
    assert abs(loss.item() - by_hand(frames)) > 1e-4
    trainer.loader.close()  # type: ignore[attr-defined]


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(shards: Path, tmp_path: Path) -> None:
    short = ["--mask-overlaps", "--epochs", "2", "--max-batches-per-epoch", "5"]
    plain = training.flags(shards, tmp_path / "parts", "--seed", str(SEED), *short)
    refused = {"shuffle_frames is False and was True": plain}
    training.assert_resumes(
        lambda name: training.flags(shards, tmp_path / name, *FLAGS, *short), stop_after=3, refused=refused
    )
