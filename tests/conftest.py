"""Fixtures shared by all tests, and the reason given when a GPU test is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import data


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False"))


@pytest.fixture(scope="session")
def real_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips with Mac clutter (read-only): real videos if at hand, else drawn ones."""
    if (data.SHARED / "real").is_dir():
        return data.SHARED / "real"
    root = tmp_path_factory.mktemp("real")
    data.make_clips(
        root, {"a/clip_000": 60, "a/clip_001": 45, "b/clip_000": 80, "c/clip_000": 12}, height=96, width=128
    )
    data.add_mac_clutter(root)
    return root


@pytest.fixture(scope="session")
def labelled_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 labelled clips of 72 small frames, one folder an object (read-only): COIL-20 if at hand, else drawn ones."""
    if (data.SHARED / "coil20").is_dir():
        return data.SHARED / "coil20"
    root = tmp_path_factory.mktemp("objects")
    return data.make_clips(root, {f"obj{k:02d}": 72 for k in range(1, 21)}, height=32, width=32)
