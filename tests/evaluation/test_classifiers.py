"""Classifiers and the spread of features: against scikit-learn, loops, and what is known by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cltt.errors import SettingsError
from cltt.evaluation.datasets import open_labelled
from cltt.evaluation.evaluator import EvaluationResult, Evaluator
from cltt.evaluation.features import effective_rank, extract_features, spread
from cltt.evaluation.probe import (
    STRENGTHS,
    ProbeSettings,
    choose_linear_probe,
    drawn_rows,
    few_shot_accuracies,
    fit_linear_probe,
    fit_sgd_probe,
    knn_accuracy,
)
from tests.helpers.labelled import MeanColour, colour_folder

CPU = torch.device("cpu")


def gaussian_classes(n: int, seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(1).normal(size=(classes, 12))
    return torch.from_numpy(1.2 * rng.normal(size=(n, 12)) + centres[labels]).float(), torch.from_numpy(labels)


# ---- linear


@pytest.mark.parametrize("strength", [0.01, 1.0, 10.0])
def test_linear_probe_is_scikit_learns_logistic_regression(strength: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (x, y), (x_test, y_test) = gaussian_classes(300, 0), gaussian_classes(200, 5)
    probe = fit_linear_probe(x, y, 4, strength=strength)
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    peer = linear_model.LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
    peer.fit(((x - mean) / std).numpy(), y.numpy())
    chances = peer.predict_proba(((x_test - mean) / std).numpy())
    expected_loss = -np.log(chances[np.arange(200), y_test.numpy()]).mean()
    score = probe.score(x_test, y_test)
    assert score.loss == pytest.approx(expected_loss, abs=1e-4)
    assert score.top1 == pytest.approx((chances.argmax(1) == y_test.numpy()).mean(), abs=1e-9)
    assert score.top5 is None  # there are four classes
    assert fit_linear_probe(x, y, 4, strength=strength).score(x_test, y_test) == score


def test_the_strength_is_the_one_that_does_best_on_val() -> None:
    """Few noisy rows: little penalty overfits, much of it underfits; what is chosen is best by trying each anew."""
    found = set()
    for seed, rows in ((0, 40), (1, 80), (2, 2000)):
        train, val = gaussian_classes(rows, seed, 8), gaussian_classes(400, 5, 8)
        alone = {strength: fit_linear_probe(*train, 8, strength=strength).score(*val) for strength in STRENGTHS}
        chosen = choose_linear_probe(train, val, 8)
        assert chosen.score(*val).top1 == pytest.approx(max(score.top1 for score in alone.values()), abs=0.003)
        assert chosen.score(*val).loss == pytest.approx(alone[chosen.strength].loss, abs=2e-3)
        found.add(chosen.strength)
        assert choose_linear_probe(train, None, 8).strength == 1.0
    assert len(found) > 1


def test_sgd_comes_close_to_the_optimum_and_is_the_same_every_time() -> None:
    train, test = gaussian_classes(600, 0), gaussian_classes(400, 5)
    settings = ProbeSettings(probe="sgd", probe_epochs=60, probe_lr=0.1, probe_batch_size=64)
    state = torch.get_rng_state()
    found = fit_sgd_probe(*train, 4, settings).score(*test)
    assert torch.equal(torch.get_rng_state(), state)
    optimum = fit_linear_probe(*train, 4, strength=1e6).score(*test)
    assert found.loss == pytest.approx(optimum.loss, abs=0.02) and abs(found.top1 - optimum.top1) < 0.02
    assert fit_sgd_probe(*train, 4, settings).score(*test) == found
    lazy = fit_sgd_probe(*train, 4, ProbeSettings(probe="sgd", probe_epochs=1, probe_lr=1e-5)).score(*test)
    assert lazy.loss == pytest.approx(math.log(4), abs=0.01)  # hardly moved from zero


def test_top5_is_the_share_among_the_five_best() -> None:
    x, y = gaussian_classes(500, 2, 9)
    probe = fit_linear_probe(x, y, 9)
    logits = ((x.double() - probe.mean) / probe.scale) @ probe.weight.T + probe.bias
    order = logits.argsort(1, descending=True)
    expected = np.mean([int(label) in row[:5].tolist() for row, label in zip(order, y, strict=True)])
    assert probe.score(x, y).top5 == pytest.approx(expected, abs=1e-9)
    assert probe.score(x, y).top1 < expected < 1


# ---- neighbours


def votes_by_loops(x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor, k: int) -> list[dict[int, float]]:
    found = []
    for query in queries:
        cosines = [float(F.cosine_similarity(query, row, dim=0)) for row in x]
        votes: dict[int, float] = {}
        for place in sorted(range(len(x)), key=lambda row: -cosines[row])[:k]:
            votes[int(y[place])] = votes.get(int(y[place]), 0) + math.exp(cosines[place] / 0.07)
        found.append(votes)
    return found


@pytest.mark.parametrize("k", [1, 3, 20, 500])
def test_knn_accuracy_is_that_of_loops(k: int) -> None:
    (x, y), (queries, answers) = gaussian_classes(120, 3, 7), gaussian_classes(50, 4, 7)
    ranked = [sorted(votes, key=lambda c: -votes[c]) for votes in votes_by_loops(x, y, queries, k)]
    top1, top5 = knn_accuracy(x, y, queries, answers, k=k)
    assert top1 == pytest.approx(np.mean([row[0] == a for row, a in zip(ranked, answers.tolist(), strict=True)]))
    assert top5 == pytest.approx(np.mean([a in row[:5] for row, a in zip(ranked, answers.tolist(), strict=True)]))
    assert k != 1 or top5 == top1  # one neighbour has one vote


def test_few_shot_accuracies_are_those_of_loops() -> None:
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
    assert few_shot_accuracies(x, y, 2, draws=3, seed=11) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(SettingsError, match="100 shots"):
        few_shot_accuracies(x, y, 100)


# ---- spread


def test_effective_rank_is_that_of_the_definition() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(x) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
    assert effective_rank(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3)  # collapsed
    assert effective_rank(torch.eye(16)) == pytest.approx(16)


def test_alignment_and_uniformity_are_those_of_loops() -> None:
    x, y = gaussian_classes(60, 3)
    unit = F.normalize(x.double(), dim=1)
    pairs = [(i, j) for i in range(60) for j in range(60) if i != j]
    apart = {(i, j): float((unit[i] - unit[j]).square().sum()) for i, j in pairs}
    found = spread(x, y)
    assert found.alignment == pytest.approx(np.mean([apart[i, j] for i, j in pairs if y[i] == y[j]]))
    assert found.uniformity == pytest.approx(np.log(np.mean([np.exp(-2 * apart[pair]) for pair in pairs])))
    collapsed = spread(torch.ones(60, 12), y)
    assert collapsed.alignment == pytest.approx(0, abs=1e-6) and collapsed.uniformity == pytest.approx(0, abs=1e-6)
    assert spread(x[:4], torch.arange(4)).alignment is None


# ---- the evaluator


def test_features_come_in_order_and_leave_the_encoder_alone(tmp_path: Path) -> None:
    images = open_labelled(colour_folder(tmp_path)).parts["train"]
    encoder = MeanColour().train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = extract_features(encoder, images, image_size=16, device=CPU, batch_size=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training and all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    many = extract_features(encoder, images, image_size=16, device=CPU, batch_size=100)
    torch.testing.assert_close(one, many)
    assert (one.argmax(1) == 2 - torch.from_numpy(images.labels)).all()


def test_pixels_enter_from_0_to_1_or_less_imagenets_mean(tmp_path: Path) -> None:
    images = open_labelled(colour_folder(tmp_path)).parts["train"]
    encoder = MeanColour()
    encoder.norm.eps = 1e-12  # not every torch takes 0
    plain = extract_features(encoder, images, image_size=16, device=CPU, normalise="none")
    assert plain.min() >= 0 and plain.max() <= 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    imagenet = extract_features(encoder, images, image_size=16, device=CPU, normalise="imagenet")
    torch.testing.assert_close(imagenet, (plain - mean) / std, atol=1e-5, rtol=1e-5)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = colour_folder(tmp_path)
    images = open_labelled(root).parts["train"]
    broken = root / images.source.places(images.ids).path[3]
    broken.write_bytes(b"not a picture")
    with pytest.raises(Exception, match=f"{broken.name} cannot be decoded"):
        extract_features(MeanColour(), images, image_size=16, device=CPU)


def test_evaluator_gives_the_row_of_the_csv(tmp_path: Path) -> None:
    evaluator = Evaluator(str(colour_folder(tmp_path)), image_size=16, device=CPU)
    result = evaluator(MeanColour())
    assert list(result.row()) == ["train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"]
    assert result.row()["test_acc"] == 1.0
    assert result.nearest == {"1": 1.0, "4": 1.0, "all": 1.0} and result.nearest_std == {"1": 0.0, "4": 0.0}
    assert result.knn == {"20": 1.0} and result.strength in STRENGTHS
    assert result == evaluator(MeanColour())


def test_a_share_of_the_labels_is_drawn_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [200, 30, 3])
    draws = [drawn_rows(labels, 0.1, draw) for draw in range(3)]
    for rows in draws:
        assert np.bincount(labels[rows]).tolist() == [20, 3, 1] and len(np.unique(rows)) == 24
        assert np.array_equal(rows, np.sort(rows))
    assert len({tuple(rows) for rows in draws}) == 3
    assert np.array_equal(drawn_rows(labels, 1.0, 0), np.arange(233))


def test_accuracies_on_shares_of_the_labels_are_those_of_probes_on_the_drawn_rows(tmp_path: Path) -> None:
    data = open_labelled(colour_folder(tmp_path, 40))
    rng = np.random.default_rng(0)
    features = {
        part: torch.from_numpy(rng.normal(size=(len(images), 6)) + 0.7 * np.eye(6)[images.labels]).float()
        for part, images in data.parts.items()
    }
    settings = ProbeSettings(label_fraction=(0.1, 1.0))
    result = Evaluator(data, image_size=16, device=CPU, probe=settings).evaluate(features)
    labels = {part: torch.from_numpy(images.labels) for part, images in data.parts.items()}
    val, found = (features["val"], labels["val"]), []
    for draw in range(5):
        rows = drawn_rows(data.parts["train"].labels, 0.1, draw)
        probe = choose_linear_probe((features["train"][rows], labels["train"][rows]), val, 3)
        found.append(probe.score(features["test"], labels["test"]).top1)
    assert result.fraction == pytest.approx({"0.1": np.mean(found), "1.0": result.accuracy["test"]})
    assert result.fraction_std == pytest.approx({"0.1": np.std(found, ddof=1), "1.0": 0}) and np.std(found) > 0
    assert result.columns()["probe_0.1"] == result.fraction["0.1"]


def test_results_are_shown_as_a_table() -> None:
    result = EvaluationResult(
        loss={},
        accuracy={"train": 1.0, "test": 0.8712},
        top5={},
        nearest={"1": 0.8724, "4": 0.9, "all": 0.95},
        nearest_std={"1": 0.0771, "4": 0.01},
        fraction={"0.1": 0.5},
        fraction_std={"0.1": 0.02},
        effective_rank=9.46,
        alignment=None,
        uniformity=0.0,
        probe="closed",
        strength=None,
        images={},
        classes=2,
        split_by="",
    )
    assert result.describe().splitlines() == [
        "linear probe                           train: 1.000          test: 0.871",
        "linear probe by share of labels          0.1: 0.500±0.020",
        "nearest neighbour by labels per class      1: 0.872±0.077       4: 0.900±0.010     all: 0.950",
        "effective rank                         9.5",
    ]


def test_without_a_test_part_the_strength_is_not_chosen_on_what_is_asked(tmp_path: Path) -> None:
    """Val is what is reported then; its labels must not decide anything."""
    colour_folder(tmp_path / "train", 10)
    colour_folder(tmp_path / "val", 4)
    evaluator = Evaluator(str(tmp_path), image_size=16, device=CPU)
    features = {part: torch.randn(len(images), 8) for part, images in evaluator.data.parts.items()}
    result = evaluator.evaluate(features)
    evaluator.data.parts["val"].labels[:] = np.roll(evaluator.data.parts["val"].labels, 5)
    assert evaluator.evaluate(features).strength == result.strength
    assert evaluator.evaluate(features).accuracy["train"] == result.accuracy["train"]
