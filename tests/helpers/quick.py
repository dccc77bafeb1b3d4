"""Waiting made short."""

from __future__ import annotations

import pytest

from cltt.files import retry


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are retried after milliseconds; a policy that is set holds for this test alone."""
    monkeypatch.setattr(retry, "_policy", retry._Policy())
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.01)
