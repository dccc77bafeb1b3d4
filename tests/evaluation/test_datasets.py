"""Labelled data: each kind of it, labels and groups by rule, and no group on both sides."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cltt import ShardDataset, build_shards
from cltt.errors import DataError, SettingsError
from cltt.evaluation.datasets import BY_IMAGE, LabelledData, LabelledSettings, open_labelled
from cltt.evaluation.images import Images
from cltt.evaluation.parts import held_out, seen_in_training
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from tests.helpers import data
from tests.helpers.labelled import colour_folder, write_image


def sizes(found: LabelledData) -> dict[str, int]:
    return {part: len(images) for part, images in found.parts.items()}


def paths(found: LabelledData) -> dict[str, list[str]]:
    return {part: images.source.places(images.ids).path for part, images in found.parts.items()}


def labels_of(found: LabelledData) -> dict[str, str]:
    """The label of each path."""
    return {
        path: found.label_names[label]
        for part, images in found.parts.items()
        for path, label in zip(images.source.places(images.ids).path, images.labels.tolist(), strict=True)
    }


# ---- kinds


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
    assert found.label_names == ["blue", "green", "red"] and found.split_by == "image"
    assert sizes(found) == {"train": 18, "val": 6, "test": 6}
    assert sorted(np.concatenate([images.ids for images in found.parts.values()])) == list(range(30))
    for images in found.parts.values():
        assert np.bincount(images.labels).tolist() == [len(images) // 3] * 3
        pictures = images.source.read(images.ids, FrameDecoder(Framing(image_size=20)))
        for picture, label in zip(pictures, images.labels, strict=True):
            assert picture[0, 0].argmax() == [2, 1, 0][label]  # RGB
    again = open_labelled(tmp_path)
    assert all(np.array_equal(again.parts[part].ids, found.parts[part].ids) for part in found.parts)


def test_folders_with_their_own_parts_keep_them_and_val_comes_from_train(tmp_path: Path) -> None:
    colour_folder(tmp_path / "train", 10)
    colour_folder(tmp_path / "test", 4)
    found = open_labelled(tmp_path)
    assert sizes(found) == {"train": 27, "val": 3, "test": 12}
    assert found.notes == ("val is a tenth of train, cut by image",)
    assert np.bincount(found.parts["val"].labels).tolist() == [1, 1, 1]


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
    assert torch.equal(test.batch(0, 100, 32), torch.from_numpy(pixels[100:]))
    assert test.batch(7, 9, 16).shape == (2, 3, 16, 16)
    with pytest.raises(SettingsError, match="without paths"):
        open_labelled(tmp_path, LabelledSettings(group_from="regex:x"))


class Malicious:
    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


def test_a_pickle_that_calls_anything_is_refused(tmp_path: Path) -> None:
    write_pickle(tmp_path / "data_batch_1", {b"data": Malicious(), b"labels": []})
    write_pickle(tmp_path / "batches.meta", {b"label_names": [b"a"]})
    with pytest.raises(DataError, match=r"eval"):
        open_labelled(tmp_path)


def test_what_is_no_labelled_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a folder"):
        open_labelled(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SettingsError, match="one folder per class, COIL files"):
        open_labelled(tmp_path)


# ---- shards


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of six frames in each of two classes."""
    lengths = {f"{name}/clip{k}": 6 for name in ("x", "y") for k in range(5)}
    return data.make_clips(tmp_path_factory.mktemp("frames"), lengths)


def clips_of(found: LabelledData) -> dict[str, set[str]]:
    return {part: set(images.source.places(images.ids).clip) for part, images in found.parts.items()}


def test_labelled_shards_without_splits_are_split_by_clip(clips: Path, tmp_path: Path) -> None:
    build_shards(clips, tmp_path / "plain", label_from="parent")
    plain = open_labelled(tmp_path / "plain")
    assert plain.split_by == "clip" and plain.label_names == ["x", "y"]
    assert sizes(plain) == {"train": 36, "val": 12, "test": 12}
    found = clips_of(plain)
    assert not found["train"] & found["test"] and not found["train"] & found["val"] and not found["val"] & found["test"]
    build_shards(clips, tmp_path / "unlabelled")
    with pytest.raises(SettingsError, match="no labels"):
        open_labelled(tmp_path / "unlabelled")
    assert sizes(open_labelled(tmp_path / "unlabelled", unlabelled=True)) == {"all": 60}
    by_rule = open_labelled(tmp_path / "unlabelled", LabelledSettings(label_from=("regex:^(.)/",)))
    assert by_rule.label_names == ["x", "y"] and sizes(by_rule) == sizes(plain)


