"""What a run has measured so far: kept in every checkpoint, written out as CSV files.

The files are made from the history alone and replaced at once, so after any number of kills and resumes they hold each
epoch exactly once.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cltt.errors import DataError
from cltt.files.regular import is_regular, read_regular
from cltt.text import shorten

TRAIN_COLUMNS = ("epoch", "loss", "learning_rate", "decay_rate")
ABX_COLUMNS = ("abx_within", "abx_across")
EVAL_COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc")


class History:
    """Rows of finished epochs, and the sums of the one that runs.

    Attributes:
        train: one row an epoch, columns TRAIN_COLUMNS; epochs count from 1.
        evaluation: one row per evaluation, columns EVAL_COLUMNS and ABX_COLUMNS, those there are.
        epoch: finished epochs.
        step: finished steps of the running epoch.
        total_steps: finished steps of the run.
    """

    def __init__(self) -> None:
        self.train: list[dict[str, float]] = []
        self.evaluation: list[dict[str, float]] = []
        self.epoch = 0
        self.step = 0
        self.total_steps = 0
        self._loss_sum = 0.0

    def add_step(self, loss: float) -> None:
        """Count a finished step."""
        self._loss_sum += loss
        self.step += 1
        self.total_steps += 1

    def end_epoch(self, learning_rate: float, initial_lr: float) -> None:
        """Close the running epoch; its loss is the mean over its steps."""
        self.epoch += 1
        values = (self.epoch, self._loss_sum / self.step, learning_rate, learning_rate / initial_lr)
        self.train.append(dict(zip(TRAIN_COLUMNS, values, strict=True)))
        self.step, self._loss_sum = 0, 0.0

    def add_evaluation(self, row: dict[str, float]) -> None:
        """Add the evaluation made after the last finished epoch; parts that the data lacks stay empty."""
        known = (*EVAL_COLUMNS, *ABX_COLUMNS)
        self.evaluation.append({"epoch": self.epoch, **{key: row[key] for key in known if key in row}})

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises DataError if ``state`` is not what :meth:`state_dict` gives."""
        for name, value in vars(History()).items():
            if type(state.get(name)) is not type(value):
                raise DataError(f"the history holds no {name!r} as training writes it")
        if not all(isinstance(row, dict) and "epoch" in row for row in (*state["train"], *state["evaluation"])):
            raise DataError("the history's rows are not those of epochs")
        vars(self).update({name: state[name] for name in vars(self)})

    def csv(self) -> tuple[bytes, bytes]:
        """The rows so far as CSV: those of training, and those of the evaluation on labelled images."""
        return csv_text(TRAIN_COLUMNS, self.train).encode(), csv_text(EVAL_COLUMNS, self.accuracies).encode()

    @property
    def accuracies(self) -> list[dict[str, float]]:
        """The rows of ``evaluation`` that hold any of EVAL_COLUMNS."""
        return [row for row in self.evaluation if len(row.keys() & set(EVAL_COLUMNS)) > 1]

    def metrics(self, chance: float | None) -> RunMetrics:
        """The rows so far in the form of :func:`read_run`."""
        abx = [row for row in self.evaluation if row.keys() & set(ABX_COLUMNS)]
        train, evaluation = _columns(TRAIN_COLUMNS, self.train), _columns(EVAL_COLUMNS, self.accuracies)
        return RunMetrics(train, evaluation, _columns(("epoch", *ABX_COLUMNS), abx), chance)


def _columns(names: Sequence[str], rows: list[dict[str, float]]) -> Columns:
    """Each column over the rows; NaN where a row lacks it."""
    return {name: [row.get(name, math.nan) for row in rows] for name in names}


