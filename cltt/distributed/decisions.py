"""Decisions that rank 0 makes for all ranks, and checks that all ranks have the same value.

These calls wait without a timeout, since building or copying shards may take hours; Ctrl-C ends the wait. All ranks
must make the same calls in the same order.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from cltt.distributed.collectives import all_gather_objects
from cltt.distributed.group import poll
from cltt.distributed.identity import world
from cltt.errors import CLTTError, DataError

T = TypeVar("T")
_turns = itertools.count()  # numbers the calls, as keys in the store


def from_main(make: Callable[[], T]) -> T:
    """The result of ``make()`` on rank 0, on every rank; if it raises a CLTTError, every rank raises it.

    The result must be picklable.
    """
    if world().world_size == 1:
        return make()
    store, key = _store(), f"from_main/{next(_turns)}"
    value: Any = None
    error: CLTTError | None = None
    if world().is_main:
        try:
            value = make()
        except CLTTError as raised:
            error = raised
        store.set(key, pickle.dumps((value, error)))
    else:
        poll(store, [key])
        value, error = pickle.loads(store.get(key))
    if error is not None:
        raise error
    return value


def wait_for_all() -> None:
    """Return when every rank has called this; there is no timeout."""
    me = world()
    if me.world_size == 1:
        return
    store, turn = _store(), next(_turns)
    store.set(f"wait/{turn}/{me.rank}", "")
    poll(store, [f"wait/{turn}/{rank}" for rank in range(me.world_size)])


def agreed(value: T, what: str) -> T:
    """``value``, if it is equal on every rank; otherwise DataError, which says what ``what`` is on each rank.

    The value must be picklable.
    """
    values = all_gather_objects(value)
    if any(other != values[0] for other in values):
        each = ", ".join(f"rank {rank} {other}" for rank, other in enumerate(values))
        raise DataError(f"the ranks do not agree on {what}: {each}; do all nodes see the same files and devices?")
    return value


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
