"""The optional parts of a set from others: times that are none, boxes outside their frames."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import DataError
from cltt.shards import layout
from tests.helpers import data


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = data.make_clips(tmp_path / "root", {"a": 3})
    (tmp_path / "boxes.csv").write_text("a/frame_000001.jpg,10,20,30,40\n")
    build_shards(root, tmp_path / "out", workers=1, boxes=f"csv:{tmp_path / 'boxes.csv'}")
    return tmp_path / "out"


def _replace(shards: Path, name: str, array: np.ndarray) -> None:
    np.save(shards / name, array, allow_pickle=True)
    index = json.loads((shards / layout.INDEX).read_text())
    content = (shards / name).read_bytes()
    index["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    index["fingerprint"] = layout.fingerprint(index["files"])
    (shards / layout.INDEX).write_text(json.dumps(index | {"version": 2}))


def _boxes(*values: float) -> np.ndarray:
    rows = np.full((3, 4), np.nan, "<f4")
    rows[1] = values
    return rows.view(np.dtype(layout.BOX_FIELDS)).reshape(-1)


@pytest.mark.parametrize(
    "box", [(-0.1, 0, 1, 1), (0, 0, 1.5, 1), (0.5, 0, 0.2, 1), (0, np.nan, 1, 1), (0, 0, np.inf, 1)]
)
def test_a_box_outside_its_frame_is_refused_when_it_is_read(shards: Path, box: tuple[float, ...]) -> None:
    _replace(shards, layout.BOXES, _boxes(*box))
    dataset = ShardDataset(shards)
    assert np.isnan(dataset.frame_boxes([0, 2])).all()  # type: ignore[arg-type]
    with pytest.raises(DataError, match="boxes that lie outside their frames"):
        dataset.frame_boxes([0, 1])


@pytest.mark.parametrize("time", [-1.0, np.inf, 1e300])
def test_a_time_that_is_none_is_refused_when_it_is_read(shards: Path, time: float) -> None:
    _replace(shards, layout.TIMES, np.array([0, time, np.nan]))
    dataset = ShardDataset(shards)
    with pytest.raises(DataError, match="values that are no times"):
        dataset.frame_time([1])


@pytest.mark.parametrize(
    "array",
    [np.zeros(2), np.zeros((3, 1)), np.zeros(3, "<f4"), np.zeros(3, object), np.zeros(4)],
    ids=["short", "matrix", "other type", "objects", "long"],
)
@pytest.mark.parametrize("name", layout.PARTS)
def test_a_part_of_another_type_or_shape_is_refused_when_opened(shards: Path, name: str, array: np.ndarray) -> None:
    _replace(shards, name, array)
    with pytest.raises(DataError):
        ShardDataset(shards)
