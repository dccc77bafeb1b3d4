"""Writes and prints a run's records on rank 0: CSV files, progress, TensorBoard, plot."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cltt import distributed
from cltt.checkpoint import SETTINGS_FILE
from cltt.config import TrainSettings
from cltt.errors import CLTTError, SettingsError
from cltt.files.atomic import check_writable, replace_file
from cltt.loader.loader import WindowLoader
from cltt.metrics import ABX_COLUMNS, History, chance_loss, is_ours_to_replace
from cltt.text import say
from cltt.training.optim import learning_rate
from cltt.training.outputs import Outputs
from cltt.training.progress import Progress, show, waiting_text
from cltt.visualize.curves import draw_curves
from cltt.visualize.figures import save_figure

COMPLETE_FILE = "complete"
FIRST_STEP_FILE = "first-step"  # slurm/common.sh reads it
PLOT_FILE = "plots.png"
TENSORBOARD_STEPS = 10


def check_outputs(settings: TrainSettings) -> None:
    """Raise SettingsError if the run cannot write the files that ``settings`` ask for.

    Creates nothing.
    """
    check_writable(settings.run_dir, "give another --checkpoint-dir")
    if settings.log.csv_log:
        for path, flag in ((settings.csv_path, "--csv-log-path"), (settings.eval_csv_path, "--eval-csv-log-path")):
            if path.is_dir():
                raise SettingsError(f"{path} is a folder; {flag} names a file")
            if not is_ours_to_replace(path):
                raise SettingsError(
                    f"{path} exists and is not a metrics file of a run, so it is not replaced; give another {flag}"
                )
            check_writable(path.parent, f"give another {flag}")
    if settings.log.tensorboard:
        summary_writer()


@dataclass
class Records:
    """Writes and prints what a trainer adds to ``history``.

    Writing begins in ``__enter__``, when the history is that of the checkpoint to resume. ``outputs`` writes the files
    that a run must leave and retries them. The plot and TensorBoard's files are optional: they are not retried.
    """

    settings: TrainSettings
    history: History
    loader: WindowLoader
    device: torch.device
    outputs: Outputs
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self._board: Board | None = None
        self._stepped = False

    def __enter__(self) -> Records:
        settings, done = self.settings, self.history.total_steps
        if settings.log.tensorboard:
            self._board = Board(settings.run_dir / "tensorboard", done)
        self.outputs.write(settings.run_dir / SETTINGS_FILE, json.dumps(settings.to_dict(), indent=1).encode())
        self._write_csv()
        steps = settings.optim.steps_per_epoch(len(self.loader))
        self.progress = Progress(
            total_steps=steps * settings.optim.epochs,
            done_steps=done,
            steps_per_epoch=steps,
            batch_size=settings.data.batch_size,
            wait_share=lambda: self.loader.stats()["wait_share"],
            device=self.device,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        if self._board is not None:
            self._board.close()

    def on_step(self, loss: float) -> None:
        if not self._stepped:  # a batch script checks whether a process that died had made a step
            self._stepped = True
            self.outputs.write(self.settings.run_dir / FIRST_STEP_FILE, b"")
        self.progress.step(loss)
        self.outputs.retry_if_due()
        steps = self.history.total_steps
        if self._board is not None and steps % TENSORBOARD_STEPS == 0:
            self._board.add({"loss": loss}, steps)

    def on_epoch(self) -> None:
        self._write_csv()
        history = self.history
        row = history.train[-1]
        line = f"epoch {history.epoch}/{self.settings.optim.epochs} loss {row['loss']:.4f} "
        line += f"lr {self._learning_rate():.2e} {self.progress.windows_per_second:.1f} windows/s "
        line += waiting_text(self.loader.stats()["wait_share"])
        if history.evaluation and history.evaluation[-1]["epoch"] == history.epoch:
            line += _accuracies(history.evaluation[-1])
        show(line)
        if self._board is not None:
            rows = {**row, **(history.evaluation[-1] if history.evaluation else {})}
            self._board.add({f"epoch/{name}": rows[name] for name in rows.keys() - {"epoch"}}, history.total_steps)

    def _learning_rate(self) -> float:
        """The learning rate of the last step; the history holds that of the next."""
        optim = self.settings.optim
        return optim.lr * learning_rate(optim, optim.steps_per_epoch(len(self.loader)))(self.history.total_steps - 1)

    def note_end(self, done: bool) -> None:
        """If ``done``, write the file that marks the run as complete.

        The exit status alone does not tell.
        """
        if done:
            self.outputs.write(self.settings.run_dir / COMPLETE_FILE, f"epoch {self.history.epoch}\n".encode())

    def summarise(self, done: bool) -> None:
        """Print how the run ended and, if ``done``, draw its curves into the run's folder."""
        self.progress.close()  # the next lines must come below the bar
        history, run_dir = self.history, self.settings.run_dir
        where = f"epoch {self.progress.epoch}/{self.settings.optim.epochs}, step {history.total_steps}"
        if not done:
            again = "the same command" if self.settings.checkpoint.resume else "the same command with --resume"
            say(f"stopped on request at {where}; {again} continues from {run_dir}")
            return
        loss = f"{history.train[-1]['loss']:.4f}"
        evaluation = _accuracies(history.evaluation[-1]) if history.evaluation else ""
        bad = int(self.loader.stats()["frames_bad"])
        rate = self.progress.windows_per_second  # 0 if the run was complete before
        speed = f", {rate:.1f} windows/s" if rate else ""
        say(f"complete: {where}, loss {loss}{evaluation}{speed}, bad frames {bad}; run in {run_dir}")
        self._plot(run_dir)

    def _write_csv(self) -> None:
        if self.settings.log.csv_log:
            train, evaluation = self.history.csv()
            self.outputs.write(self.settings.csv_path, train)
            if self.settings.log.eval_data is not None or self.history.accuracies:
                self.outputs.write(self.settings.eval_csv_path, evaluation)

    def _plot(self, run_dir: Path) -> None:
        """Draw the history, with or without --csv-log; a plot that fails does not fail the run."""
        try:
            metrics = self.history.metrics(chance_loss(self.settings.to_dict()))
            with tempfile.TemporaryDirectory() as folder:
                plot = Path(folder) / PLOT_FILE
                save_figure(draw_curves({run_dir.resolve().name or "run": metrics}), plot)
                replace_file(run_dir / PLOT_FILE, plot.read_bytes())
        except Exception as error:
            say(f"no {PLOT_FILE}: {error}")
        else:
            say(f"curves: {run_dir / PLOT_FILE}")


