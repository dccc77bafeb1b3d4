"""The flags that the page gives for well-known data, on small trees laid out like the originals; other layouts."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.cli import add_settings, settings_from
from cltt.errors import SettingsError
from cltt.evaluation.datasets import BY_IMAGE, LabelledData, LabelledSettings, open_labelled
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


# ---- as others lay them out


def write_classes(root: Path, names: str = "abc", images: int = 5) -> None:
    for name in names:
        for k in range(images):
            write_image(root / name / f"{k}.png")


def counts(found: LabelledData) -> dict[str, int]:
    return {part: len(images) for part, images in found.parts.items()}


@pytest.mark.parametrize(
    "names",
    [
        ("train", "valid", "test"),
        ("training", "validation", "testing"),
        ("Train", "Val", "Test"),
        ("TRAIN", "dev", "test"),
    ],
)
@pytest.mark.parametrize("wrapping", ["", "export.v2i.folder", "data/pets"])
def test_parts_by_the_names_people_use(names: tuple[str, ...], wrapping: str, tmp_path: Path) -> None:
    """After https://github.com/fastai/fastai/issues/1552 (a test folder became a label) and
    https://github.com/cxbxmxcx/GenReality/issues/1 (the folder of the zip file became a class).
    """
    for name, images in zip(names, (8, 4, 3), strict=True):
        write_classes(tmp_path / wrapping / name, "abc", images)
    found = open_labelled(tmp_path)
    assert found.label_names == ["a", "b", "c"] and found.split_by == "data"
    assert counts(found) == {"train": 24, "val": 12, "test": 9}
    assert found.layout == (
        "train: 3 classes, 24 images; val: 3 classes, 12 images; test: 3 classes, 9 images (a, b, c)"
    )
    assert (f"all images are in {wrapping}/: the folders there are taken" in found.notes) == bool(wrapping)
    assert all(path.startswith(wrapping) for path in paths(found)["test"])


def test_classes_that_are_named_like_parts(tmp_path: Path) -> None:
    """Vehicles: a train beside a car and a bus."""
    for name in ("train", "test", "car", "bus"):
        for k in range(5):
            write_image(tmp_path / name / f"{k}.png")
    assert open_labelled(tmp_path).label_names == ["bus", "car", "test", "train"]


def test_folders_beside_parts_are_left_out_by_name(tmp_path: Path) -> None:
    """GTSRB's Meta beside Train and Test."""
    write_classes(tmp_path / "Train")
    write_classes(tmp_path / "Test")
    write_image(tmp_path / "Meta" / "0.png")
    found = open_labelled(tmp_path)
    assert found.label_names == ["a", "b", "c"] and sum(counts(found).values()) == 30
    assert "1 image without a label left out (Meta/0.png is the first)" in found.notes
    by_rule = open_labelled(tmp_path, LabelledSettings(label_from=("regex:([^/]+)/[^/]+$",)))
    assert "1 image in no part left out (Meta/0.png is the first)" in by_rule.notes


def test_folders_behind_links_are_followed_once(tmp_path: Path) -> None:
    """After https://github.com/pytorch/vision/pull/1580; links to links, and one that leads back."""
    write_classes(tmp_path / "all" / "train", "abcd")
    (tmp_path / "subset" / "train").mkdir(parents=True)
    for name in "abc":
        (tmp_path / "subset" / "train" / name).symlink_to(tmp_path / "all" / "train" / name)
    (tmp_path / "subset" / "train" / "a_again").symlink_to("a")
    (tmp_path / "subset" / "train" / "circle").symlink_to(tmp_path / "subset")
    (tmp_path / "subset" / "val").symlink_to(tmp_path / "other")
    write_classes(tmp_path / "other", "abc", 2)
    found = open_labelled(tmp_path / "subset")
    assert found.label_names == ["a", "b", "c"] and counts(found) == {"train": 15, "val": 6}
    assert [note for note in found.notes if "already in" in note] == [
        f"left out train/{name}: symbolic link to a folder that is already in" for name in ("a_again", "circle")
    ]


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    """After https://github.com/pytorch/vision/issues/669: the folder of one class was given."""
    write_image(tmp_path / "PetImages" / "Dog" / "0.png")
    with pytest.raises(SettingsError, match=r"one class, 'Dog'.*folder per class"):
        open_labelled(tmp_path / "PetImages")
    build_shards(tmp_path, tmp_path / "shards", workers=1, label_from="parent")
    with pytest.raises(SettingsError, match="one class, 'PetImages'"):
        open_labelled(tmp_path / "shards")
    assert open_labelled(tmp_path / "shards", unlabelled=True).notes == ("one class alone, 'PetImages': no accuracies",)


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("fold_0", "fold_1", "fold_2"), ("images", "masks")])
def test_folders_that_hold_the_same_folders_are_in_doubt(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        write_classes(tmp_path / name)
    note, _ = open_labelled(tmp_path).notes
    assert note.startswith(f"all {len(names)} folders taken for classes hold the same folders (a, b ...)")
    labels, groups, test = "regex:([^/]+)/[^/]+$", "regex:^([^/]+)/", names[-1]
    assert labels in note and groups in note
    found = open_labelled(tmp_path, LabelledSettings(label_from=(labels,), group_from=groups, test_groups=test))
    assert found.label_names == ["a", "b", "c"] and all(path.startswith(test) for path in paths(found)["test"])


def test_classes_of_one_kind_of_folder_are_in_no_doubt(tmp_path: Path) -> None:
    for name in "abc":
        for k in range(5):
            write_image(tmp_path / name / "images" / f"{k}.png")
    assert open_labelled(tmp_path).notes == (BY_IMAGE,)


def test_a_train_part_whose_test_images_have_no_labels_is_split(tmp_path: Path) -> None:
    """Kaggle's test folders hold images alone."""
    write_classes(tmp_path / "train", "abc", 10)
    for k in range(5):
        write_image(tmp_path / "test" / f"{k}.png")
    found = open_labelled(tmp_path)
    assert counts(found) == {"train": 18, "val": 6, "test": 6}
    assert "all images with labels are in the train part, which is split" in found.notes


def test_a_folder_of_videos_is_told_to_become_shards(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "one.mp4").write_bytes(b"")
    with pytest.raises(SettingsError, match="holds videos and no images; build shards of them first"):
        open_labelled(tmp_path, LabelledSettings(label_from=("parent",)))
