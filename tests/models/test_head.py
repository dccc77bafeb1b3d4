"""The projection head: the default as it was, other widths and depths, and the way through checkpoints and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cltt.checkpoint import list_checkpoints, load, write
from cltt.commands import train
from cltt.config import ModelSettings
from cltt.errors import DataError, SettingsError
from cltt.evaluation.__main__ import main as evaluate
from cltt.export.__main__ import main as export
from cltt.models.contrastive import ProjectionHead
from cltt.models.weights import read_weights
from cltt.training.factory import build_model, load_weights
from tests.helpers import training
from tests.helpers.labelled import colour_folder, save_run

HEAD = ["--proj-hidden", "24", "--proj-layers", "3", "--proj-dim", "6"]


def test_the_default_is_simclrs_head_bit_for_bit() -> None:
    torch.manual_seed(3)
    head = ProjectionHead(8, 5)
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 5))
    assert [*head.state_dict()] == [*plain.state_dict()]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in head.state_dict().items())
    assert torch.equal(head(torch.ones(2, 8)), plain(torch.ones(2, 8)))


@pytest.mark.parametrize(
    ("hidden", "layers", "widths"), [(None, 3, [8, 8, 8, 5]), (12, 2, [8, 12, 5]), (12, 3, [8, 12, 12, 5])]
)
def test_widths_and_layers(hidden: int | None, layers: int, widths: list[int]) -> None:
    head = ProjectionHead(8, 5, hidden=hidden, layers=layers)
    linear = [module for module in head if isinstance(module, nn.Linear)]
    assert [linear[0].in_features, *(module.out_features for module in linear)] == widths
    assert [module.bias is not None for module in linear] == [False] * (layers - 1) + [True]
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1) + [nn.Linear]
    assert [type(module) for module in head] == kinds
    assert head(torch.ones(2, 8)).shape == (2, 5)


def test_another_head_goes_through_training_evaluation_export_and_a_new_start(tmp_path: Path) -> None:
    shards, run = training.make_shards(tmp_path), tmp_path / "run"
    arguments = training.flags(shards, run, *HEAD, "--epochs", "1", "--max-batches-per-epoch", "1")
    assert train.main(arguments) == 0
    saved = load(list_checkpoints(run)[-1])
    kept = {name.removeprefix("head."): value for name, value in saved["model"].items() if name.startswith("head.")}
    assert (
        kept["0.weight"].shape == (24, 512) and kept["3.weight"].shape == (24, 24) and kept["6.weight"].shape == (6, 24)
    )
    head = read_weights(run).build_head().state_dict()
    assert head.keys() == kept.keys() and all(torch.equal(value, kept[name]) for name, value in head.items())
    assert export([str(run), str(tmp_path / "encoder.pth"), "--head"]) == 0
    written = torch.load(tmp_path / "encoder.head.pth", weights_only=True)
    assert all(torch.equal(value, kept[name]) for name, value in written.items())
    assert "| proj_hidden | 24 |" in (tmp_path / "encoder.md").read_text()
    data = ["--data", str(colour_folder(tmp_path / "data", 4)), "--device", "cpu", "--image-size", "32"]
    assert evaluate(["--checkpoint", str(run), *data]) == 0
    same = build_model(ModelSettings(proj_dim=6, proj_hidden=24, proj_layers=3))
    load_weights(same, run)
    assert all(torch.equal(value, saved["model"][name]) for name, value in same.state_dict().items())
    with pytest.raises(
        SettingsError, match=r"with proj_dim 6, proj_hidden 24, proj_layers 3; give the same --backbone"
    ):
        load_weights(build_model(ModelSettings(proj_dim=6, proj_hidden=24)), run)
    with pytest.raises(SettingsError, match="proj_layers is 2 and was 3"):
        train.main(
            [*training.flags(shards, run, "--proj-hidden", "24", "--proj-dim", "6"), "--epochs", "1", "--resume"]
        )


def test_a_file_cannot_ask_for_a_huge_head(tmp_path: Path) -> None:
    """Tensors without columns take no room in a file, however many rows they claim."""
    model = save_run(tmp_path / "run", steps=(0,))
    state = {**model.state_dict(), "head.0.weight": torch.zeros(10**12, 0)}
    saved = load(list_checkpoints(tmp_path / "run")[-1])
    path = tmp_path / "epoch-0001.pt"
    write(path, {**{name: value for name, value in saved.items() if name != "version"}, "model": state})
    with pytest.raises(DataError, match="does not fit a head"):
        read_weights(path).build_head()
