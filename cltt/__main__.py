"""``cltt COMMAND``: one command beside the scripts, each a face of its own that is imported when it is asked for."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable

import cltt
from cltt.start import require_packages

require_packages("cltt")

from cltt import cli, errors  # noqa: E402

# Where each command's face is, and what the command is for.
COMMANDS = {
    "build": ("cltt.commands.build:build", "build shards from folders of frames or videos"),
    "verify": ("cltt.commands.build:verify", "check a set of shards"),
    "inspect": ("cltt.visualize.inspect:main", "draw windows, batches and statistics, or write a gallery"),
    "train": ("cltt.commands.train:main", "train an encoder, or resume a run"),
    "evaluate": ("cltt.evaluation.__main__:main", "evaluate the encoders of a run on labelled images"),
    "export": ("cltt.export.__main__:main", "write a trained encoder for other programs"),
    "curves": ("cltt.visualize.__main__:curves", "draw the curves of one or more runs"),
    "prune": ("cltt.commands.prune:main", "remove old sets of shards that no run needs"),
    "doctor": ("cltt.doctor:main", "check this machine and its packages"),
    "demo": ("cltt.demo.__main__:main", "render clips, build shards, train, and compare before and after"),
}


def usage() -> str:
    lines = [f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
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
    face: Callable[[list[str], str], int] = pkgutil.resolve_name(COMMANDS[name][0])
    return face(argv, f"cltt {name}")


def console() -> None:
    """The console script."""
    name = sys.argv[1] if sys.argv[1:] and sys.argv[1] in COMMANDS else ""
    cli.run(main, f"cltt {name}".strip())


if __name__ == "__main__":
    console()
