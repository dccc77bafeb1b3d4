#!/usr/bin/env python3
"""Build shards from clip folders, or verify them.

python tools/build_shards.py --root-dir DIR --out shards/NAME
python tools/build_shards.py verify shards/NAME [--decode] [--source DIR]
"""

from __future__ import annotations

import sys

from cltt.cli import run
from cltt.commands.build import build, verify


def main() -> int:
    argv = sys.argv[1:]
    return verify(argv[1:], "build_shards.py verify") if argv[:1] == ["verify"] else build(argv, "build_shards.py")


if __name__ == "__main__":
    run(main, "build_shards.py")
