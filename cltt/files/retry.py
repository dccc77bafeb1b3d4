"""Retries of reads after transient errors of the storage, with one policy for the whole process.

When a parallel file system fails over or a server restarts, reads fail for seconds or minutes: with an error of
TRANSIENT, or with fewer bytes than the file has. NVIDIA's catalogue of failed jobs (nvidia-resiliency-ext, pull request
411) lists EIO and EREMOTEIO on Lustre. Such a read is retried on a new handle, after pauses that grow. All other errors
(a missing file, no permission, a full disk) are raised at once. Writes are not retried here: see cltt.training.outputs.
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
    """A read that returned fewer bytes than the file has."""

    def __init__(self, path: AnyPath) -> None:
        super().__init__(errno.EIO, "Short read", os.fsdecode(path))


class _Policy:
    """How long this process retries reads, and how many of its threads retry now."""

    def __init__(self) -> None:
        self.seconds = IO_PATIENCE
        self.lock = threading.Lock()
        self.threads = 0  # threads that retry now
        self.since = 0.0  # when the first of them began


_policy = _Policy()


def set_policy(io_patience: float) -> None:
    """Set for how many seconds all threads of this process retry reads; the last call counts.

    Raises SettingsError unless ``io_patience`` is from 0 to MAX_PATIENCE.
    """
    if not 0 <= io_patience <= MAX_PATIENCE:
        raise SettingsError(f"io_patience is {io_patience}; it must be from 0 to {MAX_PATIENCE:g} seconds")
    _policy.seconds = io_patience


def io_patience() -> float:
    """The number of seconds for which this process retries reads."""
    return _policy.seconds


def is_transient(error: OSError) -> bool:
    """Whether ``error`` is transient: the same read may work later."""
    return error.errno in TRANSIENT


def retry(path: AnyPath, attempt: Callable[[], T]) -> T:
    """The result of ``attempt()``, which is called again while it raises a transient error.

    ``attempt`` must open its file again each time. A warning is logged when the first thread begins to retry, and
    another when the last thread has succeeded.

    Raises StorageError, which names ``path``, after io_patience seconds; any other error at once.
    """
    try:
        return attempt()
    except OSError as error:
        if not is_transient(error):
            raise
        return _retry(os.fsdecode(path), attempt, error)


def read_bytes(path: AnyPath, *, follow: bool = True) -> bytes:
    """The contents of a file; ``follow`` as in :func:`open_regular`."""
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
                error = again.with_traceback(None)  # the traceback would keep the file open
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
    """An open file, which is closed when this object is deleted."""

    def __init__(self, path: AnyPath, *, follow: bool = True) -> None:
        self.number = -1
        self.number = open_regular(path, follow=follow)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # a file that failed to read may fail to close, too
            os.close(self.number)


class SharedFile:
    """A file that any number of threads may read. The first read opens it, and so does the next read after an error."""

    def __init__(self, path: AnyPath, *, follow: bool = True) -> None:
        self.path, self._follow = path, follow
        self._open: Descriptor | None = None

    def read(self, size: int, offset: int) -> bytes:
        """Up to ``size`` bytes at ``offset``, fewer only at the end of the file; ShortRead if a read stops earlier."""
        opened = self._opened()  # a reference of its own: another thread may drop self._open
        try:
            data = os.pread(opened.number, size, offset)
            while len(data) < size and (more := os.pread(opened.number, size - len(data), offset + len(data))):
                data += more
            if len(data) < size and offset + len(data) < os.fstat(opened.number).st_size:
                raise ShortRead(self.path)
            return data
        except OSError:
            self._open = None
            del opened  # or the traceback would keep the file open
            raise

    def read_uncached(self, size: int, offset: int) -> bytes:
        """As :meth:`read`, from the storage: the system is asked to drop its cached copy first."""
        opened = self._opened()
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(opened.number, offset, size, os.POSIX_FADV_DONTNEED)
        return self.read(size, offset)

    def _opened(self) -> Descriptor:
        opened = self._open = self._open or Descriptor(self.path, follow=self._follow)
        return opened


def _read_whole(path: AnyPath, follow: bool) -> bytes:
    file, size = SharedFile(path, follow=follow), os.stat(path).st_size
    data = file.read(size + 1, 0)  # one byte more than the size: files of /proc have size 0
    while size < len(data) and (more := file.read(PIECE, len(data))):
        data += more
    return data
