"""Weights as other programs write them: found below any prefix, chosen among several, or refused by what is otherwise.

Each case names the public report that it is made after; the files are made here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cltt.commands.train import parse
from cltt.errors import DataError, SettingsError
from cltt.evaluation.__main__ import main as evaluate
from cltt.export.__main__ import main as export
from cltt.models.encoders import build_encoder
from cltt.models.weights import read_weights
from tests.helpers.labelled import colour_folder
from tests.helpers.training import same

State = dict[str, torch.Tensor]


def encoder_of(seed: int) -> State:
    torch.manual_seed(seed)
    return dict(build_encoder("resnet18").state_dict())


FIRST, SECOND = encoder_of(1), encoder_of(2)
MLP = {"0.weight": torch.zeros(8, 512), "0.bias": torch.zeros(8), "2.weight": torch.zeros(4, 8)}


def below(prefix: str, state: State) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def in_sequence(state: State) -> State:
    """Under the names of ``nn.Sequential(*list(resnet.children())[:-1])``."""
    places = {name: str(number) for number, (name, _) in enumerate(build_encoder("resnet18").named_children())}
    return {".".join([places[name.split(".")[0]], *name.split(".")[1:]]): value for name, value in state.items()}


WITH_PREFIXES: dict[str, Any] = {
    # pytorch/pytorch#101107, karpathy/nanoGPT#325: torch.compile
    "compiled": {"model": below("_orig_mod", FIRST), "iter_num": 5},
    # huggingface/pytorch-image-models#2003: DDP around it; the parts compiled one by one
    "compiled, DDP": below("module._orig_mod", FIRST),
    "compiled parts": {name.replace("layer1.", "layer1._orig_mod."): value for name, value in FIRST.items()},
    # open-mmlab/mmdetection#1316: a detector's backbone
    "backbone": {"state_dict": below("backbone", FIRST), "meta": {"epoch": 1}},
    # facebookresearch/swav, src/resnet50.py: heads that are attributes of the network itself
    "SwAV": below("module", FIRST | below("projection_head", MLP) | {"prototypes.weight": torch.zeros(30, 4)}),
    # facebookresearch/simsiam#8: the projector is the encoder's fc, the predictor stands beside
    "SimSiam": {
        "state_dict": {
            **below("module.encoder", FIRST | below("fc", MLP)),
            **below("module.predictor", MLP),
        }
    },
    # facebookresearch/moco#84: the query encoder alone, without "module."
    "MoCo, query": below("encoder_q", FIRST | below("fc", MLP)) | {"queue": torch.zeros(4, 8)},
    # open-mmlab/mmselfsup#74: a number behind it
    "mmselfsup": {"state_dict": below("encoder_q.0", FIRST) | {"queue_ptr": torch.zeros(1)}},
    # facebookresearch/dino#66: the teacher alone, with its head
    "DINO": {"teacher": below("backbone", FIRST) | below("head.mlp", MLP), "epoch": 3},
    # lightly-ai/lightly#1475: Lightning around a Sequential of the ResNet's children
    "Lightning": {
        "state_dict": below("backbone", in_sequence(FIRST)) | below("projection_head.layers", MLP),
        "callbacks": {}, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
    },
    # two names for one encoder, as lucidrains/byol-pytorch#37 saves its network and the wrapper around it
    "twice the same": below("net", FIRST) | below("online_encoder.net", FIRST),
}  # fmt: skip


@pytest.mark.parametrize("content", WITH_PREFIXES.values(), ids=WITH_PREFIXES)
def test_prefixes_come_off(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    weights = read_weights(tmp_path / "w.pth")
    assert (weights.backbone, weights.normalise, weights.head) == ("resnet18", "imagenet", None)
    assert same(weights.encoder, FIRST)


SEVERAL: dict[str, tuple[Any, str, str]] = {
    # facebookresearch/moco's own file (README), in DDP
    "MoCo": (
        {"state_dict": below("module.encoder_q", FIRST) | below("module.encoder_k", SECOND)},
        "encoder_q", "encoder_k",
    ),
    # facebookresearch/dino#65: the student is in DDP, the teacher is not
    "DINO": ({"student": below("module.backbone", FIRST), "teacher": below("backbone", SECOND)}, "student", "teacher"),
    # yaox12/BYOL-PyTorch#2
    "BYOL": ({"online_backbone": FIRST, "target_backbone": SECOND}, "online_backbone", "target_backbone"),
    # HobbitLong/PyContrast#1: CMC's encoders of two views
    "CMC": ({"model": below("module.encoder1", FIRST) | below("module.encoder2", SECOND)}, "encoder1", "encoder2"),
    # lucidrains/byol-pytorch#37: the network a second time
    "BYOL, wrapped": (
        below("net", FIRST) | below("online_encoder.net", FIRST) | below("target_encoder.net", SECOND),
        "net", "target_encoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "first", "second"), SEVERAL.values(), ids=SEVERAL)
def test_of_several_encoders_one_is_chosen_by_name(content: Any, first: str, second: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(SettingsError, match=f"holds 2 encoders; give --weights-prefix {first} or {second}"):
        read_weights(tmp_path / "w.pth")
    for name, wanted in ((first, FIRST), (second, SECOND)):
        assert same(read_weights(tmp_path / "w.pth", prefix=name).encoder, wanted)
    with pytest.raises(SettingsError, match=f"'query', but .* holds no encoder under that prefix; give '{first}' or"):
        read_weights(tmp_path / "w.pth", prefix="query")


def test_of_an_encoder_and_its_average_the_first_has_an_empty_prefix(tmp_path: Path) -> None:
    torch.save(FIRST | below("ema", SECOND), tmp_path / "w.pth")
    with pytest.raises(SettingsError, match="give --weights-prefix '' or ema"):
        read_weights(tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth", prefix="").encoder, FIRST)


def test_every_command_takes_the_prefix(tmp_path: Path) -> None:
    file = str(tmp_path / "moco.pth")
    torch.save(SEVERAL["MoCo"][0], file)
    assert export([file, str(tmp_path / "key.pth"), "--weights-prefix", "encoder_k"]) == 0
    assert same(read_weights(tmp_path / "key.pth").encoder, SECOND)
    data = ["--data", str(colour_folder(tmp_path / "d", 4)), "--device", "cpu", "--image-size", "32", "--no-baseline"]
    assert evaluate(["--checkpoint", file, "--out", str(tmp_path / "e"), *data, "--weights-prefix", "encoder_q"]) == 0
    start = ["--shards", "x", "--checkpoint-path", file]
    with pytest.raises(SettingsError, match="holds 2 encoders"):
        parse(start)
    assert parse([*start, "--weights-prefix", "encoder_q"]).checkpoint.weights_prefix == "encoder_q"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),  # facebookresearch/fairseq#5603
        (np.float64(0.5), "numpy"),  # hhaentze/MRSegmentator#19
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),  # Comfy-Org/ComfyUI#7427: a network
    ],
)
def test_objects_beside_the_weights_are_named_with_the_lines_that_leave_them_out(
    other: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": below("model", FIRST), "other": other}, "run.ckpt")
    assert same(read_weights(saved_alone("run.ckpt", named)).encoder, FIRST)


def test_a_pickled_network_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cadene/pretrained-models.pytorch#203: ``torch.save(model)``."""
    monkeypatch.chdir(tmp_path)
    encoder = build_encoder("resnet18")
    encoder.load_state_dict(FIRST)
    torch.save(encoder, "network.pth")
    assert same(read_weights(saved_alone("network.pth", "torchvision.models.resnet.ResNet")).encoder, FIRST)