def test_val_is_cut_out_of_the_train_split_by_clip(clips: Path, tmp_path: Path) -> None:
    build_shards(clips, tmp_path / "s", label_from="parent", splits="train=0.5,test=0.5", split_seed=1)
    found = open_labelled(tmp_path / "s")
    assert found.split_by == "data" and "val is a tenth of train, cut by clip" in found.notes
    parts = clips_of(found)
    assert parts["val"] and not parts["train"] & parts["val"]
    dataset = ShardDataset(tmp_path / "s")
    split = {name: {dataset.clip_key(c) for c in dataset.split_clips(name).tolist()} for name in ("train", "test")}
    assert parts["test"] == split["test"] and parts["train"] | parts["val"] == split["train"]


def test_splits_of_shards_may_be_named_otherwise(clips: Path, tmp_path: Path) -> None:
    names = {"train": "Training", "val": "valid", "test": "testing"}
    for name in ("own", "other"):
        splits = {part if name == "own" else names[part]: 1 / 3 for part in names}
        build_shards(clips, tmp_path / name, splits=splits, label_from="parent", workers=1)
    assert sizes(open_labelled(tmp_path / "own")) == sizes(open_labelled(tmp_path / "other"))


def test_a_class_of_two_clips_is_cut_by_frame_and_that_is_said(clips: Path, tmp_path: Path) -> None:
    few = data.make_clips(tmp_path / "few", {"x/a": 9, "x/b": 9, "y/a": 9, "y/b": 9})
    build_shards(few, tmp_path / "s", label_from="parent")
    found = open_labelled(tmp_path / "s")
    assert found.split_by == "image" and any("fewer than three clips" in note for note in found.notes)


def test_clips_of_training_among_those_tested_are_counted(clips: Path, tmp_path: Path) -> None:
    build_shards(clips, tmp_path / "s", label_from="parent")
    dataset, found = ShardDataset(tmp_path / "s"), open_labelled(tmp_path / "s")
    warning = seen_in_training(found.parts, dataset, np.arange(dataset.num_clips))
    assert warning.startswith("12 of the 12 test images are of clips that the encoder is trained on")
    others = np.setdiff1d(np.arange(dataset.num_clips), dataset.clip_of(found.parts["test"].ids))
    assert seen_in_training(found.parts, dataset, others) == ""


def test_frames_of_training_in_other_shards_and_in_folders_are_counted(tmp_path: Path) -> None:
    names = [f"{name}/{clip}" for name in ("x", "y") for clip in range(4)]
    frames = data.make_clips(tmp_path / "frames", dict.fromkeys(names, 6))
    trained = ShardDataset(build_shards(frames, tmp_path / "trained", workers=1).path)
    build_shards(frames, tmp_path / "other", label_from="parent", splits="train=0.5,test=0.5", workers=1)
    shards, files = open_labelled(tmp_path / "other"), open_labelled(frames)
    for found in (shards, files):
        test, everything = found.parts["test"], np.arange(trained.num_clips)
        warning = seen_in_training(found.parts, trained, everything)
        assert warning.startswith(f"{len(test)} of the {len(test)} test images are frames that the encoder is trained")
        where = [str(Path(path).parent) for path in paths(found)["test"]]
        one = np.array([clip for clip in everything if trained.clip_key(clip) == where[0]])
        warning = seen_in_training(found.parts, trained, one)
        assert warning.startswith(f"{where.count(where[0])} of the {len(test)} test images are frames")
        assert seen_in_training({"test": test.take(np.array([], int))}, trained, everything) == ""
    unlike = data.make_clips(tmp_path / "unlike", dict.fromkeys(names, 3), height=40)
    assert seen_in_training(open_labelled(unlike).parts, trained, np.arange(trained.num_clips)) == ""


# ---- groups


def session_tree(root: Path, sessions: int = 5) -> Path:
    for session in range(1, sessions + 1):
        for obj in ("cup", "ball"):
            for k in range(4):
                write_image(root / f"s{session}" / obj / f"{k}.png")
    return root


BY_SESSION = {"label_from": ("regex:/(.*)/",), "group_from": "regex:^(s[0-9]+)/"}


def sessions(found: LabelledData) -> dict[str, set[str]]:
    return {part: {path.split("/")[0] for path in there} for part, there in paths(found).items()}


def test_groups_are_never_on_both_sides(tmp_path: Path) -> None:
    root = session_tree(tmp_path, 8)
    found = open_labelled(root, LabelledSettings(**BY_SESSION))
    assert found.split_by == "group" and found.label_names == ["ball", "cup"]
    parts = sessions(found)
    assert set(parts) == {"train", "val", "test"} and sum(map(len, parts.values())) == 8
    assert set.union(*parts.values()) == {f"s{k}" for k in range(1, 9)}


