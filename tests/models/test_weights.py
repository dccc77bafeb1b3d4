"""Weights of older scripts and other programs: read as they are, what does not fit named; and what is exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from cltt.checkpoint import write
from cltt.commands.train import parse
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
from tests.helpers.training import same

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, torch.Tensor]


def encoder_state(backbone: str = "resnet18", seed: int = 1) -> State:
    torch.manual_seed(seed)
    return build_encoder(backbone).state_dict()


class Older(nn.Module):
    """The older script's network, of plain torch and torchvision."""

    def __init__(self, bias: bool = True, proj_dim: int = 128) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = torchvision.models.resnet18()
        self.encoder.fc = nn.Identity()
        self.projection_head = nn.Sequential(
            nn.Linear(512, 512, bias=bias), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, proj_dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.encoder(x))


def older_file(path: Path, network: Older | None = None, **changes: Any) -> State:
    """A checkpoint as the older script wrote it; returns the encoder's weights."""
    network = network or Older()
    optimizer = torch.optim.AdamW(network.parameters())
    state = {
        "epoch": 10, "model_state_dict": network.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
        "proj_dim": 128, "backbone": "resnet18", "history": {"loss": [1.5]}, "scheduler_state_dict": {"last_epoch": 10},
        "global_step": 1000,
    }  # fmt: skip
    torch.save({**state, **changes}, path)
    return network.encoder.state_dict()


# ---- the older script


def test_a_file_of_the_older_script_is_read(tmp_path: Path) -> None:
    path = tmp_path / "simclr_epoch_010.pth"
    encoder = older_file(path)
    weights = read_weights(path, normalise="none")
    assert same(weights.build_encoder().state_dict(), encoder)
    assert (weights.origin, weights.backbone, weights.normalise, weights.epoch) == ("script", "resnet18", "none", 10)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_its_head_gives_the_same_embeddings(bias: bool, training: bool, tmp_path: Path) -> None:
    """Also after a step of training, in which its statistics move."""
    theirs = Older(bias)
    with torch.no_grad():
        for name, value in theirs.projection_head.named_buffers():
            if "running" in name:
                value.add_(torch.rand_like(value))
    older_file(tmp_path / "old.pth", theirs)
    ours = build_model(ModelSettings())
    assert load_weights(ours, tmp_path / "old.pth", normalise="none") == str(tmp_path / "old.pth")
    frames = torch.randn(2, 3, 3, 48, 48)
    for mode in (training, False):
        z = ours.train(mode)(frames)
        torch.testing.assert_close(z.flatten(0, 1), theirs.train(mode)(frames.flatten(0, 1)), rtol=1e-5, atol=1e-5)
    # Trained further, exported and read again it stays the same head.
    head = read_weights(tmp_path / "old.pth", normalise="none").build_head().eval()
    features = torch.randn(3, 512)
    older = Older(bias)
    older.load_state_dict(torch.load(tmp_path / "old.pth")["model_state_dict"])
    torch.testing.assert_close(head(features), older.eval().projection_head(features), rtol=1e-5, atol=1e-5)


def test_training_starts_from_it(tmp_path: Path) -> None:
    encoder = older_file(tmp_path / "old.pth")
    model = build_model(ModelSettings())
    load_weights(model, tmp_path / "old.pth", normalise="none")
    assert same(model.encoder.state_dict(), encoder)
    with pytest.raises(SettingsError, match=r"backbone resnet18; give the same --backbone.*layer1\.0\.conv3\.weight"):
        load_weights(build_model(ModelSettings(backbone="resnet50")), tmp_path / "old.pth", normalise="none")


def test_how_pixels_entered_must_be_said(tmp_path: Path) -> None:
    file = tmp_path / "simclr_epoch_010.pth"
    older_file(file)
    data = ["--data", str(colour_folder(tmp_path / "d", 4)), "--device", "cpu", "--image-size", "32", "--no-baseline"]
    for command in (
        lambda: read_weights(file),
        lambda: evaluate(["--checkpoint", str(file), *data]),
        lambda: export([str(file), str(tmp_path / "x.pth")]),
        lambda: parse(["--shards", "x", "--checkpoint-path", str(file)]),
    ):
        with pytest.raises(SettingsError, match=r"--normalise imagenet .*2026-03-03.* or --normalise none"):
            command()  # type: ignore[no-untyped-call]
    assert parse(["--shards", "x", "--checkpoint-path", str(file), "--normalise", "none"]).data.normalise == "none"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("normalise", ["none", "imagenet"])
def test_what_is_made_from_it_remembers_how_pixels_entered(suffix: str, normalise: str, tmp_path: Path) -> None:
    older_file(tmp_path / "old.pth")
    out = tmp_path / f"encoder{suffix}"
    assert export([str(tmp_path / "old.pth"), str(out), "--normalise", normalise, "--image-size", "32"]) == 0
    weights = read_weights(out)
    assert (weights.backbone, weights.normalise, weights.image_size) == ("resnet18", normalise, 32)


