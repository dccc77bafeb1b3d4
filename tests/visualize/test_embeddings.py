"""Embeddings in a file, and nearest frames of other clips against loops."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltt.errors import DataError, SettingsError
from cltt.visualize.embeddings import Embeddings, load, nearest_elsewhere, neighbours_of_frames

ROOT = Path(__file__).parents[2]


def made(lengths: dict[str, int], seed: int = 0, features: int = 6) -> Embeddings:
    """Random features of every frame of some clips."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.arange(len(lengths)), list(lengths.values()))
    frame = np.concatenate([np.arange(length) for length in lengths.values()])
    names = np.array(list(lengths))
    return Embeddings(
        features=rng.normal(size=(len(clip), features)).astype(np.float32),
        label=clip % 2,
        clip=clip,
        frame=frame,
        time=np.full(len(clip), np.nan),
        path=np.array([f"{names[c]}/{f}.jpg" for c, f in zip(clip, frame, strict=True)]),
        clip_names=names,
        label_names=np.array(["even", "odd"]),
        checkpoint={"file": "x.pt", "epoch": 3},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    wanted = made({"a": 4, "b/ü <i>": 7})
    wanted.save(tmp_path / "new" / "e.npz")
    found = load(tmp_path / "new" / "e.npz")
    for field in fields(Embeddings):
        here, there = getattr(wanted, field.name), getattr(found, field.name)
        assert (
            here == there
            if field.name == "checkpoint"
            else np.array_equal(here, there, equal_nan=here.dtype.kind == "f")
        )
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "e.npz"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"clip": np.array([0, 1, 9])}, "a clip in .* is not among"),
        ({"label": np.array([0, -2, 0])}, "a label in .* is not among"),
        ({"frame": np.array([0, 1])}, "do not fit each other"),
        ({"features": np.zeros((3, 2, 2), np.float32)}, "do not fit each other"),
        ({"features": np.full((3, 2), np.inf, np.float32)}, "not finite"),
        ({"frame": np.array([0.0, 1.0, 2.0])}, "do not fit each other"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    replace(made({"a": 2, "b": 1}), **wrong).save(tmp_path / "e.npz")
    with pytest.raises(DataError, match=says):
        load(tmp_path / "e.npz")


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no embeddings at"):
        load(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", features=np.zeros((2, 2)))
    with pytest.raises(DataError, match="is not a file of cltt evaluate --embeddings"):
        load(tmp_path / "e.npz")
    np.savez(tmp_path / "e.npz", features=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="is not a file of cltt evaluate --embeddings"):
        load(tmp_path / "e.npz")
    made({"a": 2}).save(tmp_path / "e.npz")
    whole = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a file of cltt evaluate --embeddings"):
        load(tmp_path / "e.npz")


def test_nearest_elsewhere_is_that_of_loops() -> None:
    rng = np.random.default_rng(0)
    bank, clips = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 4, 40)
    queries, asked = rng.normal(size=(1500, 5)).astype(np.float32), rng.integers(0, 4, 1500)  # more than one block
    rows, cosines = nearest_elsewhere(queries, asked, bank, clips, 3)
    for number in (0, 700, 1499):
        others = [row for row in range(40) if clips[row] != asked[number]]
        query = queries[number] / np.linalg.norm(queries[number])
        similar = {row: float(query @ bank[row] / np.linalg.norm(bank[row])) for row in others}
        wanted = sorted(others, key=lambda row: -similar[row])[:3]
        assert rows[number].tolist() == wanted
        np.testing.assert_allclose(cosines[number], [similar[row] for row in wanted], atol=1e-5)
    assert (clips[rows] != asked[:, None]).all()


def test_where_other_clips_have_too_few_the_rest_is_empty() -> None:
    bank = np.eye(4, dtype=np.float32)
    rows, _ = nearest_elsewhere(bank, np.array([0, 0, 0, 1]), bank, np.array([0, 0, 0, 1]), 6)
    assert (rows >= 0).sum(axis=1).tolist() == [1, 1, 1, 3]
    rows, _ = nearest_elsewhere(bank, np.zeros(4, int), bank, np.zeros(4, int), 2)
    assert (rows == -1).all()


def test_neighbours_of_frames_are_those_of_loops() -> None:
    """All frames of three clips are shown, one of them without features; nothing is left out of the bank."""
    features = made({"c": 5, "a": 8})
    frames = [np.arange(8), np.arange(4), np.arange(5)]
    found = neighbours_of_frames(features, ["a", "b", "c"], frames, [1.0, 1.0, 1.0], k=2, bank=100)
    (clips_a, places_a, cosines_a), (clips_b, _, _), (clips_c, _, _) = found
    assert (clips_a == 2).all() and (clips_b == -1).all() and (clips_c == 0).all()
    unit = features.features / np.linalg.norm(features.features, axis=1, keepdims=True)
    of_a, of_c = unit[features.clip == 1], unit[features.clip == 0]
    similar = of_a @ of_c.T
    assert places_a[:, 0].tolist() == similar.argmax(1).tolist()
    np.testing.assert_allclose(cosines_a[:, 0], similar.max(1), atol=1e-5)


def test_a_frame_without_features_takes_those_of_one_close_by() -> None:
    whole = made({"a": 9, "b": 9})
    some = np.flatnonzero((whole.frame % 3 == 0) & (whole.frame < 5))  # frames 0 and 3 have features
    columns = {name: getattr(whole, name)[some] for name in ("features", "label", "clip", "frame", "time", "path")}
    few = replace(whole, **columns)
    frames = [np.arange(9), np.arange(9)]
    (clips, places, _), _ = neighbours_of_frames(few, ["a", "b"], frames, [1.0, 1.0], k=1, bank=100)
    assert (clips[:7] == 1).all() and (clips[7:] == -1).all()  # three frames away, as they are from each other, at most
    assert places[0] == places[1] and places[2] == places[3] == places[6]


def test_a_smaller_bank_is_spread_over_the_clips() -> None:
    names = [f"{k}" for k in range(10)]
    features = made(dict.fromkeys(names, 50))
    frames = [np.arange(50)] * 10
    found = neighbours_of_frames(features, names, frames, [1.0] * 10, k=3, bank=40)
    used = {(clip, place) for clips, places, _ in found for clip, place in zip(clips.flat, places.flat, strict=True)}
    assert len(used) <= 40 and {clip for clip, _ in used} == set(range(10))


def test_embeddings_of_other_clips_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"of other clips \(a, b"):
        neighbours_of_frames(made({"a": 3, "b": 3}), ["x"], [np.arange(3)], [1.0], k=2, bank=10)


def test_reading_embeddings_loads_no_torch(tmp_path: Path) -> None:
    made({"a": 2, "b": 2}).save(tmp_path / "e.npz")
    code = (
        "import sys, json; from pathlib import Path; from cltt.visualize.embeddings import load; "
        f"load(Path({str(tmp_path / 'e.npz')!r})); print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
