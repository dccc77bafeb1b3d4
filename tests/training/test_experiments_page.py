"""The pages of experiments: each command is understood, and the recipes have the values of the authors' code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cltt.commands import train
from cltt.config import TrainSettings
from slurm import sweep_table
from tests.helpers.labelled import save_run

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in ("experiments", "next_experiments")}
LINES = 200

# What the authors' code has, by the first words of a section's title.
RECIPES: dict[str, dict[str, Any]] = {
    "Schneider": {
        "window_size": 2, "frame_step": 1, "batch_size": 256, "image_size": 64, "augment": "none", "normalise": "none",
        "backbone": "resnet18", "proj_hidden": 256, "proj_dim": 128, "temperature": 1.0, "optimizer": "adamw",
        "lr": 1e-3, "weight_decay": 0.01, "schedule": "epochs", "epochs": 100, "max_grad_norm": 0,
    },
    "Aubret": {
        "window_size": 2, "frame_step": 1, "batch_size": 256, "image_size": 162, "normalise": "none",
        "backbone": "resnet18", "proj_hidden": 256, "proj_dim": 128, "temperature": 0.1, "optimizer": "adamw",
        "lr": 5e-4, "weight_decay": 0.01, "schedule": "constant", "warmup_steps": 0, "epochs": 60,
    },
    "Orhan": {
        "window_size": 2, "frame_step": 1, "batch_size": 128, "image_size": 224, "augment": "simclr",
        "jitter": [0.4, 0.4, 0.4, 0.1], "backbone": "timm:resnext50_32x4d", "proj_dim": 128, "temperature": 0.2,
        "optimizer": "sgd", "momentum": 0.9, "lr": 0.015, "weight_decay": 0, "schedule": "epochs", "epochs": 12,
    },
    "Sheybani": {
        "window_size": 2, "frame_step": 30, "image_size": 224, "augment": "none", "backbone": "resnet50",
        "proj_dim": 2048, "temperature": 0.1, "optimizer": "sgd", "momentum": 0.7, "lr": 0.1, "weight_decay": 0,
        "schedule": "constant", "epochs": 1,
    },
    "Random partners": {
        "window_size": 2, "frame_step": "1-15", "batch_size": 512, "image_size": 224, "region": "center",
        "region_effect": "crop", "region_scale": 0.41, "augment": "simclr", "jitter": [0.4, 0.4, 0.2, 0.1],
        "backbone": "resnet50", "proj_hidden": 4096, "proj_dim": 256, "temperature": 0.1, "epochs": 1,
    },
}  # fmt: skip


def commands(text: str) -> list[list[str]]:
    """Arguments of every train.py in the bash blocks of ``text``, its variables filled in."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    variables = dict(re.findall(r'^(\w)="(.*?)"', "\n".join(['D="--shards x"', *lines]), re.MULTILINE))
    found = []
    for line in lines:
        for name, value in variables.items():
            line = line.replace(f"${name} ", f"{value} ")
        if line.startswith("python train.py "):
            found.append(shlex.split(line, comments=True)[2:])
    return found


def all_commands() -> list[list[str]]:
    return [arguments for page in PAGES.values() for arguments in commands(page)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the runs that others start from."""
    root = tmp_path_factory.mktemp("page")
    for arguments in all_commands():
        if "--checkpoint-path" in arguments:
            save_run(root / arguments[arguments.index("--checkpoint-path") + 1], steps=(0,))
    return root


@pytest.fixture
def in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.usefixtures("in_a_folder")
def test_every_command_is_understood() -> None:
    parsed = [train.parse(arguments) for arguments in all_commands()]
    assert len(parsed) >= 18 and all(isinstance(settings, TrainSettings) for settings in parsed)
    folders = [settings.run_dir for settings in parsed]
    assert len(set(folders)) == len(folders)  # none goes on with, or is refused by, another's folder


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_values_of_the_authors_code(name: str) -> None:
    section = re.split(r"^##+ ", "\n".join(PAGES.values()), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(name)]
    found = commands(text)
    assert found
    for arguments in found:
        values = {key: value for group in train.parse(arguments).to_dict().values() for key, value in group.items()}
        assert {key: values[key] for key in RECIPES[name]} == RECIPES[name]
    for words in ("- The same: ", "- Differs", "Not "):
        assert words in text


@pytest.mark.parametrize("name", PAGES)
def test_it_is_one_page(name: str) -> None:
    assert len(PAGES[name].splitlines()) <= LINES


@pytest.mark.parametrize("table", sorted((ROOT / "slurm").glob("*.txt")), ids=lambda path: path.name)
def test_the_sweeps_that_come_along_are_understood(table: Path) -> None:
    assert sweep_table.check_table(table, ["--shards", "x"]) >= 4
    assert len({sweep_table.row_name(row) for _, row in sweep_table.read_table(table)}) >= 4
