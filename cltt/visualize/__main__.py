"""``python -m cltt.visualize curves``: the curves of any number of runs over each other."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cltt.cli import Parser, run
from cltt.errors import DataError
from cltt.metrics import RunMetrics, read_run
from cltt.text import say
from cltt.visualize.curves import draw_curves, name_runs
from cltt.visualize.figures import (
    check_save_path,
    save_figure,
    show_figure,
)

if TYPE_CHECKING:
    pass


def main(argv: list[str] | None = None) -> int:
    """``python -m cltt.visualize curves RUN ...``."""
    parser = Parser(prog="python -m cltt.visualize", description="Draw the curves of training runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_flags(commands.add_parser("curves", help="draw runs over each other: loss, learning rate, evaluation"))
    args = parser.parse_args(argv)
    return _draw(args.runs, args.save_path)


def curves(argv: list[str], prog: str) -> int:
    """``cltt curves RUN ...``."""
    parser = Parser(prog=prog, description="Draw runs over each other: loss, learning rate, evaluation.")
    _add_flags(parser)
    args = parser.parse_args(argv)
    return _draw(args.runs, args.save_path)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its metrics CSV")
    parser.add_argument("--save-path", type=Path, help="picture to write; without it a window opens")


def _draw(runs: list[Path], save_path: Path | None) -> int:
    if save_path is not None:
        check_save_path(save_path)
    figure = draw_curves(_read_runs(runs))
    if save_path is None:
        show_figure(figure)
        return 0
    save_figure(figure, save_path)
    print(f"wrote {save_path}")
    return 0


def _read_runs(paths: list[Path]) -> dict[str, RunMetrics]:
    """The runs that have metrics, by name; a line for each that has none. DataError if none has."""
    found: dict[str, RunMetrics] = {}
    problems: list[DataError] = []
    for name, path in name_runs(paths).items():
        try:
            found[name] = read_run(path)
        except DataError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    for problem in problems:
        say(f"left out: {problem}")
    return found


if __name__ == "__main__":
    run(main, "python -m cltt.visualize")
