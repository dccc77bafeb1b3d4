"""Helpers of the inspection's tests: what it prints, what it refuses, what it draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from cltt.cli import run
from cltt.visualize import inspect
from cltt.visualize import windows as windows_module

ROOT = Path(__file__).parents[2]
LENGTHS = {"a/one": 30, "a/two": 25, "b/one": 41, "b/two": 3, "c/one": 28}
WINDOWS = ["--window-size", "3", "--frame-step", "4", "--window-stride", "2"]
SMALL = [*WINDOWS, "--image-size", "32"]


def info(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    """The JSON that the script prints; it must end with status 0."""
    capsys.readouterr()
    assert inspect.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """The one sentence with which the script refuses; it must end with status 2 and print nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(lambda: inspect.main([*map(str, argv)]), "inspect_windows.py")
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def obvious_windows() -> list[list[str]]:
    """Frame names of every window, listed one by one."""
    size, step, stride = 3, 4, 2
    windows = []
    for clip, length in sorted(LENGTHS.items()):
        for start in range(0, length - (size - 1) * step, stride):
            windows.append([f"{clip}/frame_{start + k * step:06d}.jpg" for k in range(size)])
    return windows


def drawn_frames(path: Path, layout: windows_module.Layout, row: int) -> np.ndarray:
    """The frames of one row of cells of a saved picture, uint8 [windows, columns, cell, cell, 3]."""
    page = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(np.uint8)
    assert page.shape == (layout.height, layout.width, 3)
    cells = [
        [
            page[top : top + layout.cell, left : left + layout.cell]
            for left in (layout.left(column) for column in range(layout.columns))
        ]
        for top in (layout.top(window, row) for window in range(layout.windows))
    ]
    return np.array(cells)


def script(*argv: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The script as a person runs it, in an environment of ``env`` alone."""
    command = [sys.executable, str(ROOT / "inspect_windows.py"), *map(str, argv)]
    return subprocess.run(command, env=env or {}, capture_output=True, text=True)
