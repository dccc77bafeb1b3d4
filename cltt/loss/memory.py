"""Cross-batch memory: embeddings of earlier batches as additional negatives.

Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, https://arxiv.org/abs/1912.06798.
"""

from __future__ import annotations

from typing import Any

import torch

from cltt.config import require


class WindowMemory(torch.nn.Module):
    """The last ``capacity`` windows of the joined batches, the same on every rank.

    Its ``state_dict`` holds the windows, so that a resumed run computes the same losses.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._rows = torch.empty(0)  # float32 [min(capacity, seen), T, D], of unit length
        self._spans = torch.empty(0, 3, dtype=torch.int64)  # per window: clip, first frame, last frame plus the gap
        self._next = 0  # index of the oldest window, once the memory is full

    def __len__(self) -> int:
        return len(self._spans)

    def columns(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit rows [M*T, D] and spans int64 [M, 3] of the remembered windows, on ``z``'s device.

        Raises SettingsError if the remembered windows have another T or D.
        """
        self._rows, self._spans = self._rows.to(z.device), self._spans.to(z.device)
        if not len(self):
            return self._rows.new_empty(0, z.shape[2]), self._spans
        require(
            self._rows.shape[1:] == z.shape[1:],
            f"z has shape {tuple(z.shape)}, but the memory holds windows of [T, D] = {list(self._rows.shape[1:])}; "
            "a loss with memory keeps one window size and one embedding size",
        )
        return self._rows.flatten(0, 1), self._spans

    def append(self, rows: torch.Tensor, spans: torch.Tensor) -> None:
        """Remember float32 unit ``rows`` [B, T, D] with ``spans`` [B, 3].

        They replace the oldest windows.
        """
        rows, spans = rows[-self.capacity :], spans[-self.capacity :]
        free = self.capacity - len(self)
        if free:
            self._rows = torch.cat([self._rows, rows[:free]]) if len(self) else rows[:free].clone()
            self._spans = torch.cat([self._spans, spans[:free]])
            rows, spans = rows[free:], spans[free:]
        places = (self._next + torch.arange(len(rows), device=rows.device)) % self.capacity
        self._rows[places], self._spans[places] = rows, spans
        self._next = (self._next + len(rows)) % self.capacity

    def get_extra_state(self) -> dict[str, Any]:
        return {"rows": self._rows.clone(), "spans": self._spans.clone(), "next": self._next}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._rows, self._spans, self._next = state["rows"].clone(), state["spans"].clone(), int(state["next"])
