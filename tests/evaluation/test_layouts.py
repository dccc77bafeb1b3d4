"""The flags that the page gives for well-known data, on small trees laid out like the originals."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from cltt.cli import add_settings, settings_from
from cltt.evaluation.datasets import LabelledData, LabelledSettings, open_labelled
from tests.helpers.labelled import write_image

PAGE = Path(__file__).parents[2] / "docs" / "evaluate.md"


def flags_of_the_page(data: str) -> list[str]:
    (line,) = [line for line in PAGE.read_text().splitlines() if f"--data {data}" in line and line.startswith("cltt")]
    words = shlex.split(line)
    return words[words.index(data) + 1 :]


def opened(data: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> LabelledData:
    """The data as the page's command opens it, in the folder that holds it."""
    monkeypatch.chdir(root)
    parser = argparse.ArgumentParser()
    add_settings(parser, LabelledSettings)
    return open_labelled(data, settings_from(parser.parse_args(flags_of_the_page(data)), LabelledSettings))


def paths(found: LabelledData) -> dict[str, list[str]]:
    return {part: images.source.places(images.ids).path for part, images in found.parts.items()}


@pytest.mark.parametrize(("data", "objects"), [("coil-20-proc", 20), ("coil-100", 100)])
def test_coil(data: str, objects: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, objects + 1):
        for angle in range(0, 360, 72):
            write_image(tmp_path / data / f"obj{number}__{angle}.png")
    found = opened(data, tmp_path, monkeypatch)
    assert set(found.label_names) == {f"obj{k}" for k in range(1, objects + 1)}
    sizes = {part: len(images) for part, images in found.parts.items()}
    assert sizes == {"train": 3 * objects, "val": objects, "test": objects}


def test_core50_by_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for session in range(1, 12):
        for obj in (1, 2, 50):
            for frame in range(2):
                name = f"C_{session:02d}_{obj:02d}_{frame:03d}.png"
                write_image(tmp_path / "core50_128x128" / f"s{session}" / f"o{obj}" / name)
    found = opened("core50_128x128", tmp_path, monkeypatch)
    assert found.label_names == ["o1", "o2", "o50"]
    sessions = {part: {path.split("/")[0] for path in there} for part, there in paths(found).items()}
    assert sessions["test"] == {"s3", "s7", "s10"} and len(sessions["val"]) == 1 and len(sessions["train"]) == 7
    for part, there in paths(found).items():
        for path, label in zip(there, found.parts[part].labels, strict=True):
            assert path.split("/")[1] == found.label_names[label]


def test_toybox_by_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for category in ("airplane", "ball", "cat"):
        for obj in range(1, 6):
            for turn in ("rxplus", "hodgepodge"):
                for frame in range(2):
                    write_image(tmp_path / "toybox" / f"{category}_{obj:02d}_pivothead_{turn}" / f"{frame:04d}.png")
    found = opened("toybox", tmp_path, monkeypatch)
    assert found.label_names == ["airplane", "ball", "cat"]
    objects = {part: {path.split("_pivothead")[0] for path in there} for part, there in paths(found).items()}
    assert {part: len(names) for part, names in objects.items()} == {"train": 9, "val": 3, "test": 3}
    assert not objects["train"] & objects["test"] and not objects["val"] & (objects["train"] | objects["test"])


def test_tiny_imagenet_with_its_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, names = tmp_path / "tiny-imagenet-200", ["n01443537", "n01629819"]
    lines = []
    for number, name in enumerate(names):
        for k in range(5):
            write_image(root / "train" / name / "images" / f"{name}_{k}.jpeg")
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t62\t62\n")
        for k in range(3):
            write_image(root / "val" / "images" / f"val_{3 * number + k}.jpeg")
            lines.append(f"val_{3 * number + k}.jpeg\t{name}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(root / "test" / "images" / "test_0.jpeg")
    (root / "wnids.txt").write_text("\n".join(names))
    found = opened("tiny-imagenet-200", tmp_path, monkeypatch)
    assert found.label_names == names and {part: len(p) for part, p in found.parts.items()} == {"train": 10, "val": 6}
    assert found.notes == ("1 image without a label left out (test/images/test_0.jpeg is the first)",)
    for path, label in zip(paths(found)["val"], found.parts["val"].labels, strict=True):
        assert f"{Path(path).name}\t{names[label]}" in "".join(lines)


def test_imagenet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in (("train", 5), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            for k in range(count):
                write_image(tmp_path / "imagenet" / part / name / f"{name}_{k}.jpeg")
    found = opened("imagenet", tmp_path, monkeypatch)
    assert found.label_names == ["n01440764", "n01443537"] and found.split_by == "data"
    assert {part: len(images) for part, images in found.parts.items()} == {"train": 10, "val": 4}


def test_labeled_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ball", "car", "crib"):
        for k in range(10):
            write_image(tmp_path / "labeled-s" / name / f"{k:05d}.jpeg")
    found = opened("labeled-s", tmp_path, monkeypatch)
    assert found.label_names == ["ball", "car", "crib"] and found.split_by == "image"
    assert {part: len(images) for part, images in found.parts.items()} == {"train": 18, "val": 6, "test": 6}
