"""What a run says of itself: the block at its start, the line of an epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.config import OptimSettings
from cltt.text import byte_size
from cltt.training.optim import build_optimizer
from cltt.training.overview import overview
from cltt.training.records import Records
from tests.helpers import data


def test_the_block_counts_what_is_there_and_what_is_left_out(tmp_path: Path) -> None:
    clips = data.make_clips(tmp_path / "clips", {"a": 30, "b": 21, "short": 4}, height=16, width=16)
    dataset = ShardDataset(build_shards(clips, tmp_path / "shards", workers=1).path)
    size = sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    index = WindowIndex(dataset.clip_lengths, 3, 4)
    with WindowLoader(dataset, index, 4, image_size=16, device="cpu") as loader:
        lines = list(overview(dataset, "all", nn.Linear(2, 2), loader, len(loader), "the CPU"))
        some = list(overview(dataset, "all", nn.Linear(2, 2), loader, 2, "the CPU"))
    windows = 30 - 8 + 21 - 8
    assert lines[:6] == [
        f"data: {tmp_path / 'shards'} ({byte_size(size)}), split all: 3 clips of 3, 55 frames",
        f"windows: {windows} of 3 frames, 4 apart (span 9 frames)",
        f"steps: {windows // 4} per epoch, 4 windows each",
        "left out: 1 clip too short for a window",
        f"left out: {windows % 4} windows per epoch, others in each, as a batch is never cut short",
        "device: the CPU",
    ]
    assert lines[6].startswith("main memory: ") and len(lines) == 7
    longer = WindowIndex(dataset.clip_lengths, 3, 12)
    with WindowLoader(dataset, longer, 2, image_size=16, device="cpu") as loader:
        lines = list(overview(dataset, "all", nn.Linear(2, 2), loader, len(loader), "the CPU"))
    assert lines[3] == (
        "warning: left out: 2 clips too short for a window; a smaller --frame-step or --window-size uses more clips"
    )
    assert some[4] == f"left out: {windows - 8} windows per epoch, others in each, by --max-batches-per-epoch"


@pytest.mark.parametrize("moves", [{}, {"schedule": "cosine", "warmup_steps": 3}, {"schedule": "constant"}])
def test_the_line_of_an_epoch_shows_the_rate_of_its_last_step(moves: dict[str, object]) -> None:
    optim = OptimSettings(epochs=3, lr=0.1, **moves)  # type: ignore[arg-type]
    optimizer, scheduler = build_optimizer(nn.Linear(2, 2), optim, torch.device("cpu"), 4)
    for step in range(12):
        used = optimizer.param_groups[0]["lr"]
        optimizer.step()
        ends = step % 4 == 3
        if optim.moves_every_step or ends:
            scheduler.step()
        if ends:
            records = SimpleNamespace(
                settings=SimpleNamespace(optim=optim), loader=range(4), history=SimpleNamespace(total_steps=step + 1)
            )
            assert Records._learning_rate(records) == pytest.approx(used)  # type: ignore[arg-type]
