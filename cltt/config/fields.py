"""Fields of a settings class: declared with their flag's help, and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from cltt.errors import SettingsError
from cltt.text import shorten

Range = tuple[float, float]
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 8192  # pixels
MANY = 1_000_000_000
MAX_SEED = (1 << 63) - 1


def require(condition: bool, message: str) -> None:
    """Raise :class:`SettingsError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise SettingsError(message)


def setting(default: Any, help: str, *, within: Range | None = None, **argparse_options: Any) -> Any:
    """Declare a dataclass field with its command-line help and argparse options (``choices``, ``type`` ...).

    ``within``: the smallest and the largest number allowed; every number has them, and :func:`check_fields` looks.
    """
    return dataclasses.field(default=default, metadata={"help": help, "argparse": argparse_options, "within": within})


def check_fields(settings: Any) -> None:
    """SettingsError for a number outside its range, a choice that is none, or text that is empty or holds a NUL.

    Call it first in ``__post_init__`` of a settings class.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is None or "within" not in field.metadata:  # not made by setting()
            continue
        if isinstance(value, str):
            require(value != "", f"{field.name} is empty; leave it out, or give a value (the current folder is .)")
            require("\0" not in value, f"{field.name} is {value!r}; no path or name can hold a NUL")
        if field.metadata["within"] is not None:
            require_within(field.name, value, *field.metadata["within"])
        if "choices" in field.metadata["argparse"]:
            require_one_of(field.name, value, field.metadata["argparse"]["choices"])


def require_within(name: str, value: float, low: float, high: float) -> None:
    require(low <= value <= high, f"{name} is {shorten(str(value), 30)}; it must be from {low} to {high}")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    require(value in choices, f"{name} is {shorten(value, 30)!r}; it must be one of {', '.join(choices)}")
