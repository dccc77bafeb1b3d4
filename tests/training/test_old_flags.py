"""Flags of the older script: they work, or end with status 2 and a sentence; the page of old names shows the table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cltt.commands import train
from cltt.config import TrainSettings, declared
from cltt.config.old_flags import Refused
from cltt.errors import SettingsError
from cltt.evaluation.__main__ import main as evaluate
from cltt.visualize import inspect
from tests.helpers import data
from tests.helpers.training import refusal

TABLES = [known.metadata["old"] for group in TrainSettings.groups().values() for known in declared(group)]
SAYS = {name: says for old in TABLES if old for name, says in old.says.items()}
SUCCESSORS = {name: says for old in TABLES if isinstance(old, Refused) for name, says in old.says.items()}
PAGE = Path(__file__).parents[2] / "docs" / "older_script.md"
X = ["--shards", "x"]
# As that script's parser had them, of all its versions.
OLD = """
single-window-short-clips allow-multiple-short-windows short-clip-window-threshold use-object-focus two-view-offset
linear-eval-every linear-eval-epochs linear-eval-batch-size linear-eval-lr linear-eval-weight-decay
linear-eval-max-batches linear-eval-train-fraction linear-eval-split-seed cifar-dataset cifar-data-dir cifar-download
imagenet-data-dir
wandb wandb-project wandb-entity wandb-name wandb-tags wandb-mode
root-dir window-size frame-step window-stride max-windows-per-clip image-size num-workers epochs batch-size
sub-batch-size lr weight-decay temperature proj-dim max-grad-norm max-batches-per-epoch checkpoint-dir resume
checkpoint-path device seed csv-log csv-log-path eval-csv-log-path backbone
"""

OLDER_COMMAND = """
--root-dir /data/clips --window-size 5 --frame-step 2 --batch-size 64 --epochs 100 --lr 1e-3 --seed 0
--checkpoint-dir runs/a --resume --num-workers 8 --backbone swin_t --image-size 224 --temperature 0.5
--proj-dim 128 --weight-decay 1e-4 --max-grad-norm 1.0 --window-stride 10 --max-windows-per-clip 0
--single-window-short-clips --short-clip-window-threshold 2 --csv-log --csv-log-path runs/a/metrics.csv
"""


def test_none_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    known = set(re.findall(r"--([\w-]+)", capsys.readouterr().out))
    assert not SAYS.keys() & known  # the help shows what one should give
    assert set(OLD.split()) <= known | SAYS.keys()


@pytest.mark.parametrize("name", SUCCESSORS)
def test_a_flag_whose_work_has_another_name_says_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    says, name = SUCCESSORS[name], name.replace("*", "anything")
    for arguments in ([f"--{name}"], [f"--{name}", "5"], [f"--{name}=5"]):
        assert f"what to do here: --{name}: {says}" in refusal([*X, *arguments], capsys)


def test_all_that_are_given_are_answered_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those of the linear evaluation that no table names."""
    given = ["--two-view-offset", "5", "--wandb", "--wandb-mode=offline", "--imagenet-data-dir", "/d"]
    said = refusal([*X, *given, "--linear-eval-num-workers", "4", "--linear-eval-lr=0.1"], capsys)
    assert all(f"{flag.split('=')[0]}" in said for flag in given if flag.startswith("--"))
    assert f"--wandb, --wandb-mode: {SUCCESSORS['wandb']}" in said
    assert f"--linear-eval-num-workers: {SUCCESSORS['linear-eval-*']}" in said


def flags_of(main: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_what_they_say_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"train": flags_of(train.parse, capsys), "evaluate": flags_of(evaluate, capsys)}
    for says in SAYS.values():
        named = set(re.findall(r"--[\w-]+", says))
        assert named <= known["evaluate" if "cltt evaluate" in says else "train"] | {f"--{name}" for name in SAYS}


@pytest.mark.parametrize(
    ("arguments", "windows"),
    [
        ([], 0),
        (["--single-window-short-clips"], 2),
        (["--single-window-short-clips", "--short-clip-window-threshold", "5"], 5),
        (["--short-clip-window-threshold", "5", "--single-window-short-clips"], 5),
        (["--short-clip-window-threshold=2"], 2),
        (["--allow-multiple-short-windows"], 0),
        (["--allow-multiple-short-windows", "--short-clip-window-threshold", "5"], 0),
        (["--single-window-short-clips", "--allow-multiple-short-windows"], 0),
    ],
)
def test_the_rule_for_short_clips_works_as_it_did(arguments: list[str], windows: int) -> None:
    assert train.parse(["--shards", "x", *arguments]).windows.short_clip_windows == windows


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--short-clip-windows", "0", "--allow-multiple-short-windows"], "leave those out"),
        (["--short-clip-window-threshold", "0"], "--short-clip-window-threshold is 0; it must be from 1"),
        (["--short-clip-window-threshold", "many"], "invalid int value"),
    ],
)
def test_what_contradicts_itself_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal([*X, *arguments], capsys)


def test_a_command_of_the_older_batch_file_works_but_for_one_flag() -> None:
    command = OLDER_COMMAND.split()
    settings = train.parse(command)
    assert settings.windows.short_clip_windows == 2 and settings.model.backbone == "swin_t"
    with pytest.raises(SettingsError, match="--region center --region-effect blur"):
        train.parse([*command, "--use-object-focus"])


def test_the_inspector_understands_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The older script that showed windows had some of them."""
    root = data.make_clips(tmp_path / "frames", {"a": 8, "b": 12})
    given = ["--root-dir", str(root), "--window-size", "2", "--frame-step", "6", "--mode", "stats", "--json"]
    for flags, windows in (([], 8), (["--single-window-short-clips"], 7), (["--allow-multiple-short-windows"], 8)):
        assert inspect.main([*given, *flags]) == 0
        assert json.loads(capsys.readouterr().out)["windows"] == windows
    with pytest.raises(SettingsError, match=SUCCESSORS["use-object-focus"]):
        inspect.main([*given, "--use-object-focus"])


def test_the_page_of_old_names_has_the_table() -> None:
    rows = dict(re.findall(r"^\| `--([\w*-]+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == SAYS
