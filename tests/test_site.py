"""The site is built strictly, its reference is complete, and its messages are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import cltt
from benchmarks import tutorial
from cltt.__main__ import COMMANDS
from tools import site_hooks

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path)))  # strict: a warning raises
    commands = (tmp_path / "commands.html").read_text()
    assert all(f'id="cltt-{name}"' in commands for name in COMMANDS) and "--num-workers" in commands
    reference = (tmp_path / "api.html").read_text()
    assert all(f'id="cltt.{name}"' in reference for name in cltt.__all__)


@pytest.mark.slow
def test_a_broken_link_fails(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[nowhere](nowhere.md)\n")
    where = {"docs_dir": str(tmp_path / "docs"), "site_dir": str(tmp_path / "site"), "nav": None, "plugins": []}
    with pytest.raises(Abort):
        build(load_config(str(ROOT / "mkdocs.yml"), **where))


def test_a_missing_docstring_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert site_hooks.undocumented() == []
    monkeypatch.setattr(cltt.EpochPlan.batch, "__doc__", None)
    assert site_hooks.undocumented() == ["EpochPlan.batch"]


def strings_of_the_code() -> list[str]:
    """Every string of the package, with ``...`` in the place of what is filled in."""
    found = []
    for path in (ROOT / "cltt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(map(str, parts)))
    return found


def test_messages_of_the_troubleshooting_page_stand_in_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) >= 20
    code = strings_of_the_code()
    patterns = {row: re.compile(".*".join(map(re.escape, row.split("..."))), re.DOTALL) for row in rows}
    assert not [row for row, pattern in patterns.items() if not any(map(pattern.search, code))]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path) -> None:
    """With short videos and one epoch: every command works, in order, and makes the pictures that the page shows."""
    pytest.importorskip("av")
    text = re.sub(r"--epochs \d+", "--epochs 1", tutorial.PAGE.read_text())
    tutorial.film(tmp_path / "videos", frames=16)
    written = tutorial.run_page(text.replace("--batch-size 32", "--batch-size 8"), tmp_path)
    outputs = [body for kind, body in tutorial.BLOCK.findall(written) if kind == "output"]
    assert outputs and all(outputs) and "12 clips" in outputs[0]
    assert (tmp_path / "controls.png").exists()  # the last command has run
    (tmp_path / "images").mkdir()
    tutorial.save_pictures(text, tmp_path, tmp_path / "images")
    shown = set(re.findall(r"images/(tutorial_\w+\.\w+)", text))
    assert {path.name for path in (tmp_path / "images").iterdir()} == shown
    assert all((DOCS / "images" / name).exists() for name in shown)
