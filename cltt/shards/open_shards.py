"""Open shards, bounded: a data set may have more shards than a process may have open files."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cltt.files.regular import open_regular
from cltt.shards import format

SHARE = 4  # one in so many of the files that the process may open
FEWEST, MOST = 4, 1024


def open_limit() -> int:
    """How many shards to keep open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if limit == resource.RLIM_INFINITY else min(MOST, max(FEWEST, limit // SHARE))


class _Open:
    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0


class OpenShards:
    """Descriptors of shards by number; of those that no thread is reading, the one used longest ago is closed first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = open_limit()
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def handle(self, shard: int) -> Iterator[int]:
        """The descriptor of ``shard`` while it is read; after an OSError the next reader gets a new one."""
        entry = self._take(shard)
        try:
            yield entry.handle
        except OSError:
            self._give_back(shard, entry, failed=True)
            raise
        except BaseException:
            self._give_back(shard, entry)
            raise
        self._give_back(shard, entry)

    def _take(self, shard: int) -> _Open:
        with self._lock:
            entry = self._open.get(shard)
            if entry is None:
                self._make_room()
                entry = self._open[shard] = _Open(open_regular(self._path / format.shard_name(shard), follow=False))
            self._open.move_to_end(shard)
            entry.users += 1
            return entry

    def _make_room(self) -> None:
        for shard in list(self._open):
            if len(self._open) < self._limit:
                return
            if self._open[shard].users == 0:
                os.close(self._open.pop(shard).handle)

    def _give_back(self, shard: int, entry: _Open, failed: bool = False) -> None:
        with self._lock:
            entry.users -= 1
            if failed and self._open.get(shard) is entry:
                del self._open[shard]
            if entry.users == 0 and self._open.get(shard) is not entry:
                os.close(entry.handle)

    def __del__(self) -> None:
        for entry in self._open.values():
            os.close(entry.handle)
