"""Retries of reads that fail because storage is away for a while: one policy for the whole process.

A parallel file system that fails over, a server that restarts, a stalled mount: reads fail for seconds or minutes, with
the errors of TRANSIENT or fewer bytes than the file has, and then work again. NVIDIA's catalogue of failed jobs
(nvidia-resiliency-ext, pull request 411) has Lustre's among them: errno 5 (EIO) and 121 (EREMOTEIO). These reads are
tried again, on a fresh handle and after growing pauses. All other errors (a missing file, a refused permission, a full
disk) are raised at once. Writes are not retried here: cltt.training.outputs does so for what training writes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from cltt.errors import SettingsError, StorageError
from cltt.files.regular import AnyPath, open_regular

log = logging.getLogger(__name__)

_NAMES = ("EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "ENOTCONN", "ESHUTDOWN", "EREMOTEIO")  # macOS lacks the last
TRANSIENT = frozenset(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
IO_PATIENCE, MAX_PATIENCE = 600.0, 1e6  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 15.0  # seconds between two tries; each pause is twice the one before
PIECE = 1 << 20
T = TypeVar("T")


class ShortRead(OSError):
    """Fewer bytes came than the file has."""

    def __init__(self, path: AnyPath) -> None:
        super().__init__(errno.EIO, "Short read", os.fsdecode(path))


class _Policy:
    """How long this process retries, and which of its threads do so now."""

    def __init__(self) -> None:
        self.seconds = IO_PATIENCE
        self.lock = threading.Lock()
        self.threads = 0  # that wait
        self.since = 0.0


_policy = _Policy()


def set_policy(io_patience: float) -> None:
    """Have all threads of this process retry reads for ``io_patience`` seconds; the last call holds.

    Raises SettingsError unless ``io_patience`` is from 0 to MAX_PATIENCE.
    """
    if not 0 <= io_patience <= MAX_PATIENCE:
        raise SettingsError(f"io_patience is {io_patience}; it must be from 0 to {MAX_PATIENCE:g} seconds")
    _policy.seconds = io_patience


def io_patience() -> float:
    """Seconds for which this process retries reads."""
    return _policy.seconds


def is_transient(error: OSError) -> bool:
    """Whether ``error`` is one that a later read may not meet."""
    return error.errno in TRANSIENT


def retry(path: AnyPath, attempt: Callable[[], T]) -> T:
    """What ``attempt`` returns, called again while it raises a transient error.

    ``attempt`` opens its file anew each time. One warning is logged when the first thread begins to wait, and one when
    none waits any longer. Raises StorageError, naming ``path``, after io_patience seconds; any other error at once.
    """
    try:
        return attempt()
    except OSError as error:
        if not is_transient(error):
            raise
        return _retry(os.fsdecode(path), attempt, error)


def read_bytes(path: AnyPath, *, follow: bool = True) -> bytes:
    """The whole contents of a file; ``follow`` as in :func:`open_regular`."""
    return retry(path, lambda: _read_whole(path, follow))


def read_pieces(path: AnyPath, size: int = PIECE, *, follow: bool = True) -> Iterator[bytes]:
    """The contents of a file, ``size`` bytes at a time; ``follow`` as in :func:`open_regular`."""
    file, offset = SharedFile(path, follow=follow), 0
    while piece := retry(path, lambda: file.read(size, offset)):  # noqa: B023  # called at once
        yield piece
        offset += len(piece)


def _retry(path: str, attempt: Callable[[], T], error: OSError) -> T:
    seconds = _policy.seconds
    deadline = time.monotonic() + seconds
    pause = FIRST_PAUSE
    with _waiting(path, error):
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                return attempt()
            except OSError as again:
                if not is_transient(again):
                    raise
                error = again.with_traceback(None)  # which holds this frame, and with it what the read had open
        raise StorageError(
            f"{path} could not be read for {seconds:g} s ({error.strerror}; --io-patience); start again when the "
            "storage answers"
        ) from error


@contextlib.contextmanager
def _waiting(path: str, error: OSError) -> Iterator[None]:
    with _policy.lock:
        _policy.threads += 1
        if _policy.threads == 1:
            _policy.since = time.monotonic()
            log.warning("%s: %s; reading is tried again for up to %g s", path, error.strerror, _policy.seconds)
    answered = False
    try:
        yield
        answered = True
    finally:
        with _policy.lock:
            _policy.threads -= 1
            if answered and not _policy.threads:
                log.warning("%s: can be read again, after %.1f s", path, time.monotonic() - _policy.since)


class Descriptor:
    """An open file, closed when nobody holds this object any more."""

    def __init__(self, path: AnyPath, *, follow: bool = True) -> None:
        self.number = -1
        self.number = open_regular(path, follow=follow)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # what failed to read may fail to close, too
            os.close(self.number)


class SharedFile:
    """A file that any number of threads read by ``pread``; opened by the first read, and by the next after an error."""

    def __init__(self, path: AnyPath, *, follow: bool = True) -> None:
        self.path, self._follow = path, follow
        self._open: Descriptor | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes at ``offset``, fewer only at the end of the file; ShortRead where there is more."""
        opened = self._opened()  # held here: another thread may let go of it
        try:
            return pread_all(opened.number, size, offset, self.path)
        except OSError:
            self._open = None
            del opened  # the error keeps this frame
            raise

    def read_uncached(self, size: int, offset: int) -> bytes:
        """As :meth:`read`, but not what the system remembers of an earlier read, where it can be told to forget."""
        opened = self._opened()
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(opened.number, offset, size, os.POSIX_FADV_DONTNEED)
        return self.read(size, offset)

    def _opened(self) -> Descriptor:
        opened = self._open = self._open or Descriptor(self.path, follow=self._follow)
        return opened


def pread_all(handle: int, size: int, offset: int, path: AnyPath) -> bytes:
    """``size`` bytes at ``offset``, fewer only where the file ends; ShortRead where it has more."""
    data = os.pread(handle, size, offset)
    while len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
        data += more
    if len(data) < size and offset + len(data) < os.fstat(handle).st_size:
        raise ShortRead(path)
    return data


def _read_whole(path: AnyPath, follow: bool) -> bytes:
    file, size = SharedFile(path, follow=follow), os.stat(path).st_size
    data = file.read(size + 1, 0)  # a byte more: also files that have no size, such as those of /proc
    while size < len(data) and (more := file.read(PIECE, len(data))):
        data += more
    return data
