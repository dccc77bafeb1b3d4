"""Optimizers and schedules: against updates and learning rates written out, what decays, and runs that are resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from cltt.checkpoint import list_checkpoints, load
from cltt.config import OptimSettings
from cltt.config.recipe import OPTIMIZERS, SCHEDULES
from cltt.errors import SettingsError
from cltt.metrics import read_run
from cltt.models.search import BACKBONES, empty_encoder
from cltt.training.optim import build_optimizer, decay_groups, load_optimizer
from tests.helpers import training

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 4  # steps per epoch
LR = 0.02


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("optim"))


@pytest.fixture
def rates() -> Iterator[list[float]]:
    """The learning rate of every update that any optimizer makes."""
    seen: list[float] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        seen.append(rate)

    hook = register_optimizer_step_pre_hook(note)
    yield seen
    hook.remove()


def flags(shards: Path, run_dir: Path, *more: str) -> list[str]:
    short = ("--epochs", str(EPOCHS), "--max-batches-per-epoch", str(STEPS), "--image-size", "16", "--lr", str(LR))
    return training.flags(shards, run_dir, *short, *more)


def curve(schedule: str, warmup: int) -> list[float]:
    """The learning rate of each step, and of the step after the last, one by one."""
    found = []
    for step in range(EPOCHS * STEPS + 1):
        if schedule == "constant":
            height = 1.0
        elif schedule == "epochs":
            height = 0.5 + 0.5 * math.cos(math.pi * (step // STEPS) / EPOCHS)
        elif step < warmup:
            height = 1.0
        else:
            height = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (EPOCHS * STEPS - warmup))
        found.append(LR * height * (step + 1) / warmup if step < warmup else LR * height)
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 6])
def test_learning_rates_are_those_of_the_formula(
    schedule: str, warmup: int, shards: Path, tmp_path: Path, rates: list[float]
) -> None:
    """In every update, and in the CSV: there that of the next step, at the end of each epoch."""
    arguments = flags(shards, tmp_path / "run", "--schedule", schedule, "--warmup-steps", str(warmup))
    assert training.run_here(arguments)[0] == 0
    wanted = curve(schedule, warmup)
    assert rates == pytest.approx(wanted[:-1], abs=1e-12)
    rows = read_run(tmp_path / "run").train
    assert rows["learning_rate"] == pytest.approx(wanted[STEPS::STEPS], abs=1e-12)
    assert rows["decay_rate"] == pytest.approx([rate / LR for rate in wanted[STEPS::STEPS]], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_stopped_anywhere_ends_with_the_same_bits(
    optimizer: str, schedule: str, shards: Path, tmp_path: Path
) -> None:
    """Stopped within the warm-up, and after it."""
    recipe = ["--optimizer", optimizer, "--schedule", schedule, "--warmup-steps", "5", "--weight-decay", "0.01"]
    whole, parts = (flags(shards, tmp_path / name, *recipe) for name in ("whole", "parts"))
    assert training.run_here(whole)[0] == 0
    for steps, status in ((3, 85), (4, 85), (0, 0)):
        assert training.run_here([*parts, "--resume"], stop_after=steps)[0] == status
    assert (tmp_path / "parts/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()
    states = [load(list_checkpoints(tmp_path / name)[-1]) for name in ("whole", "parts")]
    for part in ("model", "optimizer", "scheduler"):
        assert repr(states[0][part]) == repr(states[1][part])
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())


def test_resume_wants_the_same_recipe(shards: Path, tmp_path: Path) -> None:
    arguments = flags(shards, tmp_path / "run", "--optimizer", "sgd", "--momentum", "0.5")
    assert training.run_here(arguments, stop_after=1)[0] == 85
    other = flags(shards, tmp_path / "run", "--optimizer", "adamw", "--schedule", "cosine", "--warmup-steps", "2")
    with pytest.raises(SettingsError) as refused:
        training.run_here([*other, "--resume"])
    for words in (
        "optimizer is adamw and was sgd",
        "momentum is None and was 0.5",
        "schedule is cosine and was epochs",
    ):
        assert words in str(refused.value)
    assert "warmup_steps is 2 and was 0" in str(refused.value)


# ---- updates


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False)).double()


def updated(optim: OptimSettings, gradients: list[list[torch.Tensor]]) -> list[np.ndarray]:
    """The parameters of the small model after an update with each of ``gradients``."""
    model = small_model()
    optimizer, _ = build_optimizer(model, optim, CPU, STEPS)
    for given in gradients:
        for value, gradient in zip(model.parameters(), given, strict=True):
            value.grad = gradient.clone()
        optimizer.step()
    return [value.detach().numpy() for value in model.parameters()]


@pytest.fixture
def gradients() -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    shapes = [value.shape for value in small_model().parameters()]
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(3)]


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_sgd_is_momentum_with_decay_of_matrices_alone(
    momentum: float | None, gradients: list[list[torch.Tensor]]
) -> None:
    found = updated(OptimSettings(optimizer="sgd", momentum=momentum, lr=0.1, weight_decay=0.3), gradients)
    for number, value in enumerate(small_model().parameters()):
        weight = value.detach().numpy().copy()
        speed = np.zeros_like(weight)
        for given in gradients:
            gradient = given[number].numpy() + (0.3 * weight if weight.ndim == 2 else 0)
            speed = (0.9 if momentum is None else momentum) * speed + gradient
            weight = weight - 0.1 * speed
        np.testing.assert_allclose(found[number], weight, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_adds_its_decay_to_every_gradient_and_adamw_shrinks_matrices(
    optimizer: str, gradients: list[list[torch.Tensor]]
) -> None:
    found = updated(OptimSettings(optimizer=optimizer, lr=0.1, weight_decay=0.3), gradients)
    for number, value in enumerate(small_model().parameters()):
        weight = value.detach().numpy().copy()
        mean, square = np.zeros_like(weight), np.zeros_like(weight)
        for step, given in enumerate(gradients, start=1):
            gradient = given[number].numpy()
            if optimizer == "adam":
                gradient = gradient + 0.3 * weight
            elif weight.ndim == 2:
                weight = weight - 0.1 * 0.3 * weight
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            weight = weight - 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(found[number], weight, rtol=1e-10)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_norms_biases_and_relative_places_do_not_decay(backbone: str) -> None:
    encoder = empty_encoder(backbone)
    decayed, free = ({id(value) for value in group["params"]} for group in decay_groups(encoder, 0.1))  # type: ignore[attr-defined]
    named = dict(encoder.named_parameters())
    assert len(decayed) + len(free) == len(named) and not decayed & free
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    for prefix, module in encoder.named_modules():
        for name, value in module.named_parameters(prefix, recurse=False):
            shifts = name.endswith(("bias", "relative_position_bias_table"))
            assert (id(value) in free) == (isinstance(module, norms) or shifts), name


def test_the_default_is_adam_of_one_group_and_torchs_cosine() -> None:
    """What checkpoints of earlier versions hold."""
    optimizer, scheduler = build_optimizer(small_model(), OptimSettings(), CPU, STEPS)
    assert type(optimizer) is torch.optim.Adam and len(optimizer.param_groups) == 1
    assert type(scheduler) is torch.optim.lr_scheduler.CosineAnnealingLR and scheduler.T_max == 25


def test_a_warm_up_longer_than_the_run_is_refused_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--warmup-steps is 13, but the run has 12 steps \(3 epochs of 4\)"):
        training.run_here(flags(shards, tmp_path / "run", "--warmup-steps", "13"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("saved_fused", [True, False])
def test_a_state_of_another_device_goes_on_as_if_it_had_been_saved_here(optimizer: str, saved_fused: bool) -> None:
    """A GPU saves fused and channels-last; here parameters are contiguous. The CPU has fused kernels, too."""
    optim = OptimSettings(optimizer=optimizer, lr=LR)

    def start(fused: bool, order: torch.memory_format) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=order)  # type: ignore[call-overload]
        built, _ = build_optimizer(model, optim, CPU, STEPS)
        for group in built.param_groups:
            group["fused"] = fused or None
        return model, built

    def step(model: nn.Module, built: torch.optim.Optimizer) -> None:
        torch.manual_seed(1)
        built.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().sum().backward()
        built.step()

    there = start(saved_fused, torch.channels_last)
    step(*there)
    here = start(not saved_fused, torch.contiguous_format)
    here[0].load_state_dict(there[0].state_dict())
    load_optimizer(here[1], copy.deepcopy(there[1].state_dict()))
    assert all(group["fused"] == (not saved_fused or None) for group in here[1].param_groups)
    step(*there)
    step(*here)
    for got, wanted in zip(here[0].parameters(), there[0].parameters(), strict=True):
        torch.testing.assert_close(got, wanted)
