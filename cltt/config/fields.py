"""Declaring settings: one declaration gives the flag, its help, default and range, and the value saved with a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from cltt.errors import SettingsError
from cltt.text import shorten

if TYPE_CHECKING:  # old_flags needs this module
    from cltt.config.old_flags import Refused, ShortClipRule

Range = tuple[float, float]
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 8192  # pixels
MANY = 1_000_000_000
MAX_SEED = (1 << 63) - 1


def require(condition: bool, message: str) -> None:
    """Raise :class:`SettingsError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise SettingsError(message)


def setting(
    default: Any,
    help: str,
    *,
    within: Range | None = None,
    free: bool = False,
    old: Refused | ShortClipRule | None = None,
    **argparse_options: Any,
) -> Any:
    """A dataclass field that is also a flag, ``--field-name``, and a value saved with each run.

    The flag has the type of the field's annotation; ``bool`` makes a switch. :func:`check_fields` checks the value.

    Args:
        default: the default, also for an older run that did not save this setting.
        help: the text of ``--help``, without the default.
        within: the smallest and the largest number allowed; every number needs them.
        free: a resumed run may have another value (see :func:`cltt.config.differences`).
        old: flags of the older script that this setting replaces.
        argparse_options: ``choices``, ``metavar``, ``nargs`` ... of the flag.
    """
    declared = {"help": help, "argparse": argparse_options, "within": within, "free": free, "old": old}
    return dataclasses.field(default=default, metadata=declared)


def declared(settings: type) -> list[dataclasses.Field[Any]]:
    """The fields of the class ``settings`` that :func:`setting` declares."""
    return [field for field in fields(settings) if "within" in field.metadata]


def value_types(settings: type) -> dict[str, Any]:
    """The type of each setting by name, without None: ``int`` for ``int | None``."""
    hints = get_type_hints(settings).items()
    return {name: get_args(hint)[0] if isinstance(hint, UnionType) else hint for name, hint in hints}


def items_of(kind: Any) -> tuple[Any, int | str | None]:
    """(type of the items, their number or "+") of a tuple type; (the type, None) for any other type."""
    if get_origin(kind) is not tuple:
        return kind, None
    first, *others = get_args(kind)
    return first, "+" if others == [...] else 1 + len(others)


def values_of(settings: Any, part: type) -> dict[str, Any]:
    """The values in ``settings`` of the fields of the class ``part``, by name."""
    return {field.name: getattr(settings, field.name) for field in fields(part)}


def saved(settings: Any) -> dict[str, Any]:
    """The values of ``settings`` as JSON has them, in nested dictionaries."""
    value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return value


def check_fields(settings: Any) -> None:
    """Raise SettingsError for a number out of range, an unknown choice, or text that is empty or holds a NUL.

    ``__post_init__`` of a settings class calls it first. A list becomes a tuple where the field is a tuple.
    """
    kinds = value_types(type(settings))
    for field in declared(type(settings)):
        value = getattr(settings, field.name)
        if value is None:
            continue
        if isinstance(value, str):
            require(value != "", f"{field.name} is empty; leave it out, or give a value (the current folder is .)")
            require("\0" not in value, f"{field.name} is {value!r}; paths and names cannot hold a NUL")
        _, count = items_of(kinds[field.name])
        if count is not None:
            there = isinstance(value, list | tuple) and count in ("+", len(value))
            wanted = "a list" if count == "+" else f"{count} numbers"
            require(there, f"{field.name} is {value}; it must be {wanted}")
            object.__setattr__(settings, field.name, tuple(value))
        if field.metadata["within"] is not None:
            for number in value if isinstance(value, list | tuple) else [value]:
                require_within(field.name, number, *field.metadata["within"])
        if choices := field.metadata["argparse"].get("choices"):
            require(value in choices, f"{field.name} is {shorten(value, 30)!r}; it must be one of {', '.join(choices)}")


def require_within(name: str, value: float, low: float, high: float) -> None:
    require(low <= value <= high, f"{name} is {shorten(str(value), 30)}; it must be from {low} to {high}")