def saved_alone(file: str, named: str) -> Path:
    """What the two lines of the refusal write."""
    with pytest.raises(DataError) as error:
        read_weights(Path(file))
    sentence, *lines = str(error.value).splitlines()
    assert named in sentence and "damaged" not in sentence and len(lines) == 2
    exec("\n".join(line.strip() for line in lines), {})
    return Path("weights.pth")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("conv1.weight", torch.nan),  # Rikorose/DeepFilterNet#30: weights of a run that diverged
        ("layer4.1.bn2.running_var", torch.inf),  # eriklindernoren/PyTorch-YOLOv3#89: statistics alone
    ],
)
def test_weights_that_are_not_finite_are_one_sentence(name: str, value: float, tmp_path: Path) -> None:
    state = {key: tensor.clone() for key, tensor in FIRST.items()}
    state[name].view(-1)[-1] = value
    file, data = str(tmp_path / "w.pth"), str(colour_folder(tmp_path / "d", 4))
    torch.save(state, file)
    for command in (
        lambda: evaluate(["--checkpoint", file, "--data", data, "--out", str(tmp_path / "e"), "--device", "cpu"]),
        lambda: export([file, str(tmp_path / "out.pth")]),
        lambda: parse(["--shards", "x", "--checkpoint-path", file]),
    ):
        with pytest.raises(DataError, match=rf"not finite \(NaN or infinity in {name}\)"):
            command()
    assert not (tmp_path / "out.pth").exists()
