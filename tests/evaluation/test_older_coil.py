"""``--protocol older-coil`` against a plain transcription of that script's evaluation, on random images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split
from torchvision import transforms

from cltt.errors import DataError, SettingsError
from cltt.evaluation.__main__ import main
from cltt.evaluation.evaluator import Evaluator
from cltt.evaluation.probe import ProbeSettings
from cltt.evaluation.protocols.older_coil import fit_older_head, open_older_coil
from tests.helpers.labelled import save_run

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CPU = torch.device("cpu")


def coil(root: Path, *, flat: bool) -> list[tuple[Path, int]]:
    """Random greyscale and colour images of 12 objects, uneven in size -> (file, class) as that script lists them."""
    rng = np.random.default_rng(3)
    for thing in range(1, 13):
        for view in (0, 5, 10, 100, 20):
            name = f"obj{thing}__{view}.png" if flat else f"thing{thing}/{view}.png"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = (rng.normal(size=(9 + thing, 13, 3)) * 30 + 15 * thing).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels[..., 0] if thing % 2 else pixels).save(root / name)
    if flat:
        files = sorted(root.glob("*.png"), key=lambda path: path.name)
        return [(path, int(path.name[3:].split("__")[0]) - 1) for path in files]
    folders = sorted(root.iterdir(), key=lambda path: path.name)
    return [(path, k) for k, folder in enumerate(folders) for path in sorted(folder.iterdir(), key=lambda p: p.name)]


class Listed(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, files: list[tuple[Path, int]], size: int) -> None:
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize(size),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        path, label = self.files[i]
        return self.transform(Image.open(path).convert("RGB")), label


def transcription(encoder: nn.Module, files: list[tuple[Path, int]], size: int, seed: int) -> dict[str, object]:
    """The evaluation as it is told, batch by batch through the encoder."""
    images = Listed(files, size)
    n = len(images)
    n_train, n_val = int(0.7 * n), int(0.15 * n)
    generator = torch.Generator().manual_seed(42)
    train, val, test = random_split(images, [n_train, n_val, n - n_train - n_val], generator=generator)
    encoder.eval()
    torch.manual_seed(seed)
    head = nn.Linear(encoder.feature_dim, 12)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
    for _ in range(20):
        for x, y in DataLoader(train, batch_size=64, shuffle=True):
            with torch.no_grad():
                features = encoder(x)
            loss = nn.functional.cross_entropy(head(features), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    accuracy = {}
    for name, part in (("train", train), ("val", val), ("test", test)):
        with torch.no_grad():
            right = sum(int((head(encoder(x)).argmax(1) == y).sum()) for x, y in DataLoader(part, batch_size=64))
        accuracy[name] = right / len(part)
    splits = {"train": train.indices, "val": val.indices, "test": test.indices}
    return {"splits": splits, "accuracy": accuracy, "weight": head.weight.detach()}


class Plain(nn.Module):
    """[n, 3, S, S] -> [n, 12]: pixels averaged over a 2 x 2 grid; cheap, and the labels are learnt only in part."""

    feature_dim = 12

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "folders"])
def test_splits_and_accuracies_are_those_of_the_transcription(flat: bool, tmp_path: Path) -> None:
    files = coil(tmp_path, flat=flat)
    data = open_older_coil(tmp_path)
    assert [tmp_path / path for path in data.source.places(np.arange(60)).path] == [path for path, _ in files]
    encoder = Plain()
    expected = {seed: transcription(encoder, files, 24, seed) for seed in (42, 7)}
    evaluator = Evaluator(data, image_size=24, device=CPU, probe=ProbeSettings(protocol="older-coil"))
    features = evaluator.features(encoder)
    for name, rows in expected[42]["splits"].items():  # type: ignore[attr-defined]
        assert data.parts[name].ids.tolist() == rows
        assert data.parts[name].labels.tolist() == [files[row][1] for row in rows]
    for seed, plain in expected.items():
        head = fit_older_head(features["train"], torch.from_numpy(data.parts["train"].labels), 12, seed)
        torch.testing.assert_close(head.weight, plain["weight"], rtol=1e-3, atol=1e-4)
        for name, accuracy in plain["accuracy"].items():  # type: ignore[attr-defined]
            assert head.score(features[name], torch.from_numpy(data.parts[name].labels)).top1 == accuracy
    assert evaluator(encoder).accuracy == expected[42]["accuracy"]
    assert expected[42]["accuracy"]["train"] < 1  # type: ignore[index]  # or any head would do


def test_the_command_takes_224_pixels_and_imagenets_mean_whatever_the_run_took(tmp_path: Path) -> None:
    coil(tmp_path / "coil", flat=True)
    save_run(tmp_path / "run", steps=(0,))
    flags = ["--checkpoint", str(tmp_path / "run"), "--data", str(tmp_path / "coil"), "--device", "cpu"]
    more = ["--protocol", "older-coil", "--no-baseline"]
    assert main([*flags, *more]) == 0
    assert main([*flags, *more, "--image-size", "32", "--normalise", "none"]) == 0
    with (tmp_path / "run" / "evaluation.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["image_size"], first["normalise"], first["probe"]) == ("224", "imagenet", "older-coil")
    assert (second["image_size"], second["normalise"]) == ("32", "imagenet")
    with pytest.raises(SettingsError, match="leave out rules for labels"):
        main([*flags, "--protocol", "older-coil", "--max-images", "9"])


def test_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SettingsError, match="no COIL images of two classes"):
        open_older_coil(tmp_path)
    with pytest.raises(SettingsError, match="not a folder"):
        open_older_coil(tmp_path / "a.png")
    for thing in (1, 2):
        (tmp_path / f"obj{thing}__0.png").write_bytes(b"no image")
    evaluator = Evaluator(open_older_coil(tmp_path), image_size=24, device=CPU)
    with pytest.raises(DataError, match=r"obj\d__0.png cannot be decoded"):
        evaluator.features(Plain())
