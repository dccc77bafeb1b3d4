"""Exceptions that carry one plain sentence for the person at the keyboard.

Scripts print these without a traceback and exit with status 2, or one of their own (see :mod:`cltt.cli`); anything
else is a defect and keeps its traceback. A message says what was given, what was expected, where, and what to do.
"""

from __future__ import annotations

EXIT_REQUEUE = 85  # "run the same command again": a batch script requeues on it


class CLTTError(Exception):
    """Base of all errors a user can cause and mend.

    Attributes:
        exit_status: of a script that ends with it. A batch script starts a run again unless it is 2.
    """

    exit_status = 2


class SettingsError(CLTTError, ValueError):
    """A setting or argument that cannot work."""


class DataError(CLTTError, RuntimeError):
    """Data on disk that is missing, damaged, or of another version."""


class BusyError(DataError):
    """What another process holds now: the same command may work later."""


class StorageError(DataError):
    """Storage that did not answer for as long as one was willing to wait: the same command may work later."""

    exit_status = EXIT_REQUEUE


class OutputError(CLTTError):
    """Results that could not be written to the end."""

    exit_status = 1


class OutOfMemoryError(CLTTError):
    """Memory, of the GPU or the machine, did not suffice; it may the next time."""

    exit_status = 1


class DeviceError(CLTTError):
    """A GPU that was given and does not work; another node's may."""

    exit_status = 1


class FrameError(DataError):
    """One frame that cannot be used.

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
        return FrameError, (self.frame_id, self.name, self.reason)  # made of more than its message


class InvalidImage(ValueError):
    """Bytes of a source file that are no whole picture that can be a frame; the message is one short phrase."""
