"""The small files of a run: written when there is news, tried again later where they cannot be, and never its end.

A disk that is full for an hour must not end a run of days: what cannot be written is said once, and tried again with
the next file and after RETRY_SECONDS. Nothing is lost meanwhile: a file is made whole each time, from what is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from cltt.errors import OutputError
from cltt.files.atomic import replace_file

RETRY_SECONDS = 300.0
_PAUSE = 5.0  # seconds between two tries at the end of a run


class Writer(Protocol):
    """Something with files that may be missing still."""

    def retry(self) -> str:
        """Try again what could not be written; "" if nothing is missing, else what is and why."""
        ...


class Outputs:
    """Files by path; the contents given last are those written.

    Args:
        say: shows a line: when something cannot be written, and when all is again.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._late: dict[Path, bytes] = {}
        self._last_try = 0.0

    def write(self, path: Path, data: bytes) -> None:
        """Replace the file, now or when it can be written."""
        was_late = bool(self._late)
        self._late[path] = data
        missing = self._try_all()
        if missing and not was_late:
            self._say(f"warning: cannot write {missing}; training goes on, and it is tried again")
        elif was_late and not missing:
            self._say("all files of the run can be written again")

    def look(self) -> None:
        """Try again what is late, if it has been long enough; called after every step."""
        if self._late and time.monotonic() - self._last_try >= RETRY_SECONDS:
            self.write(*next(iter(self._late.items())))

    def retry(self) -> str:
        return self._try_all()

    def _try_all(self) -> str:
        self._last_try = time.monotonic()
        missing = []
        for path, data in list(self._late.items()):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, data)
                del self._late[path]
            except OSError as error:
                missing.append(f"{path} ({error.strerror or error})")
        return ", ".join(missing)


def finish_writing(writers: Iterable[Writer], seconds: float) -> None:
    """Return when nothing is missing; OutputError, saying what is, after ``seconds`` of trying."""
    deadline = time.monotonic() + seconds
    while missing := [what for writer in writers if (what := writer.retry())]:
        if time.monotonic() >= deadline:
            raise OutputError(
                f"not written after {seconds:g} s of trying (--io-patience): {'; '.join(missing)}. Make room, and give "
                "the same command with --resume: it goes on from the newest checkpoint"
            )
        time.sleep(min(_PAUSE, max(0.1, deadline - time.monotonic())))
