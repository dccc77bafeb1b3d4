"""A fresh environment that sees the packages of the tests' own, but not cltt, and a copy of what cltt is built from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation")


def python(*arguments: str, cwd: Path, executable: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def copy_sources(clone: Path) -> Path:
    shutil.copytree(ROOT / "cltt", clone / "cltt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    return clone


def make_environment(folder: Path) -> str:
    """Make it in ``folder`` and return its Python; skips the test where setuptools is missing."""
    pytest.importorskip("setuptools")
    made = python("-m", "venv", "--system-site-packages", str(folder), cwd=folder.parent)
    assert made.returncode == 0, made.stderr
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "outer.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")  # its own .pth files are not followed
    return str(folder / "bin/python")


def install(executable: str, *arguments: str) -> None:
    done = python(*INSTALL, *arguments, cwd=Path(executable).parents[1], executable=executable)
    assert done.returncode == 0, done.stderr