class Board:
    """Writes TensorBoard's files.

    A failure is reported once and never ends a run; the next values are a new try.
    """

    def __init__(self, folder: Path, done_steps: int) -> None:
        self._folder = folder
        self._done_steps = done_steps
        self._writer: Any = None
        self._reported = False

    def add(self, values: dict[str, float], steps: int) -> None:
        """Write scalars by name at ``steps`` finished steps."""
        with self._never_failing():
            if self._writer is None:  # drop what a killed run wrote after its last checkpoint
                self._writer = summary_writer()(str(self._folder), purge_step=self._done_steps + 1)
            for name, value in values.items():
                self._writer.add_scalar(name, value, steps)
            self._done_steps = steps

    def close(self) -> None:
        with self._never_failing():
            if self._writer is not None:
                self._writer.close()

    @contextlib.contextmanager
    def _never_failing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            if not self._reported:
                say(f"warning: TensorBoard's files in {self._folder} cannot be written ({error}); training goes on")
            self._reported = True


def _accuracies(row: dict[str, float]) -> str:
    names = [*(f"{part}_acc" for part in ("train", "val", "test")), *ABX_COLUMNS]
    return "".join(f" {name.replace('_', ' ')} {row[name]:.3f}" for name in names if name in row)


def summary_writer() -> Any:
    """TensorBoard's SummaryWriter class; SettingsError if tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError("--tensorboard needs the package tensorboard: pip install 'cltt[tensorboard]'") from None
    return SummaryWriter


class NonFiniteLossError(CLTTError):
    """The loss or the gradient norm is NaN or infinite."""


class StepPlace(NamedTuple):
    """A step, as an error message names it."""

    run_dir: Path
    epoch: int
    step: int
    window_ids: torch.Tensor


def check_finite(what: str, value: float, place: StepPlace) -> None:
    """Raise NonFiniteLossError unless ``value`` is finite; write the windows to a file.

    ``value`` must be equal on all ranks.
    """
    if math.isfinite(value):
        return
    ids = [i for part in distributed.all_gather_objects(place.window_ids.tolist()) for i in part]
    path = place.run_dir / "nonfinite.json"
    found = {"epoch": place.epoch, "step": place.step, "value": str(value), "what": what, "window_ids": ids}
    if distributed.world().is_main:
        replace_file(path, json.dumps(found, indent=1).encode())
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    raise NonFiniteLossError(
        f"{what} is {value} at epoch {place.epoch}, step {place.step}; training stopped before the update. "
        f"Windows of the batch: {shown} (all in {path}). Start a new run with a lower --lr or --amp off, from scratch "
        "or, with --checkpoint-path, from an earlier checkpoint"
    )
