"""``cltt COMMAND``: one command beside the scripts, each a face of its own that is imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import NamedTuple

from cltt import cli, errors


class Command(NamedTuple):
    """Where a command lives, and what it is for."""

    module: str
    function: str
    help: str


COMMANDS = {
    "build": Command("cltt.commands.build", "build", "pack clip folders into shards (tools/build_shards.py)"),
    "verify": Command("cltt.commands.build", "verify", "check a set of shards (tools/build_shards.py verify)"),
    "inspect": Command("cltt.visualize.inspect", "main", "look at what the network will see (inspect_windows.py)"),
    "train": Command("cltt.commands.train", "main", "train an encoder, or go on with a run (train.py)"),
    "evaluate": Command("cltt.evaluation.__main__", "main", "how good the encoders of a run are"),
    "export": Command("cltt.export.__main__", "main", "write a trained encoder for other programs"),
    "curves": Command("cltt.visualize.__main__", "curves", "draw runs over each other"),
    "prune": Command("cltt.commands.prune", "main", "remove old sets of shards that no run needs"),
    "doctor": Command("cltt.doctor", "main", "what this machine can do, and what to do about it"),
    "demo": Command("cltt.demo.__main__", "main", "the whole road on clips that it renders"),
}


def usage() -> str:
    lines = [f"  {name:<10}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: cltt COMMAND [FLAGS]   (cltt COMMAND --help lists its flags)", "", *lines])


def main() -> int:
    """Hand the rest of the command line to the command that its first word names."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
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
