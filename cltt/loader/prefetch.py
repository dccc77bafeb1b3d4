"""The threads of a loader: one plans ahead, the others read and decode.

The planner goes through the steps of an epoch, gives each frame a slot of the frame memory (on a CPU, frames that are
kept in main memory need none) and queues jobs. The workers read and decode into the slots. The consumer takes the steps
in order. An error in a thread is raised in the consumer's :meth:`take`: a CLTTError as it is, any other as the cause of
a RuntimeError.

The consumer may be interrupted at any moment (Ctrl-C), so it takes no lock that the threads need; see
:mod:`cltt.threads`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cltt.errors import CLTTError, SettingsError
from cltt.loader.slots import BlockUses, SlotTable, StepUses

# Only the next two steps may take the slot of a frame that is needed again; steps further ahead wait for other slots.
EVICT_AHEAD = 2
# At most this many steps are planned ahead. Kept frames need no slots, so the number of slots would be no bound.
MOST_AHEAD = 1024
# A chunk with this many frames is queued without waiting for more steps. Its frames are sorted, so that one read covers
# neighbours, and divided into jobs.
CHUNK_FRAMES = 256
# Seconds that close() waits for the threads to end.
CLOSE_TIMEOUT = 3.0
# Seconds of one wait of the consumer; ``give_up`` is called after one or two of them.
GIVE_UP_INTERVAL = 0.2
# Seconds after which a thread that waits looks whether the loader was closed, should nothing have told it.
IDLE = 1.0


class GaveUp(Exception):
    """Raised in the consumer if ``give_up()`` is true while it waits for the next batch."""


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Chunk:
    """Jobs queued together; ``done`` is unlocked once ``jobs_left`` is 0, and the consumer may take their steps.

    ``awaited``: the consumer had to wait for it.
    """

    jobs_left: int = 0
    awaited: bool = False
    done: threading.Lock = field(default_factory=_locked)


@dataclass(frozen=True)
class Job:
    """Frames to read and decode: ``frames`` sorted int64 [n] into ``slots`` int64 [n]."""

    frames: np.ndarray
    slots: np.ndarray
    chunk: Chunk


@dataclass(frozen=True)
class PlannedStep:
    """A planned step; its frames are in ``slots`` int64 [b, T] once ``chunk`` and those before it have no jobs left.

    ``fresh``: how many frames get a slot for this step: decoded or, on a GPU, copied from kept ones.
    """

    step: int
    uses: StepUses
    slots: np.ndarray
    fresh: int
    chunk: Chunk


class Prefetcher:
    """Plans and decodes the steps from ``start`` to the end of an epoch ahead of the consumer, after :meth:`begin`.

    Args:
        blocks: for each block in turn, which frames its steps need; the first is the block of ``start``.
        fetch: ``fetch(frames, slots)`` reads and decodes; called by ``threads`` threads at once.
        table: slots, all free.
        start: first step.
        job_frames: the largest number of frames per call of ``fetch``.
    """

    def __init__(
        self,
        blocks: Iterator[BlockUses],
        fetch: Callable[[np.ndarray, np.ndarray], None],
        table: SlotTable,
        *,
        start: int,
        threads: int,
        job_frames: int,
    ) -> None:
        self._blocks, self._fetch, self._table, self._start = blocks, fetch, table, start
        self._job_frames = job_frames
        # Shared by consumer, planner and workers.
        self._consumed, self._stopped = start, False
        self._failure: BaseException | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._steps: queue.SimpleQueue[PlannedStep] = queue.SimpleQueue()  # in order, for the consumer
        self._released: queue.SimpleQueue[None] = queue.SimpleQueue()  # an item for each step the consumer is done with
        self._next: PlannedStep | None = None  # of the consumer, perhaps not decoded yet
        self._closed = False
        self._counting = threading.Lock()  # of the workers, for jobs_left
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._work,), name=f"cltt-decode-{k}", daemon=True)
            for k in range(threads)
        ]  # the planner starts last: it holds the GIL, and the others could not start
        self._threads.append(threading.Thread(target=self._guarded, args=(self._plan,), name="cltt-plan", daemon=True))

    def begin(self) -> None:
        """Start the threads. SettingsError if the system has not so many."""
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # the system's limit
            self.close()
            threads = len(self._threads) - 1
            raise SettingsError(
                f"{threads} reading threads (--num-workers) cannot be started: {error}; give fewer"
            ) from error

    @property
    def running(self) -> bool:
        """Whether a thread is alive; after :meth:`close`, whether one still hangs in a read."""
        return any(thread.is_alive() for thread in self._threads)

    def take(self, give_up: Callable[[], bool] = lambda: False) -> PlannedStep:
        """The next step, once its frames are in the store.

        Raises a thread's CLTTError, GaveUp if ``give_up()`` is true, or RuntimeError if a thread failed otherwise (with
        the cause) or the loader is closed.
        """
        while True:
            self._raise_failure()
            if self._arrived():
                step, self._next = self._next, None
                assert step is not None
                return step
            if give_up():
                raise GaveUp

    def _raise_failure(self) -> None:
        if isinstance(self._failure, CLTTError):
            raise self._failure
        if self._failure is not None:
            raise RuntimeError("a thread of the loader failed; the cause stands above") from self._failure
        if self._stopped:
            raise RuntimeError("the loader was closed while it was iterated; start a new iteration")

    def _arrived(self) -> bool:
        """Whether the next step has been decoded; waits for it for at most two times GIVE_UP_INTERVAL."""
        if self._next is None:
            try:
                self._next = self._steps.get(timeout=GIVE_UP_INTERVAL)
            except queue.Empty:
                return False
        chunk = self._next.chunk
        if not chunk.done.acquire(blocking=False):
            chunk.awaited = True
            if not chunk.done.acquire(timeout=GIVE_UP_INTERVAL):
                return False
        chunk.done.release()  # for the chunk's other steps
        return True

    def release(self, step: int) -> None:
        """The batch of ``step`` has been gathered: its slots are free, unless their frames are needed again."""
        self._consumed = step + 1
        self._released.put(None)

    def close(self) -> None:
        """Stop all threads; returns when they have ended, or after three seconds.

        Any thread may call it. If a call is interrupted, the next one does the rest; after a whole one it does nothing.
        """
        if self._closed:
            return
        self._stopped = True
        self._released.put(None)
        for _ in self._threads:
            self._jobs.put(None)
        deadline = time.monotonic() + CLOSE_TIMEOUT
        for thread in self._threads:
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._closed = True

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:  # a thread must never die unseen
            self._failure = self._failure or error

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self._fetch(job.frames, job.slots)
            with self._counting:
                job.chunk.jobs_left -= 1
                if not job.chunk.jobs_left:
                    job.chunk.done.release()

    def _next_job(self) -> Job | None:
        while not self._stopped:
            with contextlib.suppress(queue.Empty):
                return self._jobs.get(timeout=IDLE)
        return None

    def _plan(self) -> None:
        pending = PendingChunk(self._publish)
        for block in self._blocks:
            for step in range(max(self._start, block.steps.start), block.steps.stop):
                uses = block.step(step)
                placed = self._place(step, uses, pending)
                if placed is None:
                    return
                pending.add(step, uses, *placed)
        pending.flush()

    def _place(self, step: int, uses: StepUses, pending: PendingChunk) -> tuple[np.ndarray, np.ndarray] | None:
        """As :meth:`SlotTable.place`, but waits for enough slots; None if the loader is closed."""
        while not self._stopped:
            consumed = self._consumed
            if step < consumed + MOST_AHEAD:
                placed = self._table.place(step, uses, consumed, evict=step < consumed + EVICT_AHEAD)
                if placed is not None:
                    return placed
            pending.flush()
            self._await_release(consumed)
        return None

    def _await_release(self, consumed: int) -> None:
        while not self._stopped and self._consumed == consumed:
            with contextlib.suppress(queue.Empty):
                self._released.get(timeout=IDLE)

    def _publish(self, steps: list[PlannedStep], frames: np.ndarray, slots: np.ndarray, chunk: Chunk) -> None:
        order = np.argsort(frames)
        parts = np.array_split(order, max(1, -(-len(order) // self._job_frames)))  # one job at least, maybe empty
        chunk.jobs_left = len(parts)
        for step in steps:
            self._steps.put(step)
        for part in parts:
            self._jobs.put(Job(frames[part], slots[part], chunk))
        time.sleep(0)  # releases the GIL, or the workers would not start before the planner waits


class PendingChunk:
    """Collects the fresh frames of consecutive steps.

    Chunks of 1, 2, 4 ... steps are queued for the workers; a chunk ends earlier at CHUNK_FRAMES frames, or when the
    planner must wait for slots. The first step is queued alone, so that the first batch is ready early.
    """

    def __init__(self, publish: Callable[[list[PlannedStep], np.ndarray, np.ndarray, Chunk], None]) -> None:
        self._publish = publish
        self._limit = 1
        self._clear()

    def _clear(self) -> None:
        self._chunk = Chunk()
        self._steps: list[PlannedStep] = []
        self._frames: list[np.ndarray] = []
        self._slots: list[np.ndarray] = []

    def add(self, step: int, uses: StepUses, slots: np.ndarray, fresh: np.ndarray) -> None:
        """Add a step; ``slots`` and ``fresh`` (to be decoded or copied) are per frame of ``uses.unique``."""
        where = slots[np.searchsorted(uses.unique, uses.frame_ids)]
        self._steps.append(PlannedStep(step, uses, where, int(fresh.sum()), self._chunk))
        self._frames.append(uses.unique[fresh])
        self._slots.append(slots[fresh])
        if len(self._steps) >= self._limit or sum(map(len, self._frames)) >= CHUNK_FRAMES:
            self._limit *= 2
            self.flush()

    def flush(self) -> None:
        """Publish the collected steps."""
        if self._steps:
            self._publish(self._steps, np.concatenate(self._frames), np.concatenate(self._slots), self._chunk)
        self._clear()