def test_a_head_of_another_kind_is_named_and_starts_anew(tmp_path: Path) -> None:
    encoder = encoder_state()
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64)).state_dict()
    state = {f"encoder.{name}": value for name, value in encoder.items()}
    state |= {f"projection_head.{name}": value for name, value in head.items()}
    torch.save({"model_state_dict": state, "backbone": "resnet18", "proj_dim": 64}, tmp_path / "old.pth")
    model = build_model(ModelSettings())
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    said = load_weights(model, tmp_path / "old.pth", normalise="none")
    assert "head does not fit" in said and "1.running_mean" in said and "starts with random weights" in said
    assert same(model.encoder.state_dict(), encoder) and same(model.head.state_dict(), before)
    with pytest.raises(DataError, match="does not fit a head"):
        read_weights(tmp_path / "old.pth", normalise="none").build_head()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    encoder = {f"encoder.{name}": value for name, value in encoder_state().items() if "layer4" not in name}
    encoder["encoder.extra"] = torch.zeros(2)
    encoder["encoder.conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save({"model_state_dict": encoder, "backbone": "resnet18"}, tmp_path / "x.pth")
    with pytest.raises(SettingsError) as error:
        read_weights(tmp_path / "x.pth")
    says = str(error.value)
    assert "missing: layer4.0.conv1.weight" in says and "others" in says and "unknown: extra" in says
    assert "conv1.weight has shape [64, 3, 3, 3], expected [64, 3, 7, 7]" in says


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


# ---- torchvision


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


def test_evaluation_takes_older_files_with_pixels_as_told(tmp_path: Path) -> None:
    older_file(tmp_path / "simclr_epoch_010.pth")
    flags = ["--checkpoint", str(tmp_path / "simclr_epoch_010.pth"), "--data", str(colour_folder(tmp_path / "d", 4))]
    flags += ["--device", "cpu", "--image-size", "32", "--no-baseline"]
    for normalise in ("none", "imagenet"):
        assert evaluate([*flags, "--out", str(tmp_path / normalise), "--normalise", normalise]) == 0
    plain, imagenet = (json.loads((tmp_path / n / "evaluation.json").read_text())[0] for n in ("none", "imagenet"))
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
    for says in ("resnet18", "`abcdef`", "loss 3.25", "test_acc 0.75", "less ImageNet's mean"):
        assert says in card
    for setting in ("| window_size | 5 |", "| temperature | 0.5 |", "| image_size | 32 |"):
        assert setting in card
    assert "3 epochs, 36 steps in all" in card


@pytest.mark.parametrize(
    ("backbone", "suffix"), [("resnet18", ".pth"), ("vit_b_32", ".pth"), ("swin_t", ".safetensors")]
)
def test_the_cards_code_runs_without_this_package(backbone: str, suffix: str, tmp_path: Path) -> None:
    encoder = build_encoder(backbone, 64).eval()
    torch.save(encoder.state_dict(), tmp_path / "w.pth")
    arguments = ["--backbone", backbone, "--image-size", "64"]
    assert export([str(tmp_path / "w.pth"), str(tmp_path / f"encoder{suffix}"), *arguments]) == 0
    (card,) = (path.read_text() for path in tmp_path.glob("encoder*.md"))
    code = "import sys; sys.modules['cltt'] = None\n" + card.split("```python\n")[1].split("```")[0]
    code += "torch.save(encoder.eval()(torch.ones(1, 3, 64, 64)), 'features.pth')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "features.pth"), encoder(torch.ones(1, 3, 64, 64)))


def test_each_export_has_its_card_and_keeps_its_head(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    save_run(tmp_path / "run")
    run, pth, other = str(tmp_path / "run"), tmp_path / "encoder.pth", tmp_path / "encoder.safetensors"
    assert export([run, str(pth), "--head"]) == export([run, str(other)]) == export([run, str(pth)]) == 0
    card, others_card = (tmp_path / "encoder.md").read_text(), (tmp_path / "encoder.safetensors.md").read_text()
    assert "`encoder.pth`" in card and "`encoder.head.pth`" in card and "safetensors" not in card
    assert "`encoder.safetensors`" in others_card and "head" not in others_card and ".pth" not in others_card
    (tmp_path / "encoder.head.pth").write_bytes(b"of another checkpoint")
    assert export([run, str(pth)]) == 0
    assert "`encoder.head.pth`" not in (tmp_path / "encoder.md").read_text()


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
    with pytest.raises(DataError, match=r"do not fit a resnet18: missing: conv1\.weight"):
        export([str(file), str(tmp_path / "x.pth")])


def test_both_faces_of_the_command(tmp_path: Path) -> None:
    save_run(tmp_path / "run")
    for number, face in enumerate((["-m", "cltt.export"], ["-m", "cltt", "export"])):
        out = tmp_path / f"{number}.pth"
        command = [sys.executable, *face, str(tmp_path / "run"), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"written: {out}" in done.stdout and out.with_suffix(".md").is_file()
