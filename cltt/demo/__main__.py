"""The command ``cltt demo``, which is also ``python -m cltt.demo`` and ``make demo``."""

from __future__ import annotations

from cltt.cli import Parser, add_settings, run, settings_from
from cltt.demo.settings import DemoSettings


def main(argv: list[str] | None = None, prog: str = "python -m cltt.demo") -> int:
    """Run the demo; returns the exit status."""
    parser = Parser(prog=prog, description="Clips to shards to a trained encoder, without data.")
    add_settings(parser, DemoSettings)
    settings = settings_from(parser.parse_args(argv), DemoSettings)
    from cltt.demo.pipeline import gains, run_demo  # torch takes seconds to import: --help need not wait

    results = run_demo(settings, prog)
    made = "windows.png, loss.png, accuracy.png, metrics.csv"
    print(f"{settings.out}: {made}; test accuracy (every fourth frame) before -> after training: {gains(results)}")
    print(
        "next: cltt train --root-dir DIR --csv-log, with DIR a folder of folders of frames; or of videos, with --fps 5"
    )
    return 0


if __name__ == "__main__":
    run(main, "python -m cltt.demo")
