"""What a person sees while a run goes on: a progress bar on a terminal, else a line a minute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from cltt.text import never_failing_log

LINE_SECONDS = 60.0
BAR = "train {bar:4} {n_fmt}/{total_fmt}, {remaining} left{postfix}"  # fits 80 columns on the CPU


class Progress:
    """Shows loss, windows/s, data-wait share and GPU memory of a run.

    Args:
        total_steps: steps of the whole run.
        done_steps: those made before (by a run that is resumed).
        steps_per_epoch: for the epoch shown, which counts from 1.
        batch_size: windows a step, over all ranks.
        wait_share: share of the time that training waited for data, 0..1.
        device: its memory is shown, if it is a GPU.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        done_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        wait_share: Callable[[], float],
        device: torch.device,
    ) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._wait_share = wait_share
        self._device = device
        self._terminal = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=total_steps, initial=done_steps, unit="step", disable=not self._terminal, bar_format=BAR, **_size()
        )
        self._total, self._done, self._first = total_steps, done_steps, done_steps
        self._start = time.monotonic()
        self._next_line = self._start + LINE_SECONDS

    def step(self, loss: float) -> None:
        """Count a finished step."""
        self._done += 1
        if self._terminal:
            self._bar.set_postfix_str(self._status(loss, digits=0), refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            epoch = (self._done - 1) // self._steps_per_epoch + 1
            self.write(f"epoch {epoch} step {self._done}/{self._total} {self._status(loss)}")

    @property
    def windows_per_second(self) -> float:
        """Mean rate since this process began to train."""
        return (self._done - self._first) * self._batch_size / max(time.monotonic() - self._start, 1e-9)

    def write(self, line: str) -> None:
        """Print a line without tearing the bar."""
        show(line)

    def close(self) -> None:
        self._bar.close()

    def _status(self, loss: float, digits: int = 1) -> str:
        status = f"loss {loss:.3f} {self.windows_per_second:.0f} windows/s {waiting_text(self._wait_share(), digits)}"
        if self._device.type == "cuda":
            status += f" mem {torch.cuda.max_memory_allocated(self._device) / 1e9:.1f} GB"
        return status


def waiting_text(share: float, digits: int = 1) -> str:
    """``waiting for data 12.5%``, of a share from 0 to 1 of the time."""
    return f"waiting for data {100 * share:.{digits}f}%"


def show(line: str) -> None:
    """Print a line at once, whatever bars are on the terminal; may be lost as that of :func:`cltt.text.say`."""
    with never_failing_log():
        tqdm.write(line)
        sys.stdout.flush()


def _size() -> dict[str, Any]:
    """tqdm's options for the size of the terminal.

    Some terminals (under ``script``, in containers) say 0 x 0, in which tqdm by itself shows nothing.
    """
    try:
        unknown = 0 in os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # no terminal
        return {}
    return {"ncols": 80, "nrows": 24} if unknown else {"dynamic_ncols": True}
