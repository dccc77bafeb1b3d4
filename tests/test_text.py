"""Words for people."""

from __future__ import annotations

from cltt.text import changes


def test_changes_name_each_value_that_is_not_as_it_was_saved() -> None:
    saved = {"batch_size": 32, "seed": 7, "only there": 1, "splits": None}
    now = {"batch_size": 16, "seed": 7, "label": "a", "splits": None}
    assert changes(saved, now) == ["batch_size is 16 and was 32", "label is a and was None"]
    assert changes(saved, saved) == []


def test_changes_of_any_length_stay_a_sentence() -> None:
    (change,) = changes({"data": "x" * 10_000}, {"data": "y" * 64})
    assert "y" * 64 in change and len(change) < 250
