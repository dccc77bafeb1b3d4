"""Packing by several processes.

A worker is a fresh interpreter, not a fork: the caller may hold threads (torch, DALI), have no ``__main__`` guard,
or be typed into a shell. It gets shard numbers on its standard input and answers with one JSON line an event. When the
input closes, because the parent is done or dead, the worker ends at once: a killed build leaves no process behind.
It starts without ``site`` and imports little: that took longer than packing a thousand frames.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

from cltt.errors import CLTTError, DataError, StorageError
from cltt.files import retry
from cltt.packing.pack import Packer, Progress, is_done
from cltt.packing.plan import PLAN, Plan
from cltt.shards import layout

_START = "import sys; sys.path[:] = {path!r}; from cltt.packing.workers import serve; serve({out!r}, {io_patience!r})"
_PACKAGES = str(Path(__file__).parents[2])  # where this package lies, for an editable one is not on sys.path
FINISH = "finish"


# ---- in the worker


def serve(out_dir: str, io_patience: float) -> None:
    """Pack the shards named on standard input until it closes; "finish" waits until all of them are done."""
    logging.basicConfig(format="warning: %(message)s")
    retry.set_policy(io_patience)
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(todo,), daemon=True).start()
    out = Path(out_dir)
    task = todo.get()  # there is a plan once there is work
    with Packer(Plan(out / layout.BUILD / PLAN), out) as packer:
        while True:
            try:
                if task == FINISH:
                    packer.finish()
                else:
                    packer.pack(
                        int(task), lambda frames, size, seconds: _tell(frames=frames, bytes=size, seconds=seconds)
                    )
                _tell(done=task)
            except CLTTError as error:
                _tell(error=str(error), passes=isinstance(error, StorageError))
            task = todo.get()


def _listen(todo: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        todo.put(line.strip())
    os._exit(0)


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


# ---- in the parent


class Worker:
    """One packing process, as the parent sees it."""

    def __init__(self, out: Path) -> None:
        code = _START.format(path=[*sys.path, _PACKAGES], out=str(out.absolute()), io_patience=retry.io_patience())
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENCV_FOR_THREADS_NUM": "1"},  # one thread a process, not one a core in each
            start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
        )
        assert self._process.stdin and self._process.stdout
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout
        self._shard: int | None = None

    def pack(self, shard: int, progress: Progress) -> None:
        """Have one shard written; DataError with the worker's own words, or saying that it is gone."""
        self._shard = shard
        self._ask(str(shard), progress)

    def finish(self) -> None:
        """Wait until all its shards are done; raises as :meth:`pack` does."""
        if self._shard is not None:
            self._ask(FINISH, lambda frames, size, seconds: None)

    def _ask(self, task: str, progress: Progress) -> None:
        try:
            self._stdin.write(f"{task}\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None
        for line in self._stdout:
            event = json.loads(line)
            if "done" in event:
                return
            if "error" in event:
                raise (StorageError if event["passes"] else DataError)(event["error"])
            progress(event["frames"], event["bytes"], event["seconds"])
        raise self._gone()

    def _gone(self) -> DataError:
        assert self._shard is not None
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} (its words are above)"
        return DataError(
            f"a packing process {how} while it wrote {layout.shard_name(self._shard)}; "
            "start the build again: finished shards are kept"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a dead worker left unread
            self._stdin.close()
        self._stdout.close()


@contextlib.contextmanager
def started_workers(out: Path, workers: int) -> Iterator[list[Worker]]:
    """``workers`` - 1 packing processes, as the caller packs too; stopped at the end.

    They import what they need while the caller packs its first shard.
    """
    started = [Worker(out) for _ in range(workers - 1)]
    try:
        yield started
    finally:
        _stop(started)


def pack_shards(out: Path, shards: list[int], workers: list[Worker], progress: Progress) -> None:
    """Pack those of ``shards`` that are not done, in this process and by ``workers``.

    Raises the first worker's DataError; the others are stopped, and what they had not finished leaves no shard.
    """
    plan = Plan(out / layout.BUILD / PLAN)
    shards = [shard for shard in shards if not _tell_if_done(plan, out, shard, progress)]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for shard in shards:
        todo.put(shard)
    with Packer(plan, out) as packer:
        _serve_all(workers, todo, progress, packer)


def _tell_if_done(plan: Plan, out: Path, shard: int, progress: Progress) -> bool:
    done = is_done(out, shard)
    if done:
        progress(len(plan.shard_frames(shard)), 0, 0.0)
    return done


def _serve_all(
    workers: list[Worker],
    todo: queue.SimpleQueue[int],
    progress: Progress,
    packer: Packer,
) -> None:
    """Give every worker one shard after another, each from a thread of its own, and take shards here as well."""
    lock = threading.Lock()

    def tell(frames: int, size: int, seconds: float) -> None:
        with lock:
            progress(frames, size, seconds)

    def drive(worker: Worker) -> None:
        for shard in iter(_next(todo), None):
            worker.pack(shard, tell)
        worker.finish()

    def tell_here(frames: int, size: int, seconds: float) -> None:
        tell(frames, size, seconds)
        for driven in drives:
            if driven.done():
                driven.result()  # a worker's error ends our own packing at once

    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        drives = [pool.submit(drive, worker) for worker in workers]
        try:
            for shard in iter(_next(todo), None):
                packer.pack(shard, tell_here)
            packer.finish()
            for driven in as_completed(drives):
                driven.result()
        except BaseException:
            _stop(workers)  # before the pool waits for its threads, which wait for the workers
            raise


def _next(todo: queue.SimpleQueue[int]) -> Callable[[], int | None]:
    def take() -> int | None:
        try:
            return todo.get_nowait()
        except queue.Empty:
            return None

    return take


def _stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.stop()
