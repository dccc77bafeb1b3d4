"""The version of an order's saved state, and the check that a saved state belongs to the same order."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from cltt.config import require
from cltt.errors import SettingsError
from cltt.text import changes

# Increase it when the same settings give another order.
STATE_VERSION = 2
# The last release that reads an earlier version.
_LAST_WITH = {1: "0.1.0"}
# Settings that older states lack, with the values that hold for them.
_BEFORE = {"clips_per_block": 0}
_WORDS = {"data_hash": "the hash of the clips and their lengths"}


def require_same(state: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that ``state`` was saved with the values ``here``, which are all that the order depends on.

    Raises:
        SettingsError: it does not; one sentence names each difference.
    """
    version = state.get("version")
    if version in _LAST_WITH:
        raise SettingsError(
            f"this state is of version {version} of the order; the order of an epoch has changed since: go on with "
            f"cltt {_LAST_WITH[version]}, or start a new run (from a run's weights: --checkpoint-path)"
        )
    require(
        version == STATE_VERSION,
        f"the order's state has version {version}, this program reads version {STATE_VERSION}; "
        "resume with the version of cltt that saved it",
    )
    state = {**_BEFORE, **state}
    missing = [key for key in ("epoch", "step", *here) if key not in state]
    require(not missing, f"the order's state lacks {', '.join(missing)}; it is damaged or not a state of an order")
    require_unchanged("order", state, here)


def require_unchanged(what: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that the values ``saved`` in the state of a ``what`` are those of ``now``.

    Raises:
        SettingsError: they differ; one sentence names each difference.
    """
    changed = changes(_in_words(saved), _in_words(now))
    require(
        not changed,
        f"the {what} cannot go on from this state: {'; '.join(changed)}; "
        "resume with what it was saved with, or start a new run",
    )


def _in_words(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_WORDS.get(name, name): value for name, value in values.items()}


def require_int(name: str, value: int, low: int, stop: int | None = None) -> int:
    """``value`` as an int.

    Raises:
        SettingsError: it is no integer, or outside ``low`` to ``stop-1``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number") from None
    allowed = f"{low} or more" if stop is None else f"from {low} to {stop - 1}"
    require(number >= low and (stop is None or number < stop), f"{name} is {number}; it must be {allowed}")
    return number
