"""The parts that all commands share: one-sentence errors, and flags made from settings.

:func:`add_settings` adds a flag for each setting of a class, and :func:`settings_from` makes an instance of the flags
that were given. The namespace only holds settings that were given; the class has the defaults.
"""

from __future__ import annotations

import argparse
import errno
import io
import itertools
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, TypeVar

from cltt.config.fields import declared, items_of, value_types
from cltt.errors import CLTTError
from cltt.text import shorten

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # the status that a shell gives after Ctrl-C
S = TypeVar("S")


class _Help(argparse.HelpFormatter):
    """Help that shows defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return (action.help or "") + _default_text(action.default)


def _default_text(default: Any) -> str:
    """`` (default: VALUE)``; "" for an empty default and for the False of a switch."""
    silent = default in (None, "", (), argparse.SUPPRESS) or default is False
    return "" if silent else f" (default: {default})"


class Parser(argparse.ArgumentParser):
    """ArgumentParser with one-sentence errors and no abbreviated flags (a new flag must not change an old command)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", _Help)
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; the error for an unknown flag names the most similar one."""
        if self._subparsers is not None:  # each subcommand checks its own flags
            return super().parse_args(args, namespace)
        flags = itertools.takewhile(lambda word: word != "--", sys.argv[1:] if args is None else args)
        known = self._option_string_actions
        for flag in (word.split("=")[0] for word in flags if word.startswith("--") and " " not in word):
            families = (action for name, action in known.items() if name[-1] == "*" and flag.startswith(name[:-1]))
            if flag not in known and (family := next(families, None)) is not None:
                known[flag] = family
            if flag not in known:
                self.error(f"there is no flag {flag}{self._did_you_mean(flag)}")
        return super().parse_args(args, namespace)

    def _did_you_mean(self, flag: str) -> str:
        shown = [name for name, action in self._option_string_actions.items() if action.help is not argparse.SUPPRESS]
        import difflib  # imported only after a mistake

        close = difflib.get_close_matches(flag, shown, n=1)
        return f"; did you mean {close[0]}?" if close else ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, with an error for ``--flag=--``, of which argparse makes an empty list."""
        parsed, rest = super().parse_known_args(args, namespace)
        for name, value in vars(parsed).items():
            if value == []:
                self.error(f"argument --{name.replace('_', '-')}: expected one argument")
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {shorten(message, 500)} (see {self.prog} --help)\n")


def add_settings(parser: argparse._ActionsContainer, settings: type, *, skip: tuple[str, ...] = ()) -> None:
    """Add the flag ``--field-name`` of every setting of the class ``settings``, and the old flags that it replaces."""
    kinds = value_types(settings)
    for field in declared(settings):
        if field.name in skip:
            continue
        options = {"help": field.metadata["help"] + _default_text(field.default), **field.metadata["argparse"]}
        kind, count = items_of(kinds[field.name])
        if kind is bool:
            options.setdefault("action", "store_true")
        else:
            several = count is not None and "action" not in options
            options = {"type": kind, **({"nargs": count} if several else {}), **options}
        parser.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, **options)
        if field.metadata["old"] is not None:
            field.metadata["old"].add(parser)


def settings_from(args: argparse.Namespace, settings: type[S]) -> S:
    """An instance of the class ``settings`` with the values in ``args``; SettingsError if they cannot work."""
    for field in declared(settings):
        if field.metadata["old"] is not None:
            field.metadata["old"].take(args)
    return settings(**{field.name: vars(args)[field.name] for field in declared(settings) if field.name in args})


def run(main: Callable[[], int | None], prog: str) -> NoReturn:
    """Run ``main`` and exit with its status. A :class:`CLTTError` is printed as one sentence.

    So is an OSError about a path. Warnings and log messages of the package are printed as one line each.
    """
    _open_standard_streams()
    with _plain_warnings():
        sys.exit(_status_of(main, prog))


def _status_of(main: Callable[[], int | None], prog: str) -> int:
    try:
        status = main() or 0
        _flush_output()
        return status
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # a worker or a connection broke: a failure
        return 0
    except (CLTTError, OSError, KeyboardInterrupt) as error:
        explained = explain(error, prog)
        if explained is None:
            raise
        status, sentence = explained
        print(sentence, file=sys.stderr)
        return status


# Errors that are about a path, whatever was done with it.
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EILSEQ, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def explain(error: BaseException, prog: str) -> tuple[int, str] | None:
    """The exit status and the sentence ("": none) for a command that ends with ``error``; None: it is a defect."""
    if isinstance(error, CLTTError):
        return error.exit_status, f"{prog}: error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, f"{prog}: interrupted"
    if isinstance(error, OSError) and error.errno in _OF_PATHS and error.filename is not None:
        return (
            EXIT_USAGE,
            f"{prog}: error: {shorten(os.fsdecode(error.filename), 80)!r} cannot be used: {error.strerror}",
        )
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code, ""
    return None


def _open_standard_streams() -> None:
    """Open the null device for a standard stream that is closed (``2>&-``): the next file opened would replace it.

    Characters that are not in the terminal's encoding are written as escapes.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_output() -> None:
    """Flush standard output. On a full disk the remaining output is discarded: the work itself has succeeded."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Whether the reader of our output has ended (``... | head``); if so, remaining output is discarded."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        poll = select.poll()
        try:
            poll.register(stream, select.POLLOUT)
        except (OSError, ValueError):  # not a file of the system
            continue
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


class _LogLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _print_warning(self.format(record))


def _print_warning(text: str) -> None:
    """Print a line on stderr, above a progress bar if there is one."""
    bars = sys.modules.get("tqdm")
    (print if bars is None else bars.tqdm.write)(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print each warning once, as a line ``warning: ...``, and each message that the package logs."""
    said = set()

    def show(message: Warning | str, category: Any, filename: str, lineno: int, *_: TextIO | str | None) -> None:
        if str(message) not in said:
            said.add(str(message))
            _print_warning(str(message))

    handler = _LogLines()
    handler.setLevel(logging.WARNING)
    log = logging.getLogger("cltt")
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        log.removeHandler(handler)
