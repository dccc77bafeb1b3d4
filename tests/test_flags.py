"""Every flag has a range, and what lies outside it is one sentence; closed streams and odd paths harm nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cltt.cli import Parser, add_settings
from cltt.config import (
    DataSettings,
    TrainSettings,
    WindowSettings,
    check_fields,
    declared,
    differences,
    value_types,
)
from cltt.config.fields import items_of
from cltt.demo.settings import DemoSettings
from cltt.errors import SettingsError
from cltt.evaluation.__main__ import EvaluationSettings
from cltt.evaluation.datasets import LabelledSettings
from cltt.evaluation.probe import ProbeSettings
from cltt.packing.settings import BuildSettings
from cltt.visualize.inspect import InspectSettings
from tests.helpers import data
from tests.helpers.fork_server import fork_server

REPOSITORY = Path(__file__).parents[1]
CLASSES = [*TrainSettings.groups().values(), BuildSettings, DemoSettings, InspectSettings]
CLASSES += [EvaluationSettings, LabelledSettings, ProbeSettings]
FIELDS = [
    pytest.param(settings, field, id=f"{settings.__name__}.{field.name}")
    for settings in CLASSES
    for field in declared(settings)
]
GROUPS = TrainSettings.groups()
NAMES = {group: {field.name: field for field in declared(settings)} for group, settings in GROUPS.items()}
NEEDED = {"DataSettings": {"shards": "x"}, "EvaluationSettings": {"checkpoint": ["x"], "data": "x"}}


def _made(settings: type, **values: Any) -> Any:
    return settings(**{**NEEDED.get(settings.__name__, {}), **values})


@pytest.mark.parametrize(("settings", "field"), FIELDS)
def test_every_number_has_a_range_and_every_text_is_looked_at(settings: type, field: dataclasses.Field[Any]) -> None:
    kind = value_types(settings)[field.name]
    if field.metadata["within"] is None:
        if kind is not bool:
            for text in ("", "a\0b"):
                with pytest.raises(SettingsError):
                    _made(settings, **{field.name: text})
        return
    _, count = items_of(kind)
    low, high = field.metadata["within"]
    assert -math.inf < low <= high < math.inf
    for value in (math.nan, math.inf, -math.inf, 10**22, -(10**22), low - 1, high * 2 + 1):
        with pytest.raises(SettingsError, match=rf"^{field.name} is .*; it must be from ") as caught:
            some = [low] * (count - 1 if isinstance(count, int) else 2)
            _made(settings, **{field.name: [*some, value] if count else value})
        assert len(str(caught.value)) < 200
    if isinstance(count, int) and count:
        with pytest.raises(SettingsError, match=rf"^{field.name} is .*; it must be {count} numbers"):
            _made(settings, **{field.name: [low] * (count - 1)})


@pytest.mark.parametrize(("settings", "field"), FIELDS)
def test_every_setting_is_a_flag(settings: type, field: dataclasses.Field[Any]) -> None:
    """Of its type; left out it is not in the namespace, so the class alone has the default; the help names both."""
    parser, flag = Parser(prog="x"), "--" + field.name.replace("_", "-")
    add_settings(parser.add_argument_group("group"), settings)
    for action in parser._actions:
        action.required = False
    assert not vars(parser.parse_args([]))
    kind, count = items_of(value_types(settings)[field.name])
    kind = field.metadata["argparse"].get("type", kind)
    one = {bool: True, str: next(iter(field.metadata["argparse"].get("choices", "x"))), int: 3, float: 3.0}[kind]
    words = [flag] if kind is bool else [flag, str(one)]
    if field.metadata["argparse"].get("action") == "append":
        assert vars(parser.parse_args([*words, *words])) == {field.name: [one, one]}
        return
    for several in [count] if isinstance(count, int) else [1, 3] if count == "+" else []:
        assert vars(parser.parse_args([flag, *[str(one)] * several])) == {field.name: [one] * several}
    assert count or vars(parser.parse_args(words)) == {field.name: one}
    shown = " ".join(parser.format_help().split(f"\n  {flag}")[1].split("\n  --")[0].split())
    says_nothing = field.default is None or field.default is False or field.default in ("", ())
    assert says_nothing or shown.endswith(f"(default: {field.default})")
    assert "None)" not in shown and "False)" not in shown and "()" not in shown


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in NAMES[group]])
def test_a_resumed_run_has_every_setting_as_it_was_but_those_that_are_free(group: str, name: str) -> None:
    now = TrainSettings(windows=WindowSettings(), data=DataSettings(shards="x")).to_dict()
    saved = json.loads(json.dumps(now))
    assert differences(saved, now) == []
    saved[group][name] = "another"
    free = NAMES[group][name].metadata["free"]
    assert differences(saved, now) == ([] if free else [f"{name} is {now[group][name]} and was another"])
    del saved[group][name]  # an older run had no such setting
    assert differences(saved, now) == []


@pytest.mark.parametrize("settings", CLASSES)
def test_every_settings_class_checks_its_fields(settings: type) -> None:
    check_fields(_made(settings, **({"out": "x"} if settings is DemoSettings else {})))


def _run(arguments: list[str], shell: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "cltt", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, **options)


@pytest.mark.parametrize("shell", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_harm_nothing(tmp_path: Path, shell: str) -> None:
    """The first file opened must not take the place of a closed stream: what is said would be written into it."""
    root = data.make_clips(tmp_path / "root", {"a": 3})
    (root / "a" / "frame_000001.jpg").write_bytes(b"broken")
    built = _run(["build", "--root-dir", str(root), "--out", str(tmp_path / "out"), "--workers", "1"], shell)
    assert built.returncode == 0 and "Traceback" not in built.stderr
    checked = _run(["verify", str(tmp_path / "out"), "--decode"], shell)
    assert checked.returncode == 0 and "Traceback" not in checked.stderr
    refused = _run(["build", "--root-dir", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out2")], shell)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--root-dir", LONG, "--out", "out"],
        ["build", "--root-dir", ".", "--out", LONG],
        ["build", "--root-dir", "", "--out", "out"],
        ["build", "--root-dir=--", "--out", "out"],
        ["build", "--root-dir", ".", "--out", "out", "--task", "1/" + "9" * 5000],
        ["build", "--root-dir", ".", "--out", "out", "--workers", "9" * 5000],
        ["build", "--root-dir", ".", "--out", "out", "--workers", str(10**22)],
        ["verify", LONG],
        ["verify", "out", "--workers", str(10**22)],
        ["inspect", "--root-dir", ""],
        ["inspect", "--root-dir", LONG, "--json"],
        ["inspect", "--root-dir", ".", "--save-path", LONG + ".png"],
        ["inspect", "--root-dir", ".", "--mode", "html", "--out", LONG],
        ["train", "--shards", LONG],
        ["train", "--shards", "", "--lr", "nan"],
        ["train", "--shards", "x", "--checkpoint-dir", LONG],
        ["train", "--shards", "x", "--seed", str(10**22)],
        ["evaluate", "--checkpoint", LONG, "--data", "x"],
        ["evaluate", "--checkpoint", "", "--data", "x"],
        ["curves", LONG],
        ["demo", "--out", LONG],
        ["demo", "--out", ""],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_odd_values_get_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = fork_server().run("cltt", arguments, environment, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 1500
    assert list(tmp_path.iterdir()) == []
