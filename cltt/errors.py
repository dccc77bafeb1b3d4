"""Exceptions that carry one plain sentence for the person at the keyboard.

Scripts print these without a traceback and exit with status 2 (see :mod:`cltt.cli`); anything else is a defect and
keeps its traceback. A message says what was given, what was expected, where, and what to do.
"""

from __future__ import annotations


class CLTTError(Exception):
    """Base of all errors a user can cause and mend."""


class SettingsError(CLTTError, ValueError):
    """A setting or argument that cannot work."""


class DataError(CLTTError, RuntimeError):
    """Data on disk that is missing, damaged, or of another version."""


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


class InvalidImage(ValueError):
    """Bytes of a source file that are no whole picture that can be a frame; the message is one short phrase."""