def csv_text(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """CSV with a header; a column that a row lacks stays empty, others are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def is_ours_to_replace(path: Path) -> bool:
    """Whether metrics may be written to ``path``: nothing is there, or a regular file, empty or of metrics."""
    if not os.path.lexists(path):
        return True
    if not is_regular(path):
        return False
    with path.open("rb") as file:
        names = file.readline(_MAX_HEADER).decode(errors="replace").strip().split(",")
    known = {*TRAIN_COLUMNS, *EVAL_COLUMNS}
    return path.stat().st_size == 0 or (names[0] == "epoch" and len(names) > 1 and known.issuperset(names))


_SETTINGS = "settings.json"  # cltt.checkpoint.SETTINGS_FILE, which imports torch
_MAX_HEADER = 1000  # bytes
_MAX_BYTES = 1 << 28  # of a metrics file
EVALUATION_FILE = "evaluation.csv"
Columns = dict[str, list[float]]


class NoMetrics(DataError):
    """A run has no metrics file."""


@dataclass(frozen=True)
class RunMetrics:
    """Columns of a run's metrics, one value an epoch; ``evaluation`` and ``abx`` have no rows where there was none.

    ``chance``: the loss of features that tell nothing (:func:`chance_loss`), if the run's settings are known.
    """

    train: Columns
    evaluation: Columns
    abx: Columns
    chance: float | None = None


def read_run(path: Path) -> RunMetrics:
    """Metrics of the run in folder ``path`` (``metrics.csv``, ``metrics_eval.csv``, or where its settings say), or of
    the metrics file ``path``.

    Raises NoMetrics if there is no metrics file, DataError if a line is not what training writes.
    """
    settings = _settings_of(path) if path.is_dir() else {}
    metrics, evaluation = _files_of(path, settings) if path.is_dir() else (path, None)
    if not metrics.is_file():
        raise NoMetrics(
            f"{metrics} does not exist; name a run's folder or metrics CSV (`cltt train --csv-log` writes it)"
        )
    evaluation = evaluation or metrics.with_name(f"{metrics.stem}_eval{metrics.suffix}")
    return RunMetrics(
        train=read_columns(metrics, TRAIN_COLUMNS),
        evaluation=read_columns(evaluation, EVAL_COLUMNS) if evaluation.is_file() else _columns(EVAL_COLUMNS, []),
        abx=_read_abx(metrics.with_name(EVALUATION_FILE) if path.is_file() else path / EVALUATION_FILE),
        chance=chance_loss(settings),
    )


def _settings_of(run: Path) -> Any:
    """What the run's settings file holds; {} without one."""
    try:
        return json.loads(read_regular(run / _SETTINGS, _MAX_BYTES))
    except (OSError, ValueError):
        return {}


def chance_loss(settings: Any) -> float | None:
    """Loss of features that tell nothing, from a run's settings; None if these do not say.

    If all similarities are equal, each positive's term is ln of the number of candidates: all other frames of the
    batch, and those of ``--memory``. An anchor has T - 1 positives, which are candidates too, so that the loss of
    perfect features is ln(T - 1), not 0.
    """
    try:
        size, windows = settings["windows"]["window_size"], settings["data"]["batch_size"]
        return math.log(size * (windows + settings.get("model", {}).get("memory", 0)) - 1)
    except (KeyError, TypeError, AttributeError, ValueError):
        return None


def _files_of(run: Path, settings: Any) -> tuple[Path, Path | None]:
    """The metrics files that the run's settings name; None: the second is named after the first."""
    try:
        named = [settings["log"].get(name) for name in ("csv_log_path", "eval_csv_log_path")]
        train, evaluation = (Path(name) if name else None for name in named)
    except (KeyError, TypeError, AttributeError):
        train = evaluation = None
    return train or run / "metrics.csv", evaluation


def _read_abx(path: Path) -> Columns:
    """Epochs and ABX of the evaluations in ``path``; of several of an epoch the last, of several data the last's.

    A file that is missing, or of another kind, has none.
    """
    names = ("epoch", *ABX_COLUMNS)
    try:
        text = read_regular(path, _MAX_BYTES).decode()
        rows = [row for row in csv.DictReader(io.StringIO(text)) if any(row.get(name) for name in ABX_COLUMNS)]
        of_epoch = {float(row["epoch"]): row for row in rows if row.get("data") == rows[-1].get("data")}
        last = [{name: float(row[name]) for name in names if row.get(name)} for _, row in sorted(of_epoch.items())]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        last = []
    return _columns(names, last)


def read_columns(path: Path, expected: Sequence[str]) -> Columns:
    """The columns ``expected`` of a metrics CSV as floats, others are passed over; an empty cell (no data) is NaN.

    A last line without its line end is left out: training may be writing it now.
    """
    try:
        text = read_regular(path, _MAX_BYTES).decode("utf-8-sig", errors="replace")
        lines = text.splitlines(keepends=True)
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as metrics ({getattr(error, 'strerror', None) or error})") from error
    header = rows[0] if rows else []
    if len(set(header)) < len(header) or not set(header).issuperset(expected):
        found = ",".join(header) or "nothing"
        raise DataError(f"{path} begins with {shorten(found, 80)!r}; a metrics file has {','.join(expected)!r}")
    epochs = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            values = [float(cell) if cell else math.nan for cell in row]
            epochs.append(dict(zip(header, values, strict=True)))
        except ValueError:
            wanted = f"{len(header)} numbers"
            raise DataError(
                f"{path}, line {number}: {shorten(','.join(row), 80)!r} where {wanted} were expected"
            ) from None
    return _columns(expected, epochs)
