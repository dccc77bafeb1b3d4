"""Shards and folders that the inspection looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from cltt import build_shards
from tests.helpers import data
from tests.helpers.inspecting import LENGTHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = data.make_clips(tmp_path_factory.mktemp("frames"), LENGTHS)
    for number in (8, 9, 20):  # repeats of the frame before
        (root / f"a/one/frame_{number:06d}.jpg").write_bytes((root / f"a/one/frame_{number - 1:06d}.jpg").read_bytes())
    data.add_mac_clutter(root)
    return root


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "s"
    build_shards(folder, out, workers=1, label_from="parent")
    return out


@pytest.fixture(scope="module")
def split_shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "split"
    build_shards(folder, out, workers=1, splits="train=0.6,val=0.4")
    return out
