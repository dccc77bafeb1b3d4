"""What is decided once and heard by all ranks.

Waiting here has no limit, and Ctrl-C gets through to it: shards may be built or copied for hours. All ranks must come
to each of these calls, in the same order.
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
_turns = itertools.count()  # numbers the calls


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0 (picklable), on every rank; its CLTTError, too, is raised on every rank."""
    if world().world_size == 1:
        return make()
    store, key = _store(), f"from_main/{next(_turns)}"
    if world().is_main:
        outcome = _outcome(make)
        store.set(key, pickle.dumps(outcome))
    else:
        poll(store, [key])
        outcome = pickle.loads(store.get(key))
    value, error = outcome
    if error is not None:
        raise error
    return value


def _outcome(make: Callable[[], Any]) -> tuple[Any, CLTTError | None]:
    try:
        return make(), None
    except CLTTError as error:
        return None, error


def wait_for_all() -> None:
    """Return when every rank has come here, however long that takes."""
    me = world()
    if me.world_size == 1:
        return
    store, turn = _store(), next(_turns)
    store.set(f"wait/{turn}/{me.rank}", "")
    poll(store, [f"wait/{turn}/{rank}" for rank in range(me.world_size)])


def agreed(value: T, what: str) -> T:
    """``value`` (picklable) if it is the same on every rank; else DataError on all, with what each has of ``what``."""
    values = all_gather_objects(value)
    if any(other != values[0] for other in values):
        each = ", ".join(f"rank {rank} {other}" for rank, other in enumerate(values))
        raise DataError(f"the ranks do not agree on {what}: {each}; do all nodes see the same files and devices?")
    return value


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
