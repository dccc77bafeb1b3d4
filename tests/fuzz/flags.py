"""Extreme flags of every command: settings within their ranges, or one sentence and status 2."""

from __future__ import annotations

import contextlib
import io
import shutil
import warnings
from pathlib import Path
from typing import Any

from cltt.cli import Parser, add_settings, settings_from
from cltt.commands import build as build_command
from cltt.commands import train as train_command
from cltt.config import TrainSettings, declared, value_types
from cltt.demo.settings import DemoSettings
from cltt.evaluation.__main__ import EvaluationSettings
from cltt.packing.settings import BuildSettings
from cltt.visualize import inspect
from cltt.visualize.inspect import InspectSettings
from tests.fuzz.contract import Rng, demand, one_sentence
from tests.helpers import data

TEXTS = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "64",
    "1e22",
    str(10**22),
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "-0",
    "0.5",
]
TEXTS += [
    "1e-300",
    "1e300",
    "true",
    "None",
    "../..",
    "x" * 300,
    "a\nb",
    "é",
    "--",
    "1/0",
    "0/1",
    "3/2",
    "1/" + "9" * 40,
]
TEXTS += [
    str(2**31),
    str(2**32),
    str(2**63 - 1),
    str(2**63),
    "0x10",
    "1_000",
    "٣",
    "train=nan",
    "train=1",
    "train",
    ",,,",
]
TEXTS += [
    "parent",
    "regex:(",
    "regex:(a+)",
    "csv:/nowhere",
    "regex:" + "(" * 300,
    "csv:",
    "decode",
    "clip",
    "none",
    "plan",
]
BUILDS, LOOKS = 0.15, 0.3  # shares of the cases that go on with what the settings say, on a tiny set


class Flags:
    def __init__(self, folder: Path) -> None:
        warnings.simplefilter("ignore")
        self._root = data.make_clips(folder / "root", {"a": 9, "b/c": 12}, height=16, width=16)
        self._out = folder / "out"
        self._groups = {**TrainSettings.groups(), "build": BuildSettings, "look": InspectSettings}
        self._groups |= {"demo": DemoSettings, "evaluation": EvaluationSettings}
        self._flags = {name: _flags(group) for name, group in self._groups.items()}

    def case(self, rng: Rng) -> str:
        way = rng.random()
        if way < BUILDS:
            return self._build(rng)
        if way < LOOKS:
            return self._look(rng)
        if way < 0.65:
            argv = self._some(rng, list(TrainSettings.groups()))
            argv = argv if rng.random() < 0.3 else ["--shards", "x", *argv]
            return tried("train", lambda: train_command.parse(argv))
        name = str(rng.choice(list(self._groups)))
        parser = Parser(prog="cltt")
        add_settings(parser, self._groups[name])
        argv = self._some(rng, [name])
        return tried(name, lambda: settings_from(parser.parse_args(argv), self._groups[name]))

    def _some(self, rng: Rng, groups: list[str]) -> list[str]:
        known = [flag for group in groups for flag in self._flags[group]]
        argv = []
        for _ in range(int(rng.integers(1, 4))):
            flag, is_switch = known[int(rng.integers(len(known)))]
            value = TEXTS[int(rng.integers(len(TEXTS)))]
            argv += [flag] if is_switch else [f"{flag}={value}"]
        return argv

    def _build(self, rng: Rng) -> str:
        shutil.rmtree(self._out, ignore_errors=True)
        argv = ["--root-dir", str(self._root), "--out", str(self._out), *self._some(rng, ["build", "windows"])]
        if rng.random() < 0.5:
            argv.append("--dry-run")
        if rng.random() < 0.2:
            argv.append(f"--{rng.choice(['workers', 'task'])}={TEXTS[int(rng.integers(len(TEXTS)))]}")
        return tried("build", lambda: build_command.build(argv, "cltt build"))

    def _look(self, rng: Rng) -> str:
        mode = str(rng.choice(["sample", "batch", "stats"]))
        argv = ["--root-dir", str(self._root), "--mode", mode, "--json", "--image-size=16", "--batch-size=2"]
        argv += ["--window-size=2", "--frame-step=1", *self._some(rng, ["windows", "look"])]
        argv = [flag for flag in argv if not flag.startswith(("--out=", "--save-path=", "--mode=html"))]
        return tried("look", lambda: inspect.main(argv))


def _flags(group: type) -> list[tuple[str, bool]]:
    kinds = value_types(group)
    return [("--" + known.name.replace("_", "-"), kinds[known.name] is bool) for known in declared(group)]


def tried(name: str, call: Any) -> str:
    """How a command ended: it ran, or refused in one line."""
    said, printed = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            call()
    except SystemExit as error:
        text = said.getvalue().strip()
        demand(error.code == 2 and bool(text) and len(text) < 1500, f"left with {error.code}: {text[:300]!r}")
        demand(len(text.splitlines()) <= 3, f"no sentence: {text[:300]!r}")
        return f"{name}: no such value"
    except Exception as error:
        return f"{name}: {one_sentence(error)}"
    return f"{name}: ran"
