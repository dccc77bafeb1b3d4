"""Waiting made short."""

from __future__ import annotations

import pytest

from cltt.files import patience


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that failed are tried again after milliseconds."""
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)
