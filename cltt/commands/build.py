"""The commands ``cltt build`` and ``cltt verify``, which are also ``tools/build_shards.py [verify]``."""

from __future__ import annotations

import dataclasses
import time

from cltt.cli import Parser, add_settings, settings_from
from cltt.config import WindowSettings, require_within
from cltt.files.retry import IO_PATIENCE
from cltt.packing.builder import MAX_WORKERS, build_shards
from cltt.packing.labels import check_rules
from cltt.packing.report import BuildReport
from cltt.packing.settings import BuildSettings
from cltt.sampling.windows import WindowIndex
from cltt.shards.verify import verify_shards
from cltt.source.videos import BY_PACKETS
from cltt.text import counted, printable, shorten

CORRUPT = 1
# How each program calls the verifier.
VERIFY = {"build_shards.py": "build_shards.py verify", "cltt build": "cltt verify"}


def build_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=f"Build shards; `{VERIFY[prog]} --help`: verify them.")
    parser.add_argument(
        "--root-dir", required=True, help="folder of clip folders, one image file per frame, and of videos"
    )
    parser.add_argument("--out", required=True, help="folder of the shards to build")
    parser.add_argument("--workers", type=int, help="packing processes (default: the cores at hand)")
    add_settings(parser, BuildSettings)
    parser.add_argument(
        "--io-patience", type=float, default=IO_PATIENCE, help="seconds to retry reads that fail for a while"
    )
    parser.add_argument("--task", metavar="I/N", help="build part I (from 0) of N only, as a task of a job array")
    parser.add_argument("--finalize", action="store_true", help="merge and publish the parts that the tasks have built")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier build in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the window counts; write nothing")
    windows = parser.add_argument_group(
        "windows", "only for the counts of --dry-run: shards serve windows of any size and step"
    )
    add_settings(windows, WindowSettings)
    return parser


def verify_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Check sizes, hashes and every CRC; exit 1 if damaged.")
    parser.add_argument("shards", help="folder of built shards")
    parser.add_argument("--decode", action="store_true", help="also read every bit of every frame")
    parser.add_argument("--source", metavar="DIR", help="also compare every frame with the file it was made from")
    parser.add_argument("--workers", type=int, help="threads (default: the cores at hand)")
    return parser


def summary(report: BuildReport, what: str, seconds: float) -> str:
    lines = [f"{what} {report.path}: {report} ({seconds:.1f} s)"]
    if report.already_complete:
        lines = [
            f"{report.path}: already complete ({report}), and the source was not compared: "
            f"`cltt verify {report.path} --source DIR` compares it, --overwrite builds again"
        ]
    lines += [f"  skipped {count:,}: {reason}" for reason, count in report.skipped.items()]
    lines += [f"  read {counted(n, 'video')} {way}" for way, n in report.read.items() if way != BY_PACKETS]
    if report.reencoded:
        lines.append(f"  re-encoded {report.reencoded:,} (see report.json)")
    if report.cut[0]:
        lines.append(f"  cut {counted(report.cut[0], 'clip')} into {report.cut[1]:,} parts, at invalid frames or gaps")
    if report.boxes is not None:
        fit = f"; {counted(report.boxes[1], 'row')} of the table fit no frame" if report.boxes[1] else ""
        lines.append(f"  boxes for {counted(report.boxes[0], 'frame')}{fit}")
    lines += _group_counts(report)
    return "\n".join(lines + [f"  odd: {line}" for line in report.odd])


def _group_counts(report: BuildReport) -> list[str]:
    """Lines with the number of clips per split and per label, and a warning for each split without clips."""
    lines = []
    if report.splits:
        lines.append("  splits: " + ", ".join(f"{name} {counted(n, 'clip')}" for name, n in report.splits.items()))
        lines += [f"  warning: split {name!r} has no clips" for name, n in report.splits.items() if n == 0]
    if report.labels:
        names = shorten(", ".join(map(printable, report.labels)), 80)
        sizes, without = report.labels.values(), report.clips - sum(report.labels.values())
        lines.append(
            f"  labels: {len(sizes):,} ({names}), the smallest of {counted(min(sizes), 'clip')}, the largest of "
            f"{max(sizes):,}" + (f"; {counted(without, 'clip')} without" if without else "")
        )
    return lines


def _window_counts(report: BuildReport, settings: WindowSettings) -> str:
    index = WindowIndex(report.clip_lengths, **dataclasses.asdict(settings))
    short = int((report.clip_lengths < settings.span).sum())
    return (
        f"  {counted(len(index), 'window')} (span {settings.span} frames); "
        f"too short for one: {counted(short, 'clip')}\n"
        "  invalid frames, which are found when they are packed, lower these counts and cut their clips"
    )


def build(argv: list[str], prog: str = "cltt build") -> int:
    """Build shards, or a part of them, and print what was built and what was left out; returns the exit status."""
    args = build_parser(prog).parse_args(argv)
    start = time.perf_counter()
    own = {name: getattr(args, name) for name in ("workers", "io_patience", "task", "finalize", "overwrite", "dry_run")}
    report = build_shards(args.root_dir, args.out, **own, **dataclasses.asdict(settings_from(args, BuildSettings)))
    what = "plan of" if args.dry_run else f"task {args.task} of" if args.task else "built"
    print(summary(report, what, time.perf_counter() - start))
    if args.dry_run:
        print(_window_counts(report, settings_from(args, WindowSettings)))
    return 0


def check(argv: list[str], prog: str = "build_shards.py") -> None:
    """Raise an error, or exit with one, for flags that :func:`build` would refuse before it reads a frame."""
    args = build_parser(prog).parse_args(argv)
    settings = settings_from(args, BuildSettings)
    check_rules(dataclasses.asdict(settings))


def verify(argv: list[str], prog: str = "cltt verify") -> int:
    """Print all damage in a set of shards; returns the exit status, 1 if there is any."""
    args = verify_parser(prog).parse_args(argv)
    if args.workers is not None:
        require_within("workers", args.workers, 1, MAX_WORKERS)
    mismatches = verify_shards(args.shards, decode=args.decode, source_dir=args.source, workers=args.workers)
    for mismatch in mismatches:
        print(printable(str(mismatch).encode(errors="surrogateescape").decode(errors="backslashreplace")))
    print(f"{args.shards}: {f'{len(mismatches):,} damaged' if mismatches else 'whole'}")
    return CORRUPT if mismatches else 0
