"""Built as a source archive and from that as a wheel, installed, and used from an empty folder elsewhere."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

import cltt
from cltt.__main__ import COMMANDS
from tests.helpers.data import make_clips
from tests.helpers.installed import ROOT, copy_sources, install, make_environment, python

BUILD = "from setuptools import build_meta as b; print(b.build_{}({!r}))"


def built(kind: str, source: Path, out: Path) -> Path:
    done = python("-c", BUILD.format(kind, str(out)), cwd=source)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("built")
    archive = built("sdist", copy_sources(folder / "clone"), folder)
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return built("wheel", folder / archive.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    inner = make_environment(tmp_path_factory.mktemp("environment") / "venv")
    install(inner, str(wheel))
    return str(Path(inner).with_name("cltt"))


def run(command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([command, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "cltt").rglob("*.*") if "__pycache__" not in path.parts}
    archive = zipfile.ZipFile(wheel)
    assert {name for name in archive.namelist() if name.startswith("cltt/")} == tracked
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    said = archive.read(metadata).decode()
    assert f"Version: {cltt.__version__}\n" in said
    extras = {"all", "docs", "map", "safetensors", "tensorboard", "timm", "video", "webdataset"}
    assert extras <= set(re.findall(r"^Provides-Extra: (\S+)$", said, re.MULTILINE))


@pytest.mark.slow
def test_every_command_works_from_an_empty_folder(command: str, tmp_path: Path) -> None:
    """Help and messages name what is installed, no script of the repository."""
    assert run(command, "--version", cwd=tmp_path).stdout == f"cltt {cltt.__version__}\n"
    missing = run(command, "inspect", "--shards", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2 and "`cltt build`" in missing.stderr
    said = [missing.stderr, run(command, "--help", cwd=tmp_path).stdout]
    for name in COMMANDS:
        done = run(command, name, "--help", cwd=tmp_path)
        said.append(done.stdout)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: cltt {name} "), done.stdout + done.stderr
    assert not [script for script in ("build_shards", "train.py", "inspect_windows") if script in "".join(said)]
    doctor = run(command, "doctor", cwd=tmp_path).stdout
    assert f"cltt                    {cltt.__version__}" in doctor and "PyAV" in doctor


@pytest.mark.slow
def test_shards_are_built_looked_at_and_trained_on(command: str, tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", {"a": 20, "b": 20})
    windows = ["--shards", "out", "--window-size", "3", "--frame-step", "1"]
    train = ["--batch-size", "4", "--image-size", "32", "--epochs", "1", "--max-batches-per-epoch", "1"]
    for arguments in (
        ["build", "--root-dir", "clips", "--out", "out"],
        ["verify", "out", "--source", "clips"],
        ["inspect", *windows, "--save-path", "window.png"],
        ["inspect", *windows, "--mode", "html", "--batch-size", "4", "--out", "gallery"],
        ["train", *windows, *train, "--device", "cpu", "--checkpoint-dir", "run", "--csv-log"],
        ["curves", "run", "--save-path", "curves.png"],
        ["export", "run", "encoder.pth"],
    ):
        done = run(command, *arguments, cwd=tmp_path)
        assert done.returncode == 0, (arguments, done.stderr)
