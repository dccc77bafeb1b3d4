"""Scripts in a Python without the packages, and a script of one's own beside the clone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cltt import start
from tests.helpers.installed import ROOT, copy_sources, install, make_environment, python


@pytest.mark.parametrize("script", ["train.py", "inspect_windows.py", "tools/build_shards.py"])
def test_a_python_without_the_packages_is_told_which_to_use(script: str, tmp_path: Path) -> None:
    done = python("-S", str(ROOT / script), "--root-dir", "frames", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{sys.executable} has no numpy" in done.stderr and f"{ROOT}/.venv/bin/python" in done.stderr


@pytest.mark.parametrize("module", ["cltt", "cltt.doctor"])
def test_a_command_without_the_packages_says_so_too(module: str) -> None:
    done = python("-S", "-m", module, cwd=ROOT)
    assert done.returncode == 2 and f"{sys.executable} has no numpy" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(start, "OLDEST", (sys.version_info[0], sys.version_info[1] + 1))
    with pytest.raises(SystemExit) as ended:
        start.require_packages("train.py")
    said = f"is Python {sys.version.split()[0]}, and cltt needs {start.OLDEST[0]}.{start.OLDEST[1]} or newer"
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_make_setup_takes_this_python() -> None:
    done = python("-S", "-m", "cltt.start", cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "-m cltt.start" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_a_script_beside_the_clone_finds_the_package(tmp_path: Path) -> None:
    """The clone's folder is named like the package, and lies where the script is started."""
    clone = copy_sources(tmp_path / "cltt")
    inner = make_environment(tmp_path / "venv")
    install(inner, "-e", str(clone))
    (tmp_path / "mine.py").write_text("import cltt\nprint(cltt.__file__)\n")
    done = python("mine.py", cwd=tmp_path, executable=inner)
    assert done.stdout == f"{clone}/cltt/__init__.py\n", done.stderr
