"""Packing by several processes.

A worker is a fresh interpreter, not a fork: the caller may hold threads (torch, DALI), have no ``__main__`` guard,
or be typed into a shell. It gets shard numbers on its standard input and answers with one JSON line an event. When the
input closes, because the parent is done or dead, the worker ends at once: a killed build leaves no process behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

from cltt import format
from cltt._locks import locked
from cltt._pack import Progress, is_done, pack_shard
from cltt._plan import PLAN, Plan
from cltt.errors import CLTTError, DataError

_START = "import sys; sys.path[:] = {path!r}; from cltt._workers import serve; serve({out!r})"


def pack_one(plan: Plan, out: Path, shard: int, progress: Progress) -> None:
    """Pack ``shard`` unless it is done; waits while another process is at it."""
    with locked(out / format.BUILD / f"{format.shard_name(shard)}.lock", wait=True):
        if not is_done(out, shard):
            pack_shard(plan, out, shard, progress)


# ---- in the worker


def serve(out_dir: str) -> None:
    """Pack the shards named on standard input until it closes."""
    todo: queue.Queue[int] = queue.Queue()
    threading.Thread(target=_listen, args=(todo,), daemon=True).start()
    out = Path(out_dir)
    shard = todo.get()  # there is a plan once there is work
    plan = Plan(out / format.BUILD / PLAN)
    while True:
        try:
            pack_one(plan, out, shard, lambda frames, size: _tell(frames=frames, bytes=size))
            _tell(done=shard)
        except CLTTError as error:
            _tell(error=str(error))
        shard = todo.get()


def _listen(todo: queue.Queue[int]) -> None:
    for line in sys.stdin:
        todo.put(int(line))
    os._exit(0)


def _tell(**event: Any) -> None:
    print(json.dumps(event), flush=True)


# ---- in the parent


class Worker:
    """One packing process, as the parent sees it."""

    def __init__(self, out: Path) -> None:
        code = _START.format(path=sys.path, out=str(out.absolute()))
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OPENCV_FOR_THREADS_NUM": "1"},  # one thread a process, not one a core in each
            start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
        )
        assert self._process.stdin and self._process.stdout
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout

    def pack(self, shard: int, progress: Progress) -> None:
        """Have one shard packed; DataError with the worker's own words, or saying that it is gone."""
        try:
            self._stdin.write(f"{shard}\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._gone(shard) from None
        for line in self._stdout:
            event = json.loads(line)
            if "done" in event:
                return
            if "error" in event:
                raise DataError(event["error"])
            progress(event["frames"], event["bytes"])
        raise self._gone(shard)

    def _gone(self, shard: int) -> DataError:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status} (its words are above)"
        return DataError(
            f"a packing process {how} while it wrote {format.shard_name(shard)}; "
            "start the build again: finished shards are kept"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what a dead worker left unread
            self._stdin.close()
        self._stdout.close()


@contextlib.contextmanager
def crew(out: Path, workers: int) -> Iterator[list[Worker]]:
    """``workers`` - 1 packing processes, as the caller packs too; stopped at the end.

    They may be started before the plan is there: they import what they need while it is made.
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
    plan = Plan(out / format.BUILD / PLAN)
    shards = [shard for shard in shards if not _tell_if_done(plan, out, shard, progress)]
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for shard in shards:
        todo.put(shard)
    _serve_all(workers, todo, progress, lambda shard, tell: pack_one(plan, out, shard, tell))


def _tell_if_done(plan: Plan, out: Path, shard: int, progress: Progress) -> bool:
    done = is_done(out, shard)
    if done:
        progress(len(plan.shard_frames(shard)), 0)
    return done


def _serve_all(
    workers: list[Worker],
    todo: queue.SimpleQueue[int],
    progress: Progress,
    pack_here: Callable[[int, Progress], None],
) -> None:
    """Give every worker one shard after another, each from a thread of its own, and take shards here as well."""
    lock = threading.Lock()

    def tell(frames: int, size: int) -> None:
        with lock:
            progress(frames, size)

    def drive(worker: Worker) -> None:
        for shard in iter(_next(todo), None):
            worker.pack(shard, tell)

    def tell_here(frames: int, size: int) -> None:
        tell(frames, size)
        for driven in drives:
            if driven.done():
                driven.result()  # a worker's error ends our own packing at once

    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        drives = [pool.submit(drive, worker) for worker in workers]
        try:
            for shard in iter(_next(todo), None):
                pack_here(shard, tell_here)
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
