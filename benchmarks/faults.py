"""Faults inside the process that they strike; :mod:`benchmarks.chaos` orders them.

    CHAOS=folder CHAOS_DATA=folder CHAOS_OUT=folder [CHAOS_PACE=seconds] python -m benchmarks.faults train|build FLAGS

``CHAOS/order`` says which fault is on, as JSON: its number, its kind, and until when (``time.monotonic``, which all
processes of a machine share). The number goes into ``CHAOS/struck`` when the fault has really struck something. Reads
are struck under CHAOS_DATA, writes under CHAOS_OUT, in this process and in packing processes that it starts. SIGUSR2
prints where every thread stands.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

# The system's own calls, so that what is done here is never struck.
_open_file, _open, _fdopen, _pread, _read = open, os.open, os.fdopen, os.pread, os.read
_writev, _readlink = os.writev, os.readlink
_preadv = getattr(os, "preadv", None)
POLL_SECONDS = 0.01
HANG_SECONDS = 0.4


class Faults:
    """The fault that is on now, if any."""

    def __init__(self, folder: Path, data: str, out: str) -> None:
        self._order, self._struck = folder / "order", str(folder / "struck")
        self.data, self.out = os.path.realpath(data), os.path.realpath(out)
        self._now: dict[str, Any] = {"number": -1, "kind": "", "until": 0.0}
        self._done = {-1}  # those that strike once, and have
        threading.Thread(target=self._watch, name="faults", daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                with _open_file(self._order, "rb") as file:
                    self._now = json.loads(file.read())
            except (OSError, ValueError):
                pass
            time.sleep(POLL_SECONDS)

    def strikes(self, *kinds: str, once: bool = False) -> bool:
        """Whether one of ``kinds`` is on; the caller then fails."""
        now = self._now
        if now["kind"] not in kinds or time.monotonic() > now["until"] or (once and now["number"] in self._done):
            return False
        self._done.add(now["number"])
        handle = _open(self._struck, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, f"{now['number']}\n".encode())
        os.close(handle)
        return True

    @property
    def kind(self) -> str:
        return str(self._now["kind"])

    def quiet(self) -> bool:
        return time.monotonic() > self._now["until"]


def _path_of(handle: int) -> str:
    try:
        return _readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


class _Struck:
    """The system's calls, struck by ``faults``."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def is_data(self, path: str) -> bool:
        return path.startswith(self.faults.data) and not path.startswith(self.faults.out)

    def fail_read(self, path: str) -> None:
        if self.faults.quiet() or not self.is_data(path):
            return
        if self.faults.strikes("EIO", "ESTALE"):
            number = getattr(errno, self.faults.kind, errno.EIO)
            raise OSError(number, os.strerror(number), path)
        if self.faults.strikes("hanging read", once=True):
            time.sleep(HANG_SECONDS)

    def turn(self, path: str, size: int) -> int:
        """The byte of a read of ``size`` in which a bit is to be turned; -1: in none. The tars alone have checksums."""
        if size < 100 or not path.endswith(".tar") or not self.is_data(path) or self.faults.quiet():
            return -1
        return size // 2 if self.faults.strikes("flipped bit", once=True) else -1

    def is_short(self, path: str, size: int) -> bool:
        return (
            size > 1 and not self.faults.quiet() and self.is_data(path) and self.faults.strikes("short read", once=True)
        )

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        path = "" if self.faults.quiet() else _path_of(handle)
        self.fail_read(path)
        if self.is_short(path, size):
            return b""
        data = _pread(handle, size, offset)
        if (place := self.turn(path, len(data))) >= 0:
            data = data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
        return data

    def preadv(self, handle: int, buffers: Any, offset: int, *rest: Any) -> int:
        assert _preadv is not None
        path = "" if self.faults.quiet() else _path_of(handle)
        self.fail_read(path)
        if self.is_short(path, len(buffers[0])):
            return 0
        count = int(_preadv(handle, buffers, offset, *rest))
        if (place := self.turn(path, count)) >= 0:
            buffers[0][place] ^= 16
        return count

    def read(self, handle: int, size: int) -> bytes:
        path = "" if self.faults.quiet() else _path_of(handle)
        self.fail_read(path)
        return b"" if self.is_short(path, size) else _read(handle, size)

    def open_(self, path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if not self.faults.quiet() and not flags & (os.O_WRONLY | os.O_RDWR):
            self.fail_read(os.path.realpath(os.fsdecode(path)))
        return _open(path, flags, *rest, **more)

    def writev(self, handle: int, buffers: Any) -> int:
        if (
            not self.faults.quiet()
            and _path_of(handle).startswith(self.faults.out)
            and self.faults.strikes("full disk")
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _writev(handle, buffers)

    def fdopen(self, handle: int, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = _fdopen(handle, mode, *rest, **more)
        return _FullDisk(file, self.faults) if "w" in mode and _path_of(handle).startswith(self.faults.out) else file


def inject() -> Faults:
    """Let this process's reads and writes be struck."""
    faults = Faults(Path(os.environ["CHAOS"]), os.environ["CHAOS_DATA"], os.environ["CHAOS_OUT"])
    struck = _Struck(faults)
    os.pread, os.read, os.open, os.writev = struck.pread, struck.read, struck.open_, struck.writev  # type: ignore[assignment]
    if _preadv is not None:
        os.preadv = struck.preadv
    os.fdopen = struck.fdopen  # type: ignore[assignment]  # by which cltt.files.atomic opens what it writes
    return faults


class _FullDisk:
    """A file under CHAOS_OUT: takes half of what is written while the disk is full, and says so."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _FullDisk:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)

    def write(self, data: Any) -> int:
        if not self._faults.quiet() and self._faults.strikes("full disk"):
            self._file.write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))


# ---- what is struck


def train(arguments: list[str]) -> int:
    """The tiny run of the tests, slowed down by CHAOS_PACE seconds a step so that faults find something going on."""
    from tests.helpers import tiny_run

    log, pace = tiny_run.LossLog, float(os.environ.get("CHAOS_PACE", 0))

    class Paced(log):  # type: ignore[misc, valid-type]
        def __call__(self, loss: float) -> None:
            super().__call__(loss)
            time.sleep(pace)

    tiny_run.LossLog = Paced  # type: ignore[misc]
    sys.argv[1:] = arguments
    return tiny_run.main()


def build(arguments: list[str]) -> int:
    """``tools/build_shards.py``; its packing processes are struck too."""
    from cltt.commands.build import build as face
    from cltt.packing import workers

    workers._START = (
        "import sys; sys.path[:] = {path!r}; from benchmarks import faults; faults.inject(); "
        + (workers._START.partition("; ")[2].partition("; ")[2])
    )
    return face(arguments, "build_shards.py")


if __name__ == "__main__":
    from cltt import cli

    faulthandler.register(signal.SIGUSR2)
    inject()
    cli.run(lambda: {"train": train, "build": build}[sys.argv[1]](sys.argv[2:]), f"faults {sys.argv[1]}")
