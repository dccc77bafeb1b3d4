"""What training says of its evaluation data and of the weights it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cltt.commands.train import parse
from cltt.config import differences
from cltt.errors import DataError, SettingsError
from cltt.models.encoders import build_encoder
from cltt.training.run import _open_evaluator
from tests.helpers import training
from tests.helpers.labelled import COLOURS, colour_folder, save_run, write_image


@pytest.mark.slow
def test_clips_of_training_are_warned_of_and_other_evaluation_data_at_resume_are_said(tmp_path: Path) -> None:
    """The shards have no splits: all their clips are trained on, and a fifth of the same is the test part."""
    shards = training.make_shards(tmp_path)
    run = tmp_path / "run"
    arguments = [*training.flags(shards, run, "--eval-data", str(shards)), "--max-batches-per-epoch", "2"]
    status, said = training.run_tiny([*arguments, "--epochs", "2"], tmp_path / "losses")
    assert status == 0, said
    assert "images are of clips that the encoder is trained on" in said
    assert "note: evaluation data: a class has fewer than three clips" in said
    rows = json.loads((run / "evaluation.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["checkpoint"] == "in training, epoch 2"
    assert (run / "metrics_eval.csv").read_text().splitlines()[0] == (
        "epoch,train_loss,train_acc,val_loss,val_acc,test_loss,test_acc"
    )
    (run / "epoch-0002.pt").unlink()
    colours = colour_folder(tmp_path / "colours", 4)
    again = [*training.flags(shards, run, "--eval-data", str(colours), "--resume"), "--max-batches-per-epoch", "2"]
    status, said = training.run_tiny([*again, "--epochs", "2"], tmp_path / "losses2")
    assert status == 0, said
    assert f"note: --eval-data is {colours} and was {shards}" in said and "trained on" not in said
    assert [row["classes"] for row in json.loads((run / "evaluation.json").read_text())] == [2, 3]


def test_training_takes_the_label_rules_of_the_evaluation(tmp_path: Path) -> None:
    """Files that say neither class nor part by where they lie; rules of another run are said at a resume."""
    images = tmp_path / "images"
    for session in ("s1", "s2", "s3"):
        for number, colour in enumerate(COLOURS):
            for view in range(3):
                write_image(images / f"{session}_{colour}_{view}.png", (60 * number, 90, 10 * view))
    rules = ["--eval-data", str(images), "--label-from", r"regex:_([a-z]+)_", "--group-from", r"regex:^(s\d)_"]
    settings = parse(["--shards", "x", *rules, "--test-groups", "s3"])
    evaluator = _open_evaluator(settings, torch.device("cpu"))
    assert evaluator is not None and evaluator.data.label_names == sorted(COLOURS)
    paths = evaluator.data.source.places(evaluator.data.parts["test"].ids).path
    assert sorted(paths) == sorted(path.name for path in images.glob("s3_*"))
    saved = json.loads(json.dumps(settings.to_dict()))
    assert differences(saved, parse(["--shards", "x", *rules, "--test-groups", "s2"]).to_dict()) == []
    with pytest.raises(SettingsError, match="label_from need --eval-data, which they label; give --eval-data too"):
        parse(["--shards", "x", "--label-from", "parent"])


FLAGS = ["--shards", "x", "--checkpoint-path"]


def test_pixels_enter_as_they_did_for_the_weights_unless_told(tmp_path: Path) -> None:
    torch.save(build_encoder("resnet18").state_dict(), tmp_path / "torchvision.pth")
    save_run(tmp_path / "run")
    assert parse([*FLAGS, str(tmp_path / "torchvision.pth")]).data.normalise == "imagenet"
    assert parse([*FLAGS, str(tmp_path / "torchvision.pth"), "--normalise", "none"]).data.normalise == "none"
    assert parse([*FLAGS, str(tmp_path / "run")]).data.normalise == "imagenet"
    assert parse(["--shards", "x"]).data.normalise == "imagenet"


def test_weights_matter_at_the_start_alone(tmp_path: Path) -> None:
    """A run that goes on with its own checkpoint keeps what it began with, which 0.1.0 did not save."""
    gone, run = str(tmp_path / "gone.pth"), tmp_path / "run"
    for flags in ([], ["--resume", "--checkpoint-dir", str(run)]):
        with pytest.raises(DataError, match="no checkpoint at"):
            parse([*FLAGS, gone, *flags])
    save_run(run)
    for saved, wanted in (({"normalise": "none"}, "none"), ({}, "imagenet")):
        (run / "settings.json").write_text(json.dumps({"data": saved}))
        assert parse([*FLAGS, gone, "--resume", "--checkpoint-dir", str(run)]).data.normalise == wanted
