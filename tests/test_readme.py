"""What the README and its pages say can be done: links lead somewhere, commands have those flags, examples run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.__main__ import COMMANDS
from cltt.export.__main__ import main as export
from tests.helpers.data import make_clips
from tests.helpers.labelled import COLOURS, save_run, write_image

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = README.read_text()
ALL = "\n".join(page.read_text() for page in PAGES)
README_LINES = 100
IMAGE_BYTES = 300_000


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Words of every command line in a bash block or in single quotes of a page that runs one of our programs."""
    return [words for page in PAGES for words in commands_of(page.read_text())]


def commands_of(text: str) -> list[list[str]]:
    lines = [line for block in code_blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = [
        re.sub(r"\s+", " ", text) for text in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ]
    variables = dict(match.groups() for line in lines if (match := re.match(r'(\w)="(.*?)"', line)))
    found = []
    for line in lines + inline:
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quotation mark of prose
            continue
        if len(words) > 1 and (program(words) is not None) and "visualize_temporal" not in line:
            found.append(words)
    return found


def program(words: list[str]) -> list[str] | None:
    """How a command of the README is started here, without its arguments; None if it is not one of ours."""
    words = words[1:] if Path(words[0]).name == "python" else words
    if words[:1] == ["-m"] and words[1].startswith(("cltt.", "benchmarks.")):
        sub = words[2:3] if words[1] == "cltt.visualize" else []
        return [sys.executable, "-m", words[1], *sub]
    if Path(words[0]).name == "cltt" and words[1] in COMMANDS:
        return [sys.executable, "-m", "cltt", words[1]]
    if words and words[0] in ("train.py", "inspect_windows.py", "tools/build_shards.py"):
        return [sys.executable, str(ROOT / words[0])]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_to_files(page: Path) -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    missing = {target for target in targets if target and "://" not in target and not (page.parent / target).exists()}
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(TEXT.splitlines()) <= README_LINES


def test_the_readme_leads_to_every_page() -> None:
    assert all(str(page.relative_to(ROOT)) in TEXT for page in PAGES if page != README)


def test_contents_lead_to_headings() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("#")
    }
    anchors = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert anchors and anchors <= headings


def test_images_are_small() -> None:
    images = sorted((ROOT / "docs" / "images").iterdir())
    assert images and all(path.stat().st_size < IMAGE_BYTES for path in images)
    assert all(f"images/{path.name}" in ALL for path in images)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z-]+)", re.sub(r"[^`]*?(`[^`]*`|$)", r"\1 ", ALL)))
    assert {"demo", "test", "setup"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


@pytest.mark.slow
def test_commands_have_the_flags_that_are_shown() -> None:
    """Each program's --help is asked once, and must know every flag that the README gives it."""
    shown: dict[tuple[str, ...], set[str]] = {}
    for words in commands():
        flags = {word for word in words if word.startswith("--")}
        shown.setdefault(tuple(program(words) or ()), set()).update(flags)
    assert len(shown) >= 5
    for start, flags in shown.items():
        done = subprocess.run([*start, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"--[a-z][a-z-]*", done.stdout))
        assert flags <= known, f"{' '.join(start[1:])} has no {flags - known}"


def test_tests_that_are_named_exist() -> None:
    named = set(re.findall(r"\btests/[\w/.]*\w", ALL))
    assert len(named) > 8
    assert not {path for path in named if not (ROOT / path).exists()}


def test_the_tour_passes_through_every_package() -> None:
    tour = set(re.findall(r"\(cltt/(\w+)\)", (ROOT / "CONTRIBUTING.md").read_text()))
    packages = {path.parent.name for path in (ROOT / "cltt").glob("*/__init__.py")}
    assert tour == packages


@pytest.mark.slow
def test_the_loader_example_runs(tmp_path: Path) -> None:
    (example,) = code_blocks((ROOT / "docs/api.md").read_text(), "python")
    assert re.fullmatch(r"(epoch \d: loss \d\.\d+, \d+ frames decoded\n){2}", run_example(example, tmp_path))


def test_the_example_of_a_transform_runs(tmp_path: Path) -> None:
    (example,) = code_blocks((ROOT / "docs/augmentation.md").read_text(), "python")
    assert run_example(example, tmp_path) == "(32, 5, 3, 48, 48) torch.float32\n"


def test_the_example_of_fine_tuning_runs_with_an_export(tmp_path: Path) -> None:
    (example,) = code_blocks((ROOT / "docs/evaluate.md").read_text(), "python")
    for name, bgr in COLOURS.items():
        write_image(tmp_path / f"photos/train/{name}/1.png", bgr)
    save_run(tmp_path / "run", steps=(0,))
    assert export([str(tmp_path / "run"), str(tmp_path / "encoder.pth")]) == 0
    losses = re.findall(r"^epoch \d: loss (\d\.\d+)$", run_python(example, tmp_path), re.MULTILINE)
    assert len(losses) == 5 and float(losses[-1]) < float(losses[0])


def run_example(example: str, folder: Path) -> str:
    """What a page's Python prints beside shards such as the demo's; it must end with status 0."""
    names = [f"obj{number:02d}/clip_{clip:02d}" for number in range(4) for clip in range(4)]
    make_clips(folder / "clips", dict.fromkeys(names, 32))
    build_shards(folder / "clips", folder / "outputs/demo/shards", splits="train=0.75,test=0.25", label_from="parent")
    return run_python(example, folder)


def run_python(example: str, folder: Path) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", example], cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
