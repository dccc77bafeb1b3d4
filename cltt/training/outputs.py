"""Writes the small files of a run.

A file that cannot be written never ends the run: it is retried later.

A disk that is full for an hour must not end a run of days. A failed write is reported once and retried with the next
file and after RETRY_SECONDS. Nothing is lost meanwhile, as each write replaces the whole file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cltt.checkpoint import CheckpointStore
from cltt.errors import OutputError
from cltt.files.atomic import replace_file

RETRY_SECONDS = 300.0
_PAUSE = 5.0  # seconds between two retries at the end of a run


class Outputs:
    """Files by path; only the newest contents of each are written.

    Args:
        say: prints a line when a file cannot be written, and when all files are written again.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._unwritten: dict[Path, bytes] = {}
        self._last_try = 0.0

    def write(self, path: Path, data: bytes) -> None:
        """Replace the file, now or at a later retry."""
        had_unwritten = bool(self._unwritten)
        self._unwritten[path] = data
        missing = self.retry()
        if missing and not had_unwritten:
            self._say(f"warning: cannot write {missing}; training goes on, and the write is retried")
        elif had_unwritten and not missing:
            self._say("all files of the run can be written again")

    def retry_if_due(self) -> None:
        """Retry unwritten files every RETRY_SECONDS; called after every step."""
        if self._unwritten and time.monotonic() - self._last_try >= RETRY_SECONDS:
            self.write(*next(iter(self._unwritten.items())))

    def retry(self) -> str:
        """Write what is unwritten; returns the paths that failed again and why, "" if none did."""
        self._last_try = time.monotonic()
        missing = []
        for path, data in list(self._unwritten.items()):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
                del self._unwritten[path]
            except OSError as error:
                missing.append(f"{path} ({error.strerror or error})")
        return ", ".join(missing)


def finish_writing(writers: Iterable[CheckpointStore | Outputs], seconds: float) -> None:
    """Retry until everything is written; OutputError, naming what is not, after ``seconds``."""
    deadline = time.monotonic() + seconds
    while missing := [what for writer in writers if (what := writer.retry())]:
        if time.monotonic() >= deadline:
            raise OutputError(
                f"not written after {seconds:g} s of retries (--io-patience): {'; '.join(missing)}. Free some space "
                "and give the same command with --resume: it continues from the newest checkpoint"
            )
        time.sleep(min(_PAUSE, max(0.1, deadline - time.monotonic())))
