"""A run on several ranks is the run on one: ResNet-18 with BatchNorm, the whole way from frames to CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cltt.distributed import world
from cltt.loss.infonce import TemporalInfoNCE
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.sync_batchnorm import synchronise
from cltt.training.grad_cache import cached_backward
from tests.helpers import training
from tests.helpers.ddp import run_ranks
from tests.helpers.ranks import start_ranks
from tests.helpers.tiny_run import read_losses

# Largest relative difference of a loss, and the learning rate. Adam's first updates are the learning rate times the
# sign of a gradient, whatever its size, so rounding grows with it: in float32, permuting the rows of a batch in one
# process changes the losses by up to 4e-5 at 3e-6, 5e-4 at 1e-5 and 5e-2 at 1e-3 (float64 trains at the default).
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
LEARNING_RATE = {"float64": "1e-3", "float32": "3e-6"}
STEPS = 20


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("ranks"))


def run_resnet(shards: Path, folder: Path, world_size: int, dtype: str) -> None:
    """20 steps of ResNet-18 in two epochs; each step's loss in ``folder``/losses, the run in ``folder``/run."""
    arguments = [*training.flags(shards, folder / "run"), "--epochs", "2", "--max-batches-per-epoch", "10"]
    arguments += ["--lr", LEARNING_RATE[dtype]]
    with start_ranks(
        folder, arguments, world_size, module="tests.helpers.tiny_run", MODEL="real", MODEL_TYPE=dtype
    ) as ranks:
        assert ranks.wait(timeout=400) == [0] * world_size, ranks.outputs


@pytest.fixture(scope="module", params=list(TOLERANCE))
def one_process(shards: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("one") / request.param
    run_resnet(shards, folder, 1, request.param)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_resnet18_makes_the_steps_of_one_process(
    world_size: int, one_process: Path, shards: Path, tmp_path: Path
) -> None:
    dtype = one_process.name
    run_resnet(shards, tmp_path, world_size, dtype)
    wanted, found = read_losses(one_process / "losses"), read_losses(tmp_path / "losses")
    assert len(wanted) == len(found) == STEPS
    assert found == pytest.approx(wanted, rel=TOLERANCE[dtype], abs=0)
    rows = [read_rows(folder / "run" / "metrics.csv") for folder in (one_process, tmp_path)]
    assert len(rows[0]) == 2
    for one, several in zip(*rows, strict=True):
        assert several == pytest.approx(one, rel=TOLERANCE[dtype], abs=0)


def read_rows(path: Path) -> list[list[float]]:
    with open(path) as file:
        return [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]


# ---- gradient caching over ranks

B, T, SIDE, SUB = 4, 2, 8, 2  # windows per rank, frames per window, pixels, windows embedded at a time


def small_model() -> ContrastiveModel:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 10))
    return ContrastiveModel(encoder, ProjectionHead(10, 4)).double()


def windows_of(rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(B, T, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) + rank


def embed(model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    return model(frames)


def cached_on_ranks() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    model = small_model()
    synchronise(model)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    cached_backward(wrapped, windows_of(world().rank), SUB, forward=embed, loss_of=TemporalInfoNCE(0.5))
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())


def one_pass() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same sub-batches, joined over the ranks, in one process and in one pass with a graph."""
    model = small_model()
    parts = zip(windows_of(0).split(SUB), windows_of(1).split(SUB), strict=True)
    embedded = [model(torch.cat(pair)).chunk(2) for pair in parts]
    z = torch.cat([torch.cat([pair[rank] for pair in embedded]) for rank in (0, 1)])
    TemporalInfoNCE(0.5)(z).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())


def test_sub_batches_over_ranks_move_gradients_and_statistics_as_one_pass() -> None:
    wanted_grads, wanted_buffers = one_pass()
    assert wanted_buffers["encoder.1.num_batches_tracked"] == B // SUB
    for grads, buffers in run_ranks(cached_on_ranks, 2, timeout=180):
        assert grads.keys() == wanted_grads.keys()
        for name, value in [*wanted_grads.items(), *wanted_buffers.items()]:
            torch.testing.assert_close({**grads, **buffers}[name], value, rtol=1e-9, atol=1e-12, msg=name)


def cached_in_bfloat16() -> bool:
    def autocast(model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(frames).float()

    model = small_model().float()
    synchronise(model)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    frames = windows_of(world().rank).float()
    loss = cached_backward(wrapped, frames, SUB, forward=autocast, loss_of=TemporalInfoNCE(0.5))
    return bool(loss.isfinite()) and all(
        p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()
    )


def test_sub_batches_over_ranks_in_bfloat16() -> None:
    assert run_ranks(cached_in_bfloat16, 2, timeout=180) == [True, True]
