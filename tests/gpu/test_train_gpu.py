"""Training on one CUDA device: a run with autocast, resume to the last bit, caching's memory, the check of the loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cltt import TemporalInfoNCE, checkpoint
from cltt.commands import train
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder
from cltt.training import factory
from cltt.training import run as run_module
from cltt.training.grad_cache import cached_backward
from cltt.training.records import NonFiniteLossError
from cltt.training.trainer import HostCopy
from tests.helpers import training
from tests.helpers.tiny_run import read_losses

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("training"))


def run(shards: Path, run_dir: Path, *more: str) -> list[float]:
    """Losses of a run of ResNet-18 on CUDA."""
    losses: list[float] = []
    settings = train.parse([*training.flags(shards, run_dir), "--device", "cuda", "--epochs", "2", *more])
    assert run_module.train(settings, on_step=losses.append) == 0
    return losses


def test_bf16_begins_as_fp32_and_learns(shards: Path, tmp_path: Path) -> None:
    """Autocast is on by default on CUDA. After the first update how far two runs drift apart depends on the seed."""
    half, full = run(shards, tmp_path / "half"), run(shards, tmp_path / "full", "--amp", "off")
    assert half != full
    assert half[0] == pytest.approx(full[0], abs=0.1)
    assert all(max(losses[-4:]) < 0.9 * losses[0] for losses in (half, full))
    assert (tmp_path / "half" / "metrics.csv").read_text().count("\n") == 3


def test_deterministic_resume_is_bit_identical(shards: Path, tmp_path: Path) -> None:
    """Each run in a process of its own: torch reads cuBLAS's setting once, at the first product of a process."""

    def start(name: str, *more: str) -> list[float]:
        log = tmp_path / f"{name}{len(more)}"
        flags = training.flags(shards, tmp_path / name, "--device", "cuda", "--epochs", "2", "--deterministic", *more)
        status, output = training.run_tiny(flags, log, TINY_NORM="1")
        assert status == 0, output
        return read_losses(log)

    whole, first = start("whole"), start("parts")
    (tmp_path / "parts" / "epoch-0002.pt").unlink()
    rest = start("parts", "--resume")
    assert first == whole
    assert rest == whole[12:]
    weights = [checkpoint.load(tmp_path / name / "epoch-0002.pt")["model"] for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--mask-overlaps", "--shuffle-frames"),
        ("--augment", "simclr"),
        ("--sub-batch-size", "4"),
        ("--optimizer", "adamw", "--schedule", "cosine", "--warmup-steps", "4"),
        ("--optimizer", "sgd", "--schedule", "constant"),
    ],
    ids=str,
)
def test_a_whole_step_never_waits_on_a_stream(shards: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """From one step's end to the end of another: data, forward and backward pass, loss, clipping, update, loss read.

    torch's sync debug mode makes an error of every wait on a stream. The loss is read by an event, behind which the
    rest of the step is queued already.
    """
    steps = 0

    def on_step(loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # all is compiled and allocated
            torch.cuda.set_sync_debug_mode("error")
        elif steps == 10:  # an epoch has 12
            torch.cuda.set_sync_debug_mode("default")

    settings = train.parse([*training.flags(shards, tmp_path), "--device", "cuda", "--epochs", "1", *more])
    try:
        assert run_module.train(settings, on_step=on_step) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 12


def test_caching_holds_no_more_memory_for_a_larger_batch() -> None:
    """Peak memory beyond the batch itself, at 8 and at 64 windows of 8 a time."""

    def peak(windows: int) -> int:
        device = torch.device("cuda")
        encoder = build_encoder("resnet18")
        model = ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim)).to(device)
        frames = torch.zeros(windows, 5, 3, 64, 64, device=device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        cached_backward(model, frames, 8, forward=lambda m, x: m(x), loss_of=TemporalInfoNCE())
        return torch.cuda.max_memory_allocated() - before

    peak(8)  # workspaces of the libraries
    assert peak(64) < peak(8) + 30e6


def test_a_scalar_reaches_the_host_before_the_work_behind_it() -> None:
    x = torch.full((), 3.5, device="cuda")
    copy = HostCopy(x)
    x.fill_(math.nan)
    assert copy.read() == 3.5


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned(TemporalInfoNCE):
        calls = 0

        def forward(self, z: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            Poisoned.calls += 1
            return super().forward(z, *ids) * (math.nan if Poisoned.calls == 15 else 1.0)

    monkeypatch.setattr(factory, "TemporalInfoNCE", Poisoned)
    with pytest.raises(NonFiniteLossError, match=r"epoch 2, step 3"):
        run(shards, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run" / "epoch-0001.pt")["model"]
    assert all(torch.isfinite(value).all() for value in state.values())
