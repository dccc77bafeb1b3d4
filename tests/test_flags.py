"""Every flag has a range, and what lies outside it is one sentence; closed streams and odd paths harm nothing."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cltt.config import TrainSettings, check_fields
from cltt.demo.__main__ import DemoSettings
from cltt.errors import SettingsError
from cltt.evaluation.__main__ import EvaluationSettings
from cltt.packing.settings import BuildSettings
from cltt.visualize.inspect import LookSettings
from tests.helpers import data
from tests.helpers.nursery import nursery

REPOSITORY = Path(__file__).parents[1]
CLASSES = [*TrainSettings.groups().values(), BuildSettings, DemoSettings, EvaluationSettings, LookSettings]
FIELDS = [
    pytest.param(settings, field, id=f"{settings.__name__}.{field.name}")
    for settings in CLASSES
    for field in dataclasses.fields(settings)
    if "help" in field.metadata
]
NEEDED = {"DataSettings": {"shards": "x"}, "EvaluationSettings": {"checkpoint": "x", "data": "x"}}


def _made(settings: type, **values: Any) -> Any:
    return settings(**{**NEEDED.get(settings.__name__, {}), **values})


def _is_number(field: dataclasses.Field[Any]) -> bool:
    number = field.metadata["argparse"].get("type") in (int, float)
    return number or (isinstance(field.default, int | float) and not isinstance(field.default, bool))


@pytest.mark.parametrize(("settings", "field"), FIELDS)
def test_every_number_has_a_range_and_every_text_is_looked_at(settings: type, field: dataclasses.Field[Any]) -> None:
    if not _is_number(field):
        if not isinstance(field.default, bool):
            for text in ("", "a\0b"):
                with pytest.raises(SettingsError):
                    _made(settings, **{field.name: text})
        return
    low, high = field.metadata["within"]
    assert -math.inf < low <= high < math.inf
    for value in (math.nan, math.inf, -math.inf, 10**22, -(10**22), low - 1, high * 2 + 1):
        with pytest.raises(SettingsError, match=rf"^{field.name} is .*; it must be from ") as caught:
            _made(settings, **{field.name: value})
        assert len(str(caught.value)) < 200


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
    done = nursery().run("cltt", arguments, environment, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1 and len(done.stderr) < 1500
    assert list(tmp_path.iterdir()) == []
