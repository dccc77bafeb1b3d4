"""Check the flags of tools/build_shards.py before a job array is submitted.

python slurm/check_build.py --root-dir ROOT --out OUT [FLAG...]
"""

from __future__ import annotations

import sys

from cltt import cli
from cltt.commands.build import check

if __name__ == "__main__":
    cli.run(lambda: check(sys.argv[1:]), prog="build_shards.py")
