"""What every command line here shares: one-sentence errors with exit status 2, and flags made from settings.

A settings dataclass declares its flag with :func:`setting`; :func:`add_settings` adds one argparse option a field and
:func:`settings_from` builds the dataclass back from the parsed namespace, so a default is written down once.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from cltt.errors import CLTTError

EXIT_USAGE = 2
S = TypeVar("S")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, but not those that say nothing (None, and the False of a switch)."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """ArgumentParser with one-sentence errors and no abbreviated flags (a new flag must not change an old command)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def setting(default: Any, help: str, **argparse_options: Any) -> Any:
    """Declare a dataclass field with its command-line help and argparse options (``choices``, ``type`` ...)."""
    return dataclasses.field(default=default, metadata={"help": help, "argparse": argparse_options})


def add_settings(parser: argparse._ActionsContainer, settings: type, *, skip: tuple[str, ...] = ()) -> None:
    """Add ``--field-name`` for every field of ``settings`` declared with :func:`setting`.

    The argument type is that of the default; a boolean default becomes a store-true switch; a ``None`` default needs an
    explicit ``type``.
    """
    for field in dataclasses.fields(settings):
        if "help" not in field.metadata or field.name in skip:
            continue
        options = dict(field.metadata["argparse"], help=field.metadata["help"], default=field.default)
        if isinstance(field.default, bool):
            options.setdefault("action", "store_true")
        elif "type" not in options and "action" not in options:
            options["type"] = type(field.default)
        parser.add_argument("--" + field.name.replace("_", "-"), **options)


def settings_from(args: argparse.Namespace, settings: type[S]) -> S:
    """Build ``settings`` from the fields of the same names in ``args``; its own checks run here."""
    names = [field.name for field in dataclasses.fields(settings) if hasattr(args, field.name)]  # type: ignore[arg-type]
    return settings(**{name: getattr(args, name) for name in names})


def run(main: Callable[[], int | None], prog: str) -> NoReturn:
    """Run a script's ``main`` and exit with its status; a :class:`CLTTError` becomes one sentence and status 2."""
    try:
        status = main()
    except CLTTError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        status = EXIT_USAGE
    except BrokenPipeError:  # `... | head` closed our output
        sys.stderr.close()
        status = 0
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
