"""The process that tries inputs: one line before each, one behind it, so that its death names the input."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

import numpy as np

TELLS_AFTER = 45.0  # seconds until it is said where an input hangs
MEMORY = 3 << 30  # bytes that an input may take beside what the libraries hold
LARGEST_FILE = 200 << 30  # sparse ones are made


def kinds(folder: Path) -> dict[str, object]:
    """One of each kind, in a folder of its own."""
    from tests.fuzz import archives, checkpoints, flags, pictures, shard_sets, tables, trees

    made = {
        "pictures": pictures.Pictures,
        "shard sets": shard_sets.ShardSets,
        "trees": trees.Trees,
        "checkpoints": checkpoints.Checkpoints,
        "tables": tables.Tables,
        "archives": archives.Archives,
        "flags": flags.Flags,
    }
    found: dict[str, object] = {}
    for name, kind in made.items():
        place = folder / name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        found[name] = kind(place)
    return found


def limit_memory() -> None:
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))


def main() -> None:
    """Try the inputs named on standard input, a JSON line [kind, number] each; answers are JSON lines too."""
    folder, seed, out = Path(sys.argv[1]), int(sys.argv[2]), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints
    found = kinds(folder)
    limit_memory()
    print(json.dumps({"ready": sorted(found)}), file=out)
    for line in sys.stdin:
        name, number = json.loads(line)
        rng = np.random.default_rng([seed, sorted(found).index(name), number])
        start = time.perf_counter()
        faulthandler.dump_traceback_later(TELLS_AFTER, exit=False)
        try:
            answer = {"outcome": found[name].case(rng)}  # type: ignore[attr-defined]
        except BaseException as error:
            answer = {"broken": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps({**answer, "seconds": time.perf_counter() - start}), file=out)


if __name__ == "__main__":
    main()
