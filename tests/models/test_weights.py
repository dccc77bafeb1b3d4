"""Weights of older scripts and other programs: read as they are, what does not fit named; and what is exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cltt.checkpoint import write
from cltt.config import ModelSettings
from cltt.errors import CLTTError, DataError, SettingsError
from cltt.evaluation.__main__ import main as evaluate
from cltt.export import __main__ as export_module
from cltt.export.__main__ import main as export
from cltt.models.contrastive import ProjectionHead
from cltt.models.encoders import build_encoder
from cltt.models.weights import read_weights
from cltt.training.factory import build_model, load_weights
from tests.helpers.labelled import colour_folder, save_run

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, torch.Tensor]


def encoder_state(backbone: str = "resnet18", seed: int = 1) -> State:
    torch.manual_seed(seed)
    return build_encoder(backbone).state_dict()


def older_file(path: Path, **changes: Any) -> State:
    """A checkpoint as the older script wrote it; returns the encoder's weights."""
    encoder = encoder_state()
    head = ProjectionHead(512, 128).state_dict()
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"projection_head.{name}": value for name, value in head.items()}
    torch.save(
        {"epoch": 10, "model_state_dict": state, "backbone": "resnet18", "proj_dim": 128, "loss": 1.5, **changes}, path
    )
    return encoder


def same(found: State, wanted: State) -> bool:
    return set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


# ---- the older script


def test_a_file_of_the_older_script_is_read(tmp_path: Path) -> None:
    path = tmp_path / "simclr_epoch_010.pth"
    encoder = older_file(path)
    weights = read_weights(path)
    assert same(weights.build_encoder().state_dict(), encoder)
    assert (weights.origin, weights.backbone, weights.normalise, weights.epoch) == ("script", "resnet18", "none", 10)
    assert weights.build_head().state_dict().keys() == ProjectionHead(512, 128).state_dict().keys()


def test_training_starts_from_it(tmp_path: Path) -> None:
    encoder = older_file(tmp_path / "old.pth")
    model = build_model(ModelSettings())
    assert load_weights(model, tmp_path / "old.pth") == str(tmp_path / "old.pth")
    assert same(model.encoder.state_dict(), encoder)
    with pytest.raises(SettingsError, match=r"backbone resnet18; give the same --backbone.*layer1\.0\.conv3\.weight"):
        load_weights(build_model(ModelSettings(backbone="resnet50")), tmp_path / "old.pth")


