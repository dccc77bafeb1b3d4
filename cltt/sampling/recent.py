"""The last few results of something costly, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Recent(Generic[K, T]):
    """The last few results of ``build``, shared by threads; each is built once while it is kept."""

    def __init__(self, build: Callable[[K], T], size: int) -> None:
        self._build, self._size = build, size
        self._kept: dict[K, T] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: K) -> T:
        with self._lock:
            value = self._kept.pop(key) if key in self._kept else self._build(key)
            self._kept[key] = value  # the latest used stand last
            while len(self._kept) > self._size:
                del self._kept[next(iter(self._kept))]
            return value
