"""Shows a run's progress: a bar on a terminal, else one line per minute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from cltt.text import never_failing_log

LINE_SECONDS = 60.0
BAR = "train {bar:4} {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # fits 80 columns on the CPU


@dataclass(kw_only=True)
class Progress:
    """Shows loss, windows/s, the share of time spent waiting for data, and GPU memory.

    Attributes:
        total_steps: steps of the whole run.
        done_steps: finished steps, those before a resume included.
        steps_per_epoch: gives the epoch shown, which counts from 1.
        batch_size: windows per step, over all ranks.
        wait_share: ``() -> `` share of the time that training waited for data, 0..1.
        device: its memory is shown if it is a GPU.
    """

    total_steps: int
    done_steps: int
    steps_per_epoch: int
    batch_size: int
    wait_share: Callable[[], float]
    device: torch.device

    def __post_init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=self.total_steps,
            initial=self.done_steps,
            unit="step",
            disable=not self._terminal,
            bar_format=BAR,
            **_terminal_size(),
        )
        self._first_step, self._start = self.done_steps, time.monotonic()
        self._next_line = self._start + LINE_SECONDS

    def step(self, loss: float) -> None:
        """Count a finished step."""
        self.done_steps += 1
        if self._terminal:
            self._bar.set_postfix_str(self._status(loss, digits=0), refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            show(f"epoch {self.epoch} step {self.done_steps}/{self.total_steps} {self._status(loss)}")

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1; 0 before the first."""
        return (self.done_steps - 1) // self.steps_per_epoch + 1

    @property
    def windows_per_second(self) -> float:
        """Mean rate since this process began to train."""
        return (self.done_steps - self._first_step) * self.batch_size / max(time.monotonic() - self._start, 1e-9)

    def close(self) -> None:
        self._bar.close()

    def _status(self, loss: float, digits: int = 1) -> str:
        status = f"loss {loss:.3f} {self.windows_per_second:.0f} windows/s {waiting_text(self.wait_share(), digits)}"
        if self.device.type == "cuda":
            status += f" mem {torch.cuda.max_memory_allocated(self.device) / 1e9:.1f} GB"
        return status


def waiting_text(share: float, digits: int = 1) -> str:
    """``waiting for data 12.5%`` for a ``share`` of 0.125."""
    return f"waiting for data {100 * share:.{digits}f}%"


def show(line: str) -> None:
    """Print a line at once, without breaking a progress bar.

    A failed write is ignored as in :func:`cltt.text.say`.
    """
    with never_failing_log():
        tqdm.write(line)
        sys.stdout.flush()


def _terminal_size() -> dict[str, Any]:
    """tqdm's options for the size of the terminal.

    Some terminals (under ``script``, in containers) report 0 x 0. tqdm alone then shows nothing.
    """
    try:
        unknown = 0 in os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # no terminal
        return {}
    return {"ncols": 80, "nrows": 24} if unknown else {"dynamic_ncols": True}
