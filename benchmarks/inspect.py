"""How long a person waits for a picture: ``inspect_windows.py`` on an index of ten million frames.

``python -m benchmarks.inspect [--quick]`` writes inspect.csv. Every time is the wall time of a fresh process that
starts Python and matplotlib; the mark beside it is a process that only imports what any such picture needs. The
index is real in every row but the frames: its rows point at the few hundred frames that are packed, over and over.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from cltt import build_shards, cli
from cltt.shards import checks, layout
from tests.helpers import data

FRAMES, CLIP_LENGTH = 10_000_000, 250
PACKED_CLIPS = 2
TARGET_SECONDS = 2.5
BARE = "import numpy, cv2, simplejpeg, tqdm, matplotlib.figure, matplotlib.backends.backend_agg, PIL.Image"


def large_shards(folder: Path, frames: int) -> Path:
    """Shards whose index has ``frames`` rows in clips of CLIP_LENGTH; few are packed, all can be read."""
    lengths = {f"clip_{number}": CLIP_LENGTH for number in range(PACKED_CLIPS)}
    root = data.make_clips(folder / "frames", lengths, height=256, width=340)
    out = folder / "shards"
    build_shards(root, out, workers=1)
    packed = np.load(out / layout.FRAMES)
    np.save(out / layout.FRAMES, np.tile(packed, frames // len(packed)))
    clips = frames // CLIP_LENGTH
    np.save(out / layout.CLIPS, clip_rows(clips))
    keys = [f"session/clip_{clip:06d}".encode() for clip in range(clips)]
    (out / layout.KEYS).write_bytes(b"".join(keys))
    np.save(out / layout.KEY_OFFSETS, np.cumsum([0, *map(len, keys)]))
    publish_index(out, frames, clips)
    return out


def clip_rows(clips: int) -> np.ndarray:
    rows = np.zeros((layout.CLIP_ROWS, clips), np.int64)
    rows[layout.CLIP_FIRST] = np.arange(clips) * CLIP_LENGTH
    rows[layout.CLIP_LENGTH] = CLIP_LENGTH
    rows[layout.CLIP_KEY] = np.arange(clips)
    rows[[layout.CLIP_LABEL, layout.CLIP_SPLIT]] = -1
    return rows


def publish_index(out: Path, frames: int, clips: int) -> None:
    """Bring counts and sizes in ``index.json`` up to what the files now hold."""
    index = checks.read_index(out)
    index["counts"].update(frames=frames, clips=clips)
    for name in layout.INDEX_FILES:
        index["files"][name]["size"] = (out / name).stat().st_size
    (out / layout.INDEX).write_text(json.dumps(index))


def look(shards: Path, *argv: str) -> None:
    """Run the script as a person does; its picture goes beside the shards."""
    picture = ["--save-path", str(shards.parent / "picture.png")]
    script = [sys.executable, "inspect_windows.py", "--shards", str(shards), *picture, *argv]
    subprocess.run(script, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def imports_alone() -> None:
    subprocess.run([sys.executable, "-c", BARE], check=True)


def commands(shards: Path) -> dict[str, Callable[[], Any]]:
    batch = ("--mode", "batch", "--batch-size", "8", "--batch-sampling")
    return {
        "imports alone": imports_alone,
        "sample": partial(look, shards, "--sample-idx", str(FRAMES // 3)),
        "batch contiguous": partial(look, shards, *batch, "contiguous", "--batch-idx", "1000"),
        "batch random": partial(look, shards, *batch, "random"),
        "batch plan": partial(look, shards, *batch, "plan", "--epoch", "3", "--step", "12345"),
    }


def stats_row(shards: Path) -> dict[str, Any]:
    """Every frame's record is looked at, so once is enough."""
    start = time.perf_counter()
    look(shards, "--mode", "stats")
    seconds = time.perf_counter() - start
    return {"case": "stats", "frames": FRAMES, "median": seconds, "p20": seconds, "p80": seconds, "rounds": 1}


def main() -> int:
    args = harness.parser("inspect", "Time inspect_windows.py on an index of ten million frames.").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = large_shards(Path(folder), FRAMES)
        timings = harness.time_interleaved(commands(shards), rounds=3 if args.quick else 7, min_seconds=0)
        rows = [{"case": name, "frames": FRAMES, **timing.columns()} for name, timing in timings.items()]
        rows.append(stats_row(shards))
    harness.write_csv("inspect", rows)
    harness.print_table(rows, f"Seconds from command to picture (a sample in under {TARGET_SECONDS} s)")
    return 0


if __name__ == "__main__":
    cli.run(main, "benchmarks.inspect")