def test_a_head_of_another_kind_is_named_and_starts_anew(tmp_path: Path) -> None:
    encoder = encoder_state()
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)).state_dict()
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"projection_head.{name}": value for name, value in head.items()}
    torch.save({"model_state_dict": state, "backbone": "resnet18", "proj_dim": 64}, tmp_path / "old.pth")
    model = build_model(ModelSettings())
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    said = load_weights(model, tmp_path / "old.pth")
    assert "head is of another kind" in said and "1.running_mean" in said and "starts anew" in said
    assert same(model.encoder.state_dict(), encoder) and same(model.head.state_dict(), before)
    with pytest.raises(DataError, match="of another kind"):
        read_weights(tmp_path / "old.pth").build_head()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    encoder = {f"encoder.{name}": value for name, value in encoder_state().items() if "layer4" not in name}
    encoder["encoder.extra"] = torch.zeros(2)
    encoder["encoder.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save({"model_state_dict": encoder, "backbone": "resnet18"}, tmp_path / "x.pth")
    with pytest.raises(SettingsError) as error:
        read_weights(tmp_path / "x.pth")
    says = str(error.value)
    assert "missing: layer4.0.conv1.weight" in says and "others" in says and "not known: extra" in says
    assert "conv1.weight is [64, 3, 3, 3] and should be [64, 3, 7, 7]" in says


class Malicious:
    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


@pytest.mark.parametrize(
    "content",
    [{"model_state_dict": {}, "extra": Malicious()}, [1, 2], {"a": 1}, {"model_state_dict": {"encoder.x": 3}}],
)
def test_what_is_no_file_of_weights_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CLTTError, match=r"x\.pth"):
        read_weights(tmp_path / "x.pth")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    older_file(tmp_path / "x.pth")
    data = bytearray((tmp_path / "x.pth").read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        read_weights(tmp_path / "x.pth")


# ---- torchvision and DINO


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50"])
def test_state_dicts_under_torchvisions_names_are_known_by_their_tensors(backbone: str, tmp_path: Path) -> None:
    encoder = encoder_state(backbone)
    lines = [line.split() for line in (GOLDEN / f"{backbone}_names.txt").read_text().splitlines()]
    assert {line[0] for line in lines} >= encoder.keys()  # the list was made with torchvision
    width = 512 if backbone != "resnet50" else 2048
    torch.save({**encoder, "fc.weight": torch.zeros(1000, width), "fc.bias": torch.zeros(1000)}, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert (weights.backbone, weights.origin, weights.normalise) == (backbone, "others", "imagenet")
    assert same(weights.build_encoder().state_dict(), encoder) and weights.head is None


def test_files_of_before_torch_1_6_lack_counters_and_are_no_archives(tmp_path: Path) -> None:
    encoder = encoder_state()
    old = {name: value for name, value in encoder.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "resnet18-5c106cde.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "resnet18-5c106cde.pth").build_encoder().state_dict(), encoder)


def test_dinos_teacher_and_parallel_prefixes_are_unwrapped(tmp_path: Path) -> None:
    encoder = encoder_state()
    teacher = {f"backbone.{name}": value for name, value in encoder.items()} | {"head.mlp.0.weight": torch.zeros(2, 2)}
    torch.save({"teacher": teacher, "student": {}, "epoch": 3}, tmp_path / "dino.pth")
    assert same(read_weights(tmp_path / "dino.pth").build_encoder().state_dict(), encoder)
    torch.save({"state_dict": {f"module.{name}": value for name, value in encoder.items()}}, tmp_path / "p.pth")
    assert same(read_weights(tmp_path / "p.pth").build_encoder().state_dict(), encoder)


def test_evaluation_takes_older_files_with_pixels_from_0_to_1_unless_told(tmp_path: Path) -> None:
    older_file(tmp_path / "simclr_epoch_010.pth")
    flags = ["--checkpoint", str(tmp_path / "simclr_epoch_010.pth"), "--data", str(colour_folder(tmp_path / "d", 4))]
    flags += ["--device", "cpu", "--image-size", "32", "--no-baseline"]
    assert evaluate([*flags, "--out", str(tmp_path / "a")]) == 0
    assert evaluate([*flags, "--out", str(tmp_path / "b"), "--normalise", "imagenet"]) == 0
    (plain,) = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    (imagenet,) = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert (plain["normalise"], plain["epoch"], imagenet["normalise"]) == ("none", 10, "imagenet")
    assert plain["effective_rank"] != imagenet["effective_rank"]


# ---- export


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_export_loads_strictly_and_is_the_checkpoints(suffix: str, tmp_path: Path) -> None:
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    model = save_run(tmp_path / "run")
    out = tmp_path / "new" / f"encoder{suffix}"
    assert export([str(tmp_path / "run"), str(out), "--head"]) == 0
    head_file = out.with_suffix(f".head{suffix}")
    if suffix == ".pth":
        encoder, head = torch.load(out, weights_only=True), torch.load(head_file, weights_only=True)
    else:
        from safetensors.torch import load_file

        encoder, head = load_file(out), load_file(head_file)
    fresh = build_encoder("resnet18")
    fresh.load_state_dict(encoder, strict=True)
    ProjectionHead(512, 128).load_state_dict(head, strict=True)
    assert same(encoder, model.encoder.state_dict()) and same(head, model.head.state_dict())
    assert same(read_weights(out).build_encoder().state_dict(), encoder)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "swin_t"])
def test_exported_names_and_shapes_are_torchvisions(backbone: str, tmp_path: Path) -> None:
    torch.save(encoder_state(backbone), tmp_path / "w.pth")
    export_module.export(tmp_path / "w.pth", tmp_path / "out.pth")
    lines = (GOLDEN / f"{backbone}_names.txt").read_text().splitlines()
    wanted = dict(line.split(" ") for line in lines)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert ("x".join(map(str, value.shape)) or "scalar") == wanted[name]


def test_the_card_says_what_the_encoder_is(tmp_path: Path) -> None:
    history = {
        "epoch": 3, "step": 0, "total_steps": 36, "evaluation": [{"epoch": 3, "test_acc": 0.75}],
        "train": [{"epoch": 2, "loss": 4.0}, {"epoch": 3, "loss": 3.25}],
    }  # fmt: skip
    save_run(tmp_path / "run", fingerprint="abcdef", history=history)
    assert export([str(tmp_path / "run"), str(tmp_path / "encoder.pth")]) == 0
    card = (tmp_path / "encoder.md").read_text()
    for says in ("resnet18", "`abcdef`", "loss 3.25", "test_acc 0.75", "36 steps in all", "less ImageNet's mean"):
        assert says in card
    for setting in ("| window_size | 5 |", "| temperature | 0.5 |", "| image_size | 32 |"):
        assert setting in card
    code = card.split("```python\n")[1].split("```")[0]
    assert "strict=True" in code and "fc = torch.nn.Identity()" in code and '"encoder.pth"' in code
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}", "{tmp}/x.onnx"], "must be .pth or .safetensors"),
        (["{run}", "{tmp}"], "its ending must be"),
        (["{tmp}/nowhere.pt", "{tmp}/x.pth"], "no checkpoint at"),
        (["{run}", "/proc/x/y.pth"], "give another place to export to"),
        (["{tmp}/plain.pth", "{tmp}/x.pth", "--head"], "holds no projection head"),
    ],
)
def test_an_export_that_cannot_work_is_one_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    torch.save(encoder_state(), tmp_path / "plain.pth")
    with pytest.raises(CLTTError, match=says):
        export([part.format(run=tmp_path / "run", tmp=tmp_path) for part in arguments])
    assert not (tmp_path / "x.pth").exists()


def test_a_checkpoint_of_other_weights_than_it_says_is_not_exported(tmp_path: Path) -> None:
    save_run(tmp_path / "run", steps=(0,))
    file = tmp_path / "run" / "epoch-0001.pt"
    state = torch.load(file, weights_only=True)
    del state["model"]["encoder.conv1.weight"]
    write(file, {name: value for name, value in state.items() if name != "version"})
    with pytest.raises(DataError, match=r"not those of a resnet18: missing: conv1\.weight"):
        export([str(file), str(tmp_path / "x.pth")])


def test_both_faces_of_the_command(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    for number, face in enumerate((["-m", "cltt.export"], ["-m", "cltt", "export"])):
        out = tmp_path / f"{number}.pth"
        command = [sys.executable, *face, str(tmp_path / "run"), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"written: {out}" in done.stdout and out.with_suffix(".md").is_file()
