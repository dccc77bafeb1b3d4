"""``cltt COMMAND``: one command beside the scripts, each a face of its own that is imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import cltt
from cltt.start import require_packages

require_packages("cltt")

from cltt import cli, errors  # noqa: E402


class Command(NamedTuple):
    """Where a command lives, and what it is for."""

    module: str
    function: str
    help: str


COMMANDS = {
    "build": Command("cltt.commands.build", "build", "build shards from folders of frames or videos"),
    "verify": Command("cltt.commands.build", "verify", "check a set of shards"),
    "inspect": Command("cltt.visualize.inspect", "main", "draw windows, batches and statistics, or write a gallery"),
    "train": Command("cltt.commands.train", "main", "train an encoder, or resume a run"),
    "evaluate": Command("cltt.evaluation.__main__", "main", "evaluate the encoders of a run on labelled images"),
    "export": Command("cltt.export.__main__", "main", "write a trained encoder for other programs"),
    "curves": Command("cltt.visualize.__main__", "curves", "draw the curves of one or more runs"),
    "prune": Command("cltt.commands.prune", "main", "remove old sets of shards that no run needs"),
    "doctor": Command("cltt.doctor", "main", "check this machine and its packages"),
    "demo": Command("cltt.demo.__main__", "main", "render clips, build shards, train, and compare before and after"),
}


def usage() -> str:
    lines = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: cltt COMMAND [FLAGS]   (cltt COMMAND --help lists its flags; cltt --version)", "", *lines]
    )


def main() -> int:
    """Hand the rest of the command line to the command that its first word names."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"cltt {cltt.__version__}")
        return 0
    if name not in COMMANDS:
        raise errors.SettingsError(f"there is no command {name!r}; it must be one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    face: Callable[[list[str], str], int] = getattr(importlib.import_module(command.module), command.function)
    return face(argv, f"cltt {name}")


def console() -> None:
    """The console script."""
    name = sys.argv[1] if sys.argv[1:] and sys.argv[1] in COMMANDS else ""
    cli.run(main, f"cltt {name}".strip())


if __name__ == "__main__":
    console()