def test_test_and_val_groups_are_those_named(tmp_path: Path) -> None:
    root = session_tree(tmp_path)
    found = open_labelled(root, LabelledSettings(**BY_SESSION, test_groups="s3,s5", val_groups="s1"))
    assert sessions(found) == {"train": {"s2", "s4"}, "val": {"s1"}, "test": {"s3", "s5"}}
    found = open_labelled(root, LabelledSettings(**BY_SESSION, test_groups="s3"))
    parts = sessions(found)
    assert parts["test"] == {"s3"} and len(parts["val"]) == 1 and len(parts["train"]) == 3
    assert "val is a tenth of train, cut by group" in found.notes
    with pytest.raises(SettingsError, match=r"--test-groups names 's9', which is no group; the groups are s1, s2"):
        open_labelled(root, LabelledSettings(**BY_SESSION, test_groups="s9"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"test_groups": "s1"}, "also give group_from"),
        ({"group_from": "regex:x", "val_groups": "a"}, "val_groups needs test_groups"),
        ({"max_images": -1}, "max_images is -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        LabelledSettings(**wrong)


def test_too_few_groups_for_a_test_part_are_refused(tmp_path: Path) -> None:
    root = session_tree(tmp_path, 2)
    with pytest.raises(SettingsError, match="2 groups are too few"):
        open_labelled(root, LabelledSettings(**BY_SESSION))


def made(labels: list[int], groups: list[int]) -> Images:
    ids = np.arange(len(labels))
    return Images(ids, np.array(labels), np.array(groups), source=None)  # type: ignore[arg-type]


def test_what_is_held_out_is_whole_groups_and_no_class_loses_its_last() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        group_label = rng.integers(0, 4, rng.integers(2, 40))
        groups = np.repeat(np.arange(len(group_label)), rng.integers(1, 6, len(group_label)))
        images = made(group_label[groups].tolist(), groups.tolist())
        rows = held_out(images)
        counts = np.bincount(group_label)
        if rows is None:
            assert counts.max() == 1
            continue
        out, kept = set(groups[rows]), set(groups[~rows])
        assert not out & kept
        assert set(group_label[list(kept)]) == set(group_label)
        assert len(out) == min(max(1, round(0.1 * len(group_label))), (counts[counts > 0] - 1).sum())


# ---- rules


def test_a_table_of_commas_or_tabs_names_paths_or_files(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for k in range(6):
        write_image(root / "images" / f"{k}.png")
    commas = tmp_path / "labels.csv"
    commas.write_text("".join(f"images/{k}.png,{'ab'[k % 2]}\n" for k in range(6)))
    tabs = tmp_path / "annotations.txt"
    tabs.write_text("".join(f"{k}.png\t{'ab'[k % 2]}\t0\t0\t62\t62\n" for k in range(5)))
    assert set(labels_of(open_labelled(root, LabelledSettings(label_from=(f"csv:{commas}",)))).values()) == {"a", "b"}
    found = open_labelled(root, LabelledSettings(label_from=(f"csv:{tabs}",)))
    assert labels_of(found) == {f"images/{k}.png": "ab"[k % 2] for k in range(5)}
    assert found.notes == (
        "1 image without a label left out (images/5.png is the first)",
        BY_IMAGE,
        "val has images of 1 of the 2 classes",
        "test has images of 1 of the 2 classes",
    )


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("regex:(", "--label-from: '\\(' is not a regular expression"),
        ("csv:/nowhere/x.csv", "--label-from: cannot read '/nowhere/x.csv'"),
        ("colour", "--label-from is 'colour'; it must be parent, regex:PATTERN or csv:FILE"),
        ("regex:zebra", "gives nothing a label; it must fit paths such as 'blue/0.png'"),
        ("csv:{table}", "line 2 has 1"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\nc\n")
    root = colour_folder(tmp_path / "data", 3)
    with pytest.raises(SettingsError, match=says):
        open_labelled(root, LabelledSettings(label_from=(rule.format(table=tmp_path / "t.csv"),)))


def test_parent_is_the_folder_below_the_part(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for k in range(4):
            write_image(tmp_path / part / "toys" / "ball" / f"{k}.png")
            write_image(tmp_path / part / "toys" / "cup" / f"{k}.png")
    with pytest.raises(SettingsError, match="one class, 'toys'"):
        open_labelled(tmp_path)
    assert open_labelled(tmp_path, LabelledSettings(label_from=("parent",))).label_names == ["toys/ball", "toys/cup"]


def test_the_cap_is_said_when_it_bites(tmp_path: Path) -> None:
    root = colour_folder(tmp_path, 10)
    found = open_labelled(root, LabelledSettings(max_images=12))
    assert sizes(found) == {"train": 12, "val": 6, "test": 6}
    assert found.notes == (BY_IMAGE, "of the 18 train images 12 are used, evenly spread (--max-images)")
    assert sizes(open_labelled(root, LabelledSettings(max_images=0)))["train"] == 18
