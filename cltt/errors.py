"""Exceptions whose message is one sentence for the user.

Commands print it without a traceback and exit with ``exit_status`` (see :mod:`cltt.cli`). Any other exception is a
defect and keeps its traceback. A message says what happened, where, and what to do.
"""

from __future__ import annotations

EXIT_REQUEUE = 85  # asks for the same command again: batch scripts requeue the job


class CLTTError(Exception):
    """Base of all errors that a user can cause and correct.

    Attributes:
        exit_status: exit status of the command. Batch scripts start a run again unless it is 2.
    """

    exit_status = 2


class SettingsError(CLTTError, ValueError):
    """A setting or argument has a value that cannot work."""


class DataError(CLTTError, RuntimeError):
    """Data on disk is missing, damaged, or of another version."""


class BusyError(DataError):
    """Another process uses the files now; the same command may work later."""


class StorageError(DataError):
    """The storage did not answer for io_patience seconds; the same command may work later."""

    exit_status = EXIT_REQUEUE


class OutputError(CLTTError):
    """Results could not be written completely."""

    exit_status = 1


class OutOfMemoryError(CLTTError):
    """The GPU or the machine had too little memory; the same command may work later."""

    exit_status = 1


class DeviceError(CLTTError):
    """A GPU that was given to the process does not work; another node's may."""

    exit_status = 1


class FrameError(DataError):
    """One frame cannot be read or decoded.

    Attributes:
        frame_id: dataset-wide id of the frame.
        name: the source file's path relative to the root folder.
        reason: one short phrase, e.g. ``"CRC mismatch"``.
    """

    def __init__(self, frame_id: int, name: str, reason: str) -> None:
        super().__init__(f"frame {frame_id} ({name}): {reason}")
        self.frame_id = frame_id
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[type[FrameError], tuple[int, str, str]]:
        return FrameError, (self.frame_id, self.name, self.reason)  # pickle would pass only the message


class InvalidImage(ValueError):
    """A source file is not a complete image that can be a frame; the message is one short phrase."""
