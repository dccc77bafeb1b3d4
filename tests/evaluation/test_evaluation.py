"""Evaluation: each kind of labelled data, the probe against scikit-learn, nearest neighbours by hand, the command."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from cltt import build_shards, checkpoint
from cltt.errors import DataError, SettingsError
from cltt.evaluation import __main__, plots
from cltt.evaluation.datasets import open_labelled
from cltt.evaluation.evaluator import Evaluator, extract_features
from cltt.evaluation.probe import few_shot_accuracy, fit_linear_probe
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from tests.helpers import data


class MeanColour(nn.Module):
    """[n, 3, H, W] -> [n, 3], with a BatchNorm that must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x).mean((2, 3))


def write_image(path: Path, bgr: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 24, 3), bgr, np.uint8))


COLOURS = {"blue": (220, 20, 20), "green": (20, 220, 20), "red": (20, 20, 220)}


def colour_folder(root: Path, images: int = 10) -> Path:
    for name, (b, g, r) in COLOURS.items():
        for k in range(images):
            write_image(root / name / f"{k}.png", (b + k, g + k, r + k))
            (root / name / f"._{k}.png").write_bytes(b"\x00\x05\x16\x07")
    return root


# ---- data


def test_classes_that_only_the_test_part_has_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colour_folder(tmp_path / "train", 4)
    colour_folder(tmp_path / "test", 3)
    open_labelled(tmp_path)
    assert not caplog.records
    write_image(tmp_path / "test" / "violet" / "0.png", (200, 20, 200))
    open_labelled(tmp_path)
    (record,) = caplog.records
    assert "1 of the 4 classes in the test part" in record.getMessage()
    assert "(violet): their 1 of its 10 images" in record.getMessage()


