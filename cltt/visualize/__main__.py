"""``cltt curves``, also ``python -m cltt.visualize curves``: draws runs over each other."""

from __future__ import annotations

from pathlib import Path

from cltt.cli import Parser, run
from cltt.errors import DataError
from cltt.metrics import History, NoMetrics, RunMetrics, chance_loss, read_run
from cltt.text import say
from cltt.visualize.curves import draw_curves, name_runs
from cltt.visualize.figures import check_save_path, save_figure, show_figure

DESCRIPTION = "Draw runs over each other: loss, learning rate, evaluation."


def main(argv: list[str] | None = None) -> int:
    """``python -m cltt.visualize curves RUN ...``."""
    parser = Parser(prog="python -m cltt.visualize", description=DESCRIPTION)
    parser.add_argument("command", choices=["curves"])
    return _draw(parser, argv)


def curves(argv: list[str], prog: str) -> int:
    """``cltt curves RUN ...``."""
    return _draw(Parser(prog=prog, description=DESCRIPTION), argv)


def _draw(parser: Parser, argv: list[str] | None) -> int:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or its metrics CSV")
    parser.add_argument("--save-path", type=Path, help="picture to write; without it a window opens")
    args = parser.parse_args(argv)
    if args.save_path is not None:
        check_save_path(args.save_path)
    figure = draw_curves(_read_runs(args.runs))
    if args.save_path is None:
        show_figure(figure)
        return 0
    save_figure(figure, args.save_path)
    print(f"wrote {args.save_path}")
    return 0


def _read_runs(paths: list[Path]) -> dict[str, RunMetrics]:
    """The runs with a finished epoch, by name.

    Prints a line for each run without; DataError if none has one.
    """
    found: dict[str, RunMetrics] = {}
    problems: list[DataError] = []
    for name, path in name_runs(paths).items():
        try:
            metrics = _metrics_of(path)
        except DataError as error:
            problems.append(error)
            continue
        if metrics.train["epoch"]:
            found[name] = metrics
        else:
            problems.append(DataError(f"{path} has no finished epoch yet"))
    if not found:
        raise problems[0]
    for problem in problems:
        say(f"left out: {problem}")
    return found


def _metrics_of(path: Path) -> RunMetrics:
    """The metrics files of the run; without them (no --csv-log) what its newest checkpoint holds."""
    try:
        return read_run(path)
    except NoMetrics:
        from cltt import checkpoint  # imports torch, which takes seconds

        if not checkpoint.list_checkpoints(path):
            if below := checkpoint.runs_below(path):
                raise DataError(f"{path} is no run{below}") from None
            raise
        state = checkpoint.load(checkpoint.resolve(path))
        history = History()
        history.load_state_dict(state.get("history", {}))
        return history.metrics(chance_loss(state.get("settings")))


if __name__ == "__main__":
    run(main, "python -m cltt.visualize")
