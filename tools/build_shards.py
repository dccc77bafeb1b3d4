#!/usr/bin/env python3
"""Build shards from clip folders, or verify them.

python tools/build_shards.py --root-dir DIR --out shards/NAME
python tools/build_shards.py verify shards/NAME [--decode] [--source DIR]
"""

from __future__ import annotations

import dataclasses
import sys

from cltt.cli import Parser, add_settings, run, settings_from
from cltt.config import BuildSettings
from cltt.indexer import BuildReport, build_shards


def build_parser() -> Parser:
    parser = Parser(prog="build_shards.py", description=__doc__)
    parser.add_argument("--root-dir", required=True, help="folder of clip folders, one image file a frame")
    parser.add_argument("--out", required=True, help="folder of the shards to build")
    parser.add_argument("--workers", type=int, help="packing processes (default: the cores at hand)")
    add_settings(parser, BuildSettings)
    parser.add_argument("--task", metavar="I/N", help="build part I (from 0) of N only, as a task of a job array")
    parser.add_argument("--finalize", action="store_true", help="merge and publish what the tasks have built")
    parser.add_argument("--overwrite", action="store_true", help="replace what lies in OUT from an earlier build")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the window counts; write nothing")
    return parser


def summary(report: BuildReport) -> str:
    return str(report)


def main() -> int:
    args = build_parser().parse_args()
    settings = dataclasses.asdict(settings_from(args, BuildSettings))
    report = build_shards(
        args.root_dir,
        args.out,
        workers=args.workers,
        task=args.task,
        finalize=args.finalize,
        overwrite=args.overwrite,
        dry_run=args.dry_run,
        **settings,
    )
    print(summary(report))
    return 0


if __name__ == "__main__":
    sys.exit(run(main, "build_shards.py"))
