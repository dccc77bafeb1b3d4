#!/usr/bin/env python3
"""Build shards from clip folders, or verify them.

python tools/build_shards.py --root-dir DIR --out shards/NAME
python tools/build_shards.py verify shards/NAME [--decode] [--source DIR]
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    from cltt.commands.build import build, verify

    argv = sys.argv[1:]
    return verify(argv[1:], "build_shards.py verify") if argv[:1] == ["verify"] else build(argv, "build_shards.py")


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # for a Python in which cltt is not installed
    from cltt.start import require_packages

    require_packages("build_shards.py")
    from cltt.cli import run

    run(main, "build_shards.py")
