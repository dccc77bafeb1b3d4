"""Data for free: one batch again and again, which bounds what any loader can give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cltt.loader.loader import Batch, WindowLoader


class ReplayLoader:
    """Free data: one batch of ``loader``, made once and handed out again at every step.

    What a training run reaches with it is what a perfect loader could give. Use it in the place of the loader.
    """

    def __init__(self, loader: WindowLoader) -> None:
        self._loader = loader
        self._epoch, self._step = loader.epoch, 0
        state = loader.state_dict()
        self._batch = next(iter(loader))
        loader.load_state_dict(state)  # closes the iterator, too

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        while self._step < len(self):
            self._step += 1
            yield self._batch
        self._epoch, self._step = self._epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`WindowLoader.set_epoch`."""
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Epoch and step."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at an epoch and step."""
        self._epoch, self._step = state["epoch"], state["step"]

    def stats(self) -> dict[str, float]:
        """Those of the loader behind it: they stand still."""
        return self._loader.stats()
