"""Scripts in a Python without the packages, and a script of one's own beside the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*arguments: str, cwd: Path, executable: str = sys.executable) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("script", ["train.py", "inspect_windows.py", "tools/build_shards.py"])
def test_a_python_without_the_packages_is_told_which_to_use(script: str, tmp_path: Path) -> None:
    done = python("-S", str(ROOT / script), "--root-dir", "frames", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{sys.executable} has no numpy" in done.stderr and f"{ROOT}/.venv/bin/python" in done.stderr


@pytest.mark.slow
def test_a_script_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    """The clone's folder is named like the package, and lies where the script is started."""
    pytest.importorskip("setuptools")
    clone = tmp_path / "cltt"
    shutil.copytree(ROOT / "cltt", clone / "cltt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    made = python("-m", "venv", "--system-site-packages", str(tmp_path / "venv"), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    inner = str(tmp_path / "venv/bin/python")
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "outer.pth").write_text(
        f"{Path(pytest.__file__).parents[1]}\n"
    )  # setuptools of the environment of the tests
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-e", str(clone))
    installed = python(*install, cwd=tmp_path, executable=inner)
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "mine.py").write_text("import cltt\nprint(cltt.__file__)\n")
    done = python("mine.py", cwd=tmp_path, executable=inner)
    assert done.stdout == f"{clone}/cltt/__init__.py\n", done.stderr
