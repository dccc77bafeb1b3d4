"""Encoders of timm: from training to export and back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from cltt.checkpoint import list_checkpoints, load
from cltt.commands import train
from cltt.evaluation.__main__ import main as evaluate
from cltt.export.__main__ import main as export
from cltt.models.encoders import build_encoder
from cltt.models.search import empty_encoder
from cltt.models.weights import read_weights
from cltt.training.optim import decay_groups
from tests.helpers import data, training
from tests.helpers.labelled import colour_folder
from tests.helpers.training import refusal, same

timm = pytest.importorskip("timm")
TRANSFORMER, CONVOLUTIONS = "vit_tiny_patch16_224", "convnext_atto"
both = pytest.mark.parametrize("name", [TRANSFORMER, CONVOLUTIONS])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_shards(tmp_path_factory.mktemp("timm"))


def flags(shards: Path, run: Path, backbone: str, *more: str) -> list[str]:
    """One step, of frames of 48 pixels."""
    short = ("--epochs", "1", "--max-batches-per-epoch", "1", "--batch-size", "4", "--image-size", "48")
    return training.flags(shards, run, *short, "--backbone", backbone, *more)


@both
def test_from_training_to_export_and_back(
    name: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "encoder.pth"
    assert train.main(flags(shards, run, f"timm:{name}")) == 0
    saved = load(list_checkpoints(run)[-1])["model"]
    encoder = {key.removeprefix("encoder."): value for key, value in saved.items() if key.startswith("encoder.")}
    assert export([str(run), str(out), "--head"]) == 0
    theirs = timm.create_model(name, num_classes=0)
    theirs.load_state_dict(torch.load(out, weights_only=True), strict=True)
    assert same(theirs.state_dict(), encoder)
    assert f'timm.create_model("{name}", num_classes=0' in (tmp_path / "encoder.md").read_text()
    images = ["--data", str(colour_folder(tmp_path / "data", 4)), "--device", "cpu"]
    assert evaluate(["--checkpoint", str(run), *images]) == 0
    (untrained, trained) = json.loads((run / "evaluation.json").read_text())
    assert trained["backbone"] == f"timm:{name}" and untrained["checkpoint"] == "untrained"
    # A file without the name of its model needs --backbone; more weights than an encoder has do no harm.
    torch.save({**encoder, "head.fc.weight": torch.zeros(5, 2)}, tmp_path / "bare.pth")
    again = flags(shards, tmp_path / "again", f"timm:{name}", "--lr", "1e-12", "--checkpoint-path")
    assert train.main([*again, str(tmp_path / "bare.pth")]) == 0
    assert "its encoder" in capsys.readouterr().out
    other = load(list_checkpoints(tmp_path / "again")[-1])["model"]
    for key, value in encoder.items():
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(other[f"encoder.{key}"], value, atol=1e-6, rtol=0)


@both
def test_a_safetensors_export_says_whose_weights_it_holds(name: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    encoder = build_encoder(f"timm:{name}").state_dict()
    save_file(encoder, tmp_path / "w.safetensors", {"backbone": f"timm:{name}", "normalise": "none"})
    weights = read_weights(tmp_path / "w.safetensors")
    assert (weights.backbone, weights.normalise) == (f"timm:{name}", "none")
    assert same(weights.build_encoder().state_dict(), encoder)


@both
def test_features_are_as_long_as_they_say_and_frames_of_any_size(name: str) -> None:
    encoder = build_encoder(f"timm:{name}").eval()
    for size in (32, 64):
        assert encoder(torch.zeros(2, 3, size, size)).shape == (2, encoder.feature_dim)


def test_learnt_places_do_not_decay() -> None:
    model = torch.nn.Sequential(build_encoder(f"timm:{TRANSFORMER}"))
    free = {id(value) for value in decay_groups(model, 0.1)[1]["params"]}  # type: ignore[attr-defined]
    named = dict(model.named_parameters())
    assert id(named["0.pos_embed"]) in free
    assert not {id(value) for key, value in named.items() if key.endswith("weight") and value.dim() > 1} & free


@pytest.mark.parametrize("name", [f"timm:{TRANSFORMER}", "resnet18", "regnet_y_400mf"])
def test_the_same_seed_makes_the_same_encoder_whatever_was_asked_before(name: str) -> None:
    empty_encoder.cache_clear()
    torch.manual_seed(3)
    first = build_encoder(name).state_dict()
    torch.manual_seed(3)
    empty_encoder(name)
    assert same(build_encoder(name).state_dict(), first)


def test_a_name_that_timm_does_not_have_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before shards are built or a folder is made."""
    frames = data.make_clips(tmp_path / "frames", {"a": 8})
    monkeypatch.chdir(tmp_path)
    for name in ("timm:vit_tiny_patch16", "vit_b_61"):
        said = refusal(["--root-dir", str(frames), "--backbone", name], capsys)
        assert f"'{name}', but t" in said and "has no model of that name; the nearest: vit_" in said
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_frames_of_a_size_that_does_not_fit_are_one_sentence(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(flags(shards, tmp_path / "run", "timm:levit_128s"), capsys)
    assert "timm:levit_128s does not work with images of 48 pixels" in said
    said = refusal(flags(shards, tmp_path / "run", "vit_b_32"), capsys)
    assert "vit_b_32 does not work with images of 48 pixels" in said and not (tmp_path / "run").exists()


def test_without_timm_one_sentence_names_the_extra(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    said = refusal(flags(shards, tmp_path / "run", "timm:vit_small"), capsys)
    assert "--backbone timm:vit_small needs the package timm: pip install 'cltt[timm]'" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("backbone", ["timm:", "ResNet18", "../x", "TIMM:vit_small"])
def test_what_names_no_encoder_is_one_sentence(backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["--shards", "x", "--backbone", backbone], capsys)
    assert f"--backbone is {backbone!r}" in said and "or timm:NAME" in said