def test_class_folders_are_split_per_class(tmp_path: Path) -> None:
    found = open_labelled(colour_folder(tmp_path))
    assert found.label_names == ["blue", "green", "red"]
    assert {part: len(images) for part, images in found.parts.items()} == {"train": 18, "val": 6, "test": 6}
    ids = np.concatenate([images.ids for images in found.parts.values()])
    assert sorted(ids) == list(range(30))
    for images in found.parts.values():
        assert np.bincount(images.labels).tolist() == [len(images) // 3] * 3
        for image, label in zip(
            images.read(images.ids, FrameDecoder(Framing(image_size=20))), images.labels, strict=True
        ):
            assert image[0, 0].argmax() == [2, 1, 0][label]  # RGB
    again = open_labelled(tmp_path)
    assert all(np.array_equal(again.parts[part].ids, found.parts[part].ids) for part in found.parts)


def test_folders_with_their_own_parts_keep_them_and_val_comes_from_train(tmp_path: Path) -> None:
    colour_folder(tmp_path / "train", 10)
    colour_folder(tmp_path / "test", 4)
    found = open_labelled(tmp_path)
    assert {part: len(images) for part, images in found.parts.items()} == {"train": 27, "val": 3, "test": 12}


def test_flat_coil_names(tmp_path: Path) -> None:
    for obj in (1, 2, 10):
        for angle in range(0, 50, 5):
            write_image(tmp_path / f"obj{obj}__{angle}.png", (obj, 0, 0))
    found = open_labelled(tmp_path)
    assert found.label_names == ["obj1", "obj10", "obj2"]
    assert sum(map(len, found.parts.values())) == 30


def write_pickle(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_archives(tmp_path: Path, classes: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    labels = [k % classes for k in range(200)]
    names = [f"c{k}".encode() for k in range(classes)]
    if classes == 10:
        folder = tmp_path / "cifar-10-batches-py"
        batch = {b"data": pixels[:100].reshape(100, -1), b"labels": labels[:100]}
        rest = {b"data": pixels[100:].reshape(100, -1), b"labels": labels[100:]}
        write_pickle(folder / "data_batch_1", batch)
        write_pickle(folder / "test_batch", rest)
        write_pickle(folder / "batches.meta", {b"label_names": names})
    else:
        folder = tmp_path / "cifar-100-python"
        for part, rows in (("train", slice(0, 100)), ("test", slice(100, 200))):
            write_pickle(folder / part, {b"data": pixels[rows].reshape(100, -1), b"fine_labels": labels[rows]})
        write_pickle(folder / "meta", {b"fine_label_names": names})
    found = open_labelled(tmp_path)
    test = found.parts["test"]
    assert len(found.label_names) == classes
    assert test.labels.tolist() == labels[100:]
    assert np.array_equal(test.read(test.ids, FrameDecoder(Framing(image_size=32)))[7], pixels[107].transpose(1, 2, 0))
    assert torch.equal(test.batch(7, 8, 32)[0], torch.from_numpy(pixels[107]))


class Malicious:
    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


def test_a_pickle_that_calls_anything_is_refused(tmp_path: Path) -> None:
    write_pickle(tmp_path / "data_batch_1", {b"data": Malicious(), b"labels": []})
    write_pickle(tmp_path / "batches.meta", {b"label_names": [b"a"]})
    with pytest.raises(DataError, match=r"eval"):
        open_labelled(tmp_path)


def test_labelled_shards_with_and_without_splits(tmp_path: Path) -> None:
    clips = {f"{name}/clip{k}": 6 for name in ("x", "y") for k in range(5)}
    root = data.make_clips(tmp_path / "frames", clips)
    build_shards(root, tmp_path / "plain", label_from="parent")
    plain = open_labelled(tmp_path / "plain")
    assert plain.split_by == "clip" and plain.label_names == ["x", "y"]
    assert {part: len(images) for part, images in plain.parts.items()} == {"train": 36, "val": 12, "test": 12}
    clip_of = {part: set(images.ids // 6) for part, images in plain.parts.items()}
    assert not clip_of["train"] & clip_of["test"] and not clip_of["train"] & clip_of["val"]
    build_shards(root, tmp_path / "split", label_from="parent", splits="train=0.5,test=0.5")
    assert open_labelled(tmp_path / "split").split_by == "split"
    build_shards(root, tmp_path / "unlabelled")
    with pytest.raises(SettingsError, match="no labels"):
        open_labelled(tmp_path / "unlabelled")


def test_what_is_no_labelled_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a folder"):
        open_labelled(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SettingsError, match="a folder a class, COIL files"):
        open_labelled(tmp_path)


# ---- classifiers


def gaussian_classes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(1).normal(size=(4, 12))
    return torch.from_numpy(1.2 * rng.normal(size=(n, 12)) + centres[labels]).float(), torch.from_numpy(labels)


def test_linear_probe_is_scikit_learns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), (x_test, y_test) = gaussian_classes(300, 0), gaussian_classes(200, 5)
    probe = fit_linear_probe(x, y, 4)
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    peer = linear_model.LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(((x - mean) / std).numpy(), y.numpy())
    chances = peer.predict_proba(((x_test - mean) / std).numpy())
    expected_loss = -np.log(chances[np.arange(200), y_test.numpy()]).mean()
    loss, accuracy = probe.score(x_test, y_test)
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    assert accuracy == pytest.approx((chances.argmax(1) == y_test.numpy()).mean(), abs=1e-9)
    assert fit_linear_probe(x, y, 4).score(x_test, y_test) == (loss, accuracy)


def test_few_shot_accuracy_is_that_of_loops() -> None:
    x, y = gaussian_classes(60, 3)
    expected = []
    for draw in range(3):
        rng = np.random.default_rng([11, draw])
        drawn = [int(i) for label in range(4) for i in rng.choice(np.flatnonzero(y.numpy() == label), 2, replace=False)]
        hits = []
        for i in set(range(60)) - set(drawn):
            cosines = [float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for j in drawn]
            hits.append(bool(y[drawn[int(np.argmax(cosines))]] == y[i]))
        expected.append(np.mean(hits))
    assert few_shot_accuracy(x, y, 2, draws=3, seed=11) == pytest.approx(np.mean(expected), abs=1e-9)
    with pytest.raises(SettingsError, match="100 shots"):
        few_shot_accuracy(x, y, 100)


def test_features_come_in_order_and_leave_the_encoder_alone(tmp_path: Path) -> None:
    images = open_labelled(colour_folder(tmp_path)).parts["train"]
    encoder = MeanColour().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = extract_features(encoder, images, image_size=16, device=torch.device("cpu"), batch_size=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training and all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    many = extract_features(encoder, images, image_size=16, device=torch.device("cpu"), batch_size=100)
    torch.testing.assert_close(one, many)
    assert (one.argmax(1) == 2 - torch.from_numpy(images.labels)).all()


def test_evaluator_gives_the_row_of_the_csv(tmp_path: Path) -> None:
    evaluator = Evaluator(str(colour_folder(tmp_path)), image_size=16, device=torch.device("cpu"))
    result = evaluator(MeanColour())
    assert list(result.row()) == ["train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"]
    assert result.row()["test_acc"] == 1.0
    assert result.nearest == {"1": 1.0, "4": 1.0, "all": 1.0}
    assert result == evaluator(MeanColour())


def test_the_command_evaluates_every_checkpoint_of_a_run(tmp_path: Path) -> None:
    from cltt.config import DataSettings, ModelSettings, TrainSettings, WindowSettings
    from cltt.models.contrastive import ContrastiveModel, ProjectionHead
    from cltt.models.encoders import build_encoder

    settings = TrainSettings(
        windows=WindowSettings(), data=DataSettings(shards="x", image_size=32), model=ModelSettings()
    )
    model = ContrastiveModel(build_encoder("resnet18"), ProjectionHead(512, 128))
    state = {"model": model.state_dict(), "settings": settings.to_dict()}
    run = tmp_path / "run"
    with checkpoint.CheckpointStore(run) as store:
        store.save(state, epoch=1)
        store.save(state, epoch=1, step=7)
    labelled = colour_folder(tmp_path / "images", 4)
    arguments = ["--data", str(labelled), "--device", "cpu"]
    assert __main__.main(["--checkpoint", str(run), *arguments]) == 0
    lines = (run / "evaluation.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,train_loss,train_acc,") and [line[:4] for line in lines[1:]] == [
        "1,0,",
        "1,7,",
    ]
    assert len(json.loads((run / "evaluation.json").read_text())) == 2
    assert (run / "evaluation.png").stat().st_size > 1000
    arguments += ["--out", str(tmp_path / "one")]
    assert __main__.main(["--checkpoint", str(run / "epoch-0001.pt"), *arguments]) == 0
    assert len((tmp_path / "one" / "evaluation.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("out", ["afile", "afile/x", "/proc/x"])
def test_an_unusable_out_is_refused_before_the_work(out: str, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    (tmp_path / "epoch-0001.pt").write_bytes(b"not read")
    with pytest.raises(SettingsError, match=r"cannot write to .*--out"):
        __main__.main(["--checkpoint", str(tmp_path / "epoch-0001.pt"), "--data", "x", "--out", str(tmp_path / out)])


def test_equal_accuracies_all_show_in_the_plot() -> None:
    values = {"train_acc": 1.0, "val_acc": 1.0, "test_acc": 1.0, "nn_1": 1.0, "nn_4": 1.0, "nn_all": 1.0}
    figure = plots.draw_accuracies([{"epoch": epoch, "step": 0, **values} for epoch in (1, 2)])
    for axes in figure.axes:
        widths = [line.get_linewidth() for line in axes.lines]
        assert widths == sorted(set(widths), reverse=True) and len(widths) == 3
        assert len(axes.get_legend().get_texts()) == 3 and not axes.texts  # no labels printed at the curves' ends


def test_help_shows_no_empty_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "(default: )" not in shown and "(default: auto)" in shown and "at random" in shown
