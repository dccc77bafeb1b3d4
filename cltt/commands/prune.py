"""The command ``cltt prune``."""

from __future__ import annotations

from pathlib import Path

from cltt.cli import Parser
from cltt.files import node_files
from cltt.sets.locate import SHARDS_HOME
from cltt.sets.prune import chosen, list_sets, remove_sets
from cltt.text import byte_size


def main(argv: list[str] | None = None, prog: str = "cltt prune") -> int:
    """List sets of shards that were built on first use, and frames that a killed run left on this machine.

    With ``--remove``, remove those that no run needs. Returns the exit status.
    """
    parser = Parser(prog=prog, description="Remove sets of shards that a newer one has replaced and no run needs.")
    parser.add_argument(
        "names", nargs="*", default=(), metavar="NAME", help="sets to remove, also if unfinished runs need them"
    )
    parser.add_argument("--remove", action="store_true", help="remove the sets; without it they are only listed")
    parser.add_argument("--home", type=Path, default=SHARDS_HOME, help="folder of the sets")
    parser.add_argument(
        "--keep-dir", type=Path, default=node_files.MEMORY, help="folder of decoded frames that runs keep"
    )
    args = parser.parse_args(argv)
    sets = list_sets(args.home)
    picked = chosen(sets, args.names) if args.names else [kept for kept in sets if not kept.needed]
    for kept in sets:
        stays = f"stays: {kept.needed}" if kept not in picked else "is removed" if args.remove else "can go: --remove"
        print(f"{kept.path}  {kept.frames:,} frames  {byte_size(kept.bytes)}  {stays}")
    removed = list(remove_sets(picked)) if args.remove else []
    if args.remove:
        print(f"removed {len(removed)} of {len(sets)}, {byte_size(sum(kept.bytes for kept in removed))}")
    for path in node_files.unused(args.keep_dir):
        size = path.stat().st_blocks * 512
        removed_it = args.remove and not args.names and node_files.remove_unused(path)
        print(f"{path}  decoded frames  {byte_size(size)}  {'is removed' if removed_it else 'can go: --remove'}")
    return 0
