"""What rank 0 writes down and shows while a run goes on: CSV files, progress, TensorBoard, the summary and the plot."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from cltt.config import TrainSettings
from cltt.errors import SettingsError
from cltt.files.atomic import replace_file
from cltt.loader.loader import WindowLoader
from cltt.metrics import History
from cltt.training.progress import Progress
from cltt.visualize.curves import plot_run

SETTINGS_FILE = "settings.json"
PLOT_FILE = "plots.png"
TENSORBOARD_STEPS = 10


class Records:
    """Listens to a trainer that fills ``history``.

    Writes from ``with`` on, when the history is that of the checkpoint that the run goes on from.
    """

    progress: Progress

    def __init__(self, settings: TrainSettings, history: History, loader: WindowLoader, device: torch.device) -> None:
        self.settings = settings
        self.history = history
        self.loader = loader
        self.device = device
        self._board: Any = None

    def __enter__(self) -> Records:
        settings, done = self.settings, self.history.total_steps
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        if settings.log.tensorboard:
            self._board = _open_board(settings.run_dir, done)
        replace_file(settings.run_dir / SETTINGS_FILE, json.dumps(settings.to_dict(), indent=1).encode())
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
        self.progress.step(loss)
        steps = self.history.total_steps
        if self._board is not None and steps % TENSORBOARD_STEPS == 0:
            self._board.add_scalar("loss", loss, steps)

    def on_epoch(self) -> None:
        self._write_csv()
        history = self.history
        row = history.train[-1]
        line = f"epoch {history.epoch}/{self.settings.optim.epochs} loss {row['loss']:.4f} "
        line += f"lr {row['learning_rate']:.2e} {self.progress.windows_per_second:.1f} windows/s "
        line += f"wait {100 * self.loader.stats()['wait_share']:.1f}%"
        if history.evaluation and history.evaluation[-1]["epoch"] == history.epoch:
            line += _accuracies(history.evaluation[-1])
        self.progress.write(line)
        if self._board is not None:
            rows = {**row, **(history.evaluation[-1] if history.evaluation else {})}
            for name in rows.keys() - {"epoch"}:
                self._board.add_scalar(f"epoch/{name}", rows[name], history.total_steps)

    def summarise(self, done: bool) -> None:
        """Say how the run ended and, at its end, draw its curves into the run's folder."""
        self.progress.close()  # the lines to come stand below the bar
        history, run_dir = self.history, self.settings.run_dir
        where = f"epoch {history.epoch}/{self.settings.optim.epochs}, step {history.total_steps}"
        if not done:
            print(f"stopped on request at {where}; the same command with --resume goes on from {run_dir}", flush=True)
            return
        loss = f"{history.train[-1]['loss']:.4f}"
        evaluation = _accuracies(history.evaluation[-1]) if history.evaluation else ""
        bad = int(self.loader.stats()["frames_bad"])
        rate = f"{self.progress.windows_per_second:.1f} windows/s"
        print(f"complete: {where}, loss {loss}{evaluation}, {rate}, bad frames {bad}; run in {run_dir}", flush=True)
        self._plot(run_dir)

    def _write_csv(self) -> None:
        if self.settings.log.csv_log:
            self.history.write_csv(self.settings.csv_path, self.settings.eval_csv_path)

    def _plot(self, run_dir: Path) -> None:
        """Draw the history, whether CSV files were asked for or not; a plot that fails must not fail the run."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                files = Path(folder) / (run_dir.resolve().name or "run")
                self.history.write_csv(files / "metrics.csv", files / "metrics_eval.csv")
                plot_run(files, run_dir / PLOT_FILE)
        except Exception as error:
            print(f"no {PLOT_FILE}: {error}", flush=True)
        else:
            print(f"curves: {run_dir / PLOT_FILE}", flush=True)


def _accuracies(row: dict[str, float]) -> str:
    return "".join(f" {part} acc {row[f'{part}_acc']:.3f}" for part in ("train", "val", "test") if f"{part}_acc" in row)


def _open_board(run_dir: Path, done_steps: int) -> Any:
    """TensorBoard's writer; what a killed run wrote beyond ``done_steps`` is not shown twice."""
    return summary_writer()(str(run_dir / "tensorboard"), purge_step=done_steps + 1)


def summary_writer() -> Any:
    """TensorBoard's class of writers; SettingsError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError("--tensorboard needs the package tensorboard: pip install 'cltt[tensorboard]'") from None
    return SummaryWriter
