"""Packing by several processes.

A worker is a fresh interpreter, not a fork, as the caller may hold threads (torch, DALI), have no ``__main__`` guard,
or be an interactive shell. It reads shard numbers from standard input and writes one JSON line per event. When its
input closes, because the parent has finished or died, it exits at once, so a killed build leaves no process behind. It
starts without ``site`` and imports little, as that would take longer than packing a thousand frames.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

from cltt.errors import CLTTError, DataError, StorageError
from cltt.files import retry
from cltt.packing.pack import Packer, Progress, is_done
from cltt.packing.plan import PLAN, Plan
from cltt.shards import layout

_START = "import sys; sys.path[:] = {path!r}; from cltt.packing.workers import serve; serve({out!r}, {io_patience!r})"
_PACKAGES = str(Path(__file__).parents[2])  # an editable install is not on sys.path without site
FINISH = "finish"


# ---- in the worker


def serve(out_dir: str, io_patience: float) -> None:
    """Pack the shards named on standard input until it closes; "finish" waits until all are on disk."""
    logging.basicConfig(format="warning: %(message)s")
    retry.set_policy(io_patience)
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(todo,), daemon=True).start()
    out = Path(out_dir)
    task = todo.get()  # the plan exists once there is work
    with Packer(Plan(out / layout.BUILD / PLAN), out) as packer:
        while True:
            try:
                if task == FINISH:
                    packer.finish()
                else:
                    packer.pack(int(task), lambda *counts: _tell(progress=counts))
                _tell(done=task)
            except CLTTError as error:
                _tell(error=str(error), transient=isinstance(error, StorageError))
            task = todo.get()


def _listen(todo: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        todo.put(line.strip())
    os._exit(0)


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


# ---- in the parent


class Worker:
    """A packing process, started and driven by the parent."""

    def __init__(self, out: Path) -> None:
        code = _START.format(path=[*sys.path, _PACKAGES], out=str(out.absolute()), io_patience=retry.io_patience())
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENCV_FOR_THREADS_NUM": "1"},  # one thread per process, not one per core
            start_new_session=True,  # Ctrl-C goes to the parent, which stops its workers
        )
        assert self._process.stdin and self._process.stdout
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout
        self._shard: int | None = None

    def pack(self, shard: int, progress: Progress) -> None:
        """Pack one shard; raises the worker's DataError or StorageError, or a DataError if it has died."""
        self._shard = shard
        self._request(str(shard), progress)

    def finish(self) -> None:
        """Wait until all its shards are on disk; raises as :meth:`pack` does."""
        if self._shard is not None:
            self._request(FINISH, lambda frames, size, seconds: None)

    def _request(self, task: str, progress: Progress) -> None:
        try:
            self._stdin.write(f"{task}\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        for line in self._stdout:
            event = json.loads(line)
            if "done" in event:
                return
            if "error" in event:
                raise (StorageError if event["transient"] else DataError)(event["error"])
            progress(*event["progress"])
        raise self._death()

    def _death(self) -> DataError:
        assert self._shard is not None
        status = self._process.wait()
        how = (
            f"was killed by signal {-status}"
            if status < 0
            else f"ended with status {status} (its error is printed above)"
        )
        return DataError(
            f"a packing process {how} while it wrote {layout.shard_name(self._shard)}; "
            "start the build again: finished shards are kept"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # a dead worker may not have read all of it
            self._stdin.close()
        self._stdout.close()


def pack_shards(plan: Plan, out: Path, shards: list[int], workers: int, progress: Progress) -> None:
    """Pack those of ``shards`` that are not done, in ``workers`` processes, this one among them.

    Raises the first worker's DataError; the other workers are stopped, and unfinished shards are not published.
    """
    missing = [shard for shard in shards if not is_done(out, shard)]
    progress(sum(len(plan.shard_frames(shard)) for shard in set(shards).difference(missing)), 0, 0.0)
    started = [Worker(out) for _ in range(min(workers, len(missing)) - 1)]
    todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for shard in [*missing, *[None] * (len(started) + 1)]:  # None ends a process
        todo.put(shard)
    lock = threading.Lock()
    drives: list[Future[None]] = []

    def tell(frames: int, size: int, seconds: float) -> None:
        with lock:
            progress(frames, size, seconds)

    def drive(worker: Worker) -> None:
        for shard in iter(todo.get, None):
            worker.pack(shard, tell)
        worker.finish()

    def tell_here(frames: int, size: int, seconds: float) -> None:
        tell(frames, size, seconds)
        for driven in drives:
            if driven.done():
                driven.result()  # a worker's error ends packing here at once

    with Packer(plan, out) as packer, ThreadPoolExecutor(max(1, len(started))) as pool:
        try:
            drives += [pool.submit(drive, worker) for worker in started]
            for shard in iter(todo.get, None):
                packer.pack(shard, tell_here)
            packer.finish()
            for driven in as_completed(drives):
                driven.result()
        finally:
            for worker in started:  # before the pool waits for its threads, which wait for the workers
                worker.stop()
