"""Building and reading shards, against the programs one would use instead.

    python -m benchmarks.build [--quick]

Frames are the real ones beside the repository, copied until there are 10,000 (drawn ones where there are none), in
a fresh folder, warm in the page cache. Every peer runs in the same rounds; whatever writes also flushes to disk.
``results/build.csv`` holds one row a figure: the time or rate of both sides, their ratio round by round, and the bound.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import webdataset

from benchmarks import harness
from cltt import ShardDataset, build_shards
from cltt.files import npy
from cltt.shards import layout
from tests.helpers import data

FRAMES, QUICK_FRAMES = 10_000, 5_000
SHARD_SIZE = 16 << 20
WORKERS = 2
DELAY_MICROSECONDS = 2000
HERE = Path(__file__).parent


# ---- the frames


def make_source(root: Path, frames: int) -> Path:
    """At least ``frames`` frames in clip folders; copies, not links: tar would store a link as a few bytes."""
    source = data.SHARED / "real"
    if not source.is_dir():
        return data.make_clips(root, {f"drawn/{k}": 200 for k in range(-(-frames // 200))}, height=256, width=340)
    clips = [folder for folder in sorted(source.rglob("*")) if folder.is_dir()]
    for turn in range(-(-frames // sum(len(frames_of(clip)) for clip in clips))):
        for clip in clips:
            target = root / f"copy_{turn}" / clip.relative_to(source)
            target.mkdir(parents=True, exist_ok=True)
            for frame in frames_of(clip):
                shutil.copy(frame, target / frame.name)
    return root


def frames_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == ".jpg" and not p.name.startswith("."))


class Scratch:
    """A new path for every run; what the runs leave is removed after the last, when no clock runs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0

    def new(self) -> Path:
        self._number += 1
        return self._folder / f"run_{self._number}"

    def clear(self) -> None:
        for path in self._folder.glob("run_*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


# ---- the peers


def run_tar(root: Path, out: Path) -> None:
    subprocess.run(["tar", "cf", out, "-C", root, "."], check=True)
    flush(out)


def run_webdataset(root: Path, out: Path) -> None:
    out.mkdir()
    with webdataset.ShardWriter(str(out / "shard-%06d.tar"), maxsize=SHARD_SIZE, verbose=0) as sink:
        for folder in sorted(path for path in root.rglob("*") if path.is_dir()):
            for frame in frames_of(folder):
                key = str(frame.relative_to(root).with_suffix("")).replace(".", "_")
                sink.write({"__key__": key, "jpg": frame.read_bytes()})
    for shard in out.glob("*.tar"):
        flush(shard)


def in_two_threads(work: Callable[[bytes], object], pieces: list[bytes]) -> None:
    """A bare loop over ``pieces``, half of them in each of two threads."""
    halves = [pieces[0::2], pieces[1::2]]
    threads = [threading.Thread(target=lambda half=half: [work(piece) for piece in half]) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def decode(frame: bytes) -> np.ndarray[Any, Any]:
    return simplejpeg.decode_jpeg(frame)


def decode_resize_encode(frame: bytes) -> bytes:
    pixels = decode(frame)
    scale = 256 / min(pixels.shape[:2])
    if scale < 1:
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB", colorsubsampling="420")


# ---- figures


def row(
    what: str,
    ours: harness.Timing,
    peer: harness.Timing,
    frames: int,
    bound: str,
    reached: Callable[[float], bool] | None,
) -> harness.Row:
    """One figure against a peer: the ratio is our time over the peer's, round by round."""
    ratio = harness.ratio(ours, peer)
    return {
        "what": what,
        "frames": frames,
        "ours_frames_per_s": frames / ours.median,
        "peer": peer.name,
        "peer_frames_per_s": frames / peer.median,
        "time_ratio": ratio.median,
        "ratio_p20": ratio.p20,
        "ratio_p80": ratio.p80,
        "rounds": len(ratio.seconds),
        "bound": bound,
        "reached": "" if reached is None else "yes" if reached(ratio.median) else "no",
    }


def plain(what: str, value: float, unit: str, bound: str, reached: bool) -> harness.Row:
    """One figure with a bound of its own."""
    return {"what": what, "value": value, "unit": unit, "bound": bound, "reached": "yes" if reached else "no"}


def copying(root: Path, scratch: Scratch, frames: int, rounds: int) -> list[harness.Row]:
    def ours() -> None:
        build_shards(root, scratch.new(), workers=WORKERS, verify="header", shard_size=SHARD_SIZE)

    calls = {
        "cltt": ours,
        "tar cf": lambda: run_tar(root, scratch.new()),
        "webdataset.ShardWriter": lambda: run_webdataset(root, scratch.new()),
    }
    timings = timed(calls, scratch, rounds)
    return [
        row("copy, header check", timings["cltt"], timings["tar cf"], frames, "<= 1.2", lambda r: r <= 1.2),
        row(
            "copy, header check",
            timings["cltt"],
            timings["webdataset.ShardWriter"],
            frames,
            "<= 1/1.8",
            lambda r: r <= 1 / 1.8,
        ),
    ]


def verifying(root: Path, scratch: Scratch, contents: list[bytes], rounds: int) -> list[harness.Row]:
    calls = {
        "cltt": lambda: build_shards(root, scratch.new(), workers=WORKERS, verify="decode", shard_size=SHARD_SIZE),
        "libjpeg-turbo, full size, 2 threads, from memory": lambda: in_two_threads(decode, contents),
    }
    ours, peer = timed(calls, scratch, rounds).values()
    return [row("every bit verified", ours, peer, len(contents), "<= 1/0.7", lambda r: r <= 1 / 0.7)]


def resizing(root: Path, scratch: Scratch, contents: list[bytes], rounds: int) -> list[harness.Row]:
    def ours() -> None:
        build_shards(root, scratch.new(), workers=WORKERS, resize_short=256, shard_size=SHARD_SIZE)

    name = "decode, resize, encode, 2 threads, from memory"
    timings = timed({"cltt": ours, name: lambda: in_two_threads(decode_resize_encode, contents)}, scratch, rounds)
    return [row("resized to 256", timings["cltt"], timings[name], len(contents), "<= 1/0.7", lambda r: r <= 1 / 0.7)]


def timed(calls: dict[str, Callable[[], None]], scratch: Scratch, rounds: int) -> dict[str, harness.Timing]:
    try:
        return harness.time_interleaved(calls, rounds=rounds, warmup=0)  # its first, untimed sample warms up
    finally:
        scratch.clear()


def slow_file_system(root: Path, folder: Path, frames: int) -> list[harness.Row]:
    """The whole command, start to end, on a folder whose every open and stat takes 2 ms longer (slow_files.c)."""
    library = folder / "slow_files.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", HERE / "slow_files.c", "-o", library, "-ldl"], check=True)
    environ = {"LD_PRELOAD": str(library), "SLOW_PREFIX": str(folder), "SLOW_MICROSECONDS": str(DELAY_MICROSECONDS)}
    seconds = []
    for verify in ("header", "decode"):
        command = [sys.executable, "tools/build_shards.py", "--root-dir", root, "--out", folder / f"slow_{verify}"]
        command += ["--workers", str(WORKERS), "--shard-size", str(SHARD_SIZE), "--verify", verify]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=harness.ROOT, env={**os.environ, **environ}, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
        shutil.rmtree(folder / f"slow_{verify}")
    rates = {"header check": frames / seconds[0], "every bit verified": frames / seconds[1]}
    return [
        plain(f"2 ms on every open and stat, {how}", rate, "frames/s", ">= 3000", rate >= 3000)
        for how, rate in rates.items()
    ]


def builder_memory(frames: int) -> list[harness.Row]:
    """Peak memory of the builder and of its largest worker, on ``frames`` links to one small frame (in memory)."""
    shared_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as name:
        folder = Path(name)
        picture = data.make_clips(folder / "one", {"c": 1}, height=8, width=8) / "c" / "frame_000000.jpg"
        for number in range(frames):
            clip = folder / "root" / f"clip_{number // 1000:06d}"
            if number % 1000 == 0:
                clip.mkdir(parents=True)
            os.link(picture, clip / f"frame_{number:09d}.jpg")
        command = [
            sys.executable,
            "tools/build_shards.py",
            "--root-dir",
            str(folder / "root"),
            "--out",
            str(folder / "out"),
        ]
        command += ["--workers", str(WORKERS), "--verify", "header", "--shard-size", str(64 << 20)]
        process = subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.DEVNULL)
        peak = [0] * (WORKERS + 1)
        while process.poll() is None:
            peak = [max(pair) for pair in zip(peak, resident(process.pid), strict=True)]
            time.sleep(0.02)
        assert process.returncode == 0
    total = sum(peak) / 1e6
    return [plain(f"memory of builder and {WORKERS} workers, {frames:,} frames", total, "MB", "< 600", total < 600)]


def resident(pid: int) -> list[int]:
    """Peak resident bytes of a process and of each of its children so far (0 for those that are not there)."""
    try:
        children = [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return ([_high_water(pid), *map(_high_water, children)] + [0] * WORKERS)[: WORKERS + 1]


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


# ---- opening and reading


def make_large_index(folder: Path, frames: int, clips: int) -> None:
    """An index of ``frames`` frames; frames.npy is a hole on disk, as nothing reads all of it."""
    build_shards(data.make_clips(folder / "root", {"a": 1}), folder / "large", workers=1)
    large = folder / "large"
    with (large / layout.FRAMES).open("wb") as file:
        writer = npy.NpyWriter(file, layout.FRAME_DTYPE)
        writer.rows = frames
        file.seek(0, os.SEEK_END)
        writer.close()
        file.truncate(file.tell() + frames * layout.FRAME_DTYPE.itemsize)
    rows = np.zeros((layout.CLIP_ROWS, clips), np.int64)
    rows[[layout.CLIP_LABEL, layout.CLIP_SPLIT]] = -1
    rows[layout.CLIP_LENGTH] = frames // clips
    rows[layout.CLIP_FIRST] = np.cumsum(rows[layout.CLIP_LENGTH]) - rows[layout.CLIP_LENGTH]
    rows[layout.CLIP_KEY] = np.arange(clips)
    np.save(large / layout.CLIPS, rows)
    (large / layout.KEYS).write_bytes(b"".join(b"clip_%07d" % k for k in range(clips)))
    np.save(large / layout.KEY_OFFSETS, np.arange(clips + 1, dtype=np.int64) * 12)
    index = json.loads((large / layout.INDEX).read_text())
    shard = index["shards"][0]
    index["shards"] = [{**shard, "name": layout.shard_name(number)} for number in range(2000)]
    index["counts"].update(frames=frames, clips=clips, bytes=2000 * shard["size"])
    for name in layout.INDEX_FILES:
        index["files"][name]["size"] = (large / name).stat().st_size
    (large / layout.INDEX).write_text(json.dumps(index))


def opening(path: str) -> Callable[[], object]:
    """For harness.peak_memory: open the shards at ``path`` and take the clip lengths."""
    return lambda: ShardDataset(path).clip_lengths.sum()


def large_index(folder: Path, frames: int) -> list[harness.Row]:
    make_large_index(folder, frames, clips=frames // 100)
    path = str(folder / "large")
    growth = harness.peak_memory("benchmarks.build:opening", path) / 1e6
    timing = harness.time_interleaved({"open": opening(path)}, rounds=7)["open"]
    return [
        plain(f"open {frames:,} frames, clip_lengths included", timing.median, "s", "< 0.1", timing.median < 0.1),
        plain(f"memory growth of opening {frames:,} frames", growth, "MB", "< 50", growth < 50),
    ]


def reading(root: Path, folder: Path, rounds: int) -> list[harness.Row]:
    build_shards(root, folder / "read", workers=WORKERS, verify="header", shard_size=SHARD_SIZE)
    dataset = ShardDataset(folder / "read")
    ids = np.random.default_rng(0).integers(0, dataset.num_frames, 10_000)
    records = dataset.frame_records(ids)
    handles = [os.open(shard, os.O_RDONLY) for shard in sorted((folder / "read").glob("shard-*.tar"))]
    places = list(zip(*(records[name].tolist() for name in ("shard", "size", "offset")), strict=True))

    def bare() -> list[bytes]:
        return [os.pread(handles[shard], size, offset) for shard, size, offset in places]

    def one_by_one() -> list[bytes]:
        return [dataset.read(ids[start : start + 256]) for start in range(0, len(ids), 256)]  # type: ignore[misc]

    calls = {"cltt": lambda: dataset.read(ids), "cltt, 256 a call": one_by_one, "bare pread loop": bare}
    timings = harness.time_interleaved(calls, rounds=rounds)
    for handle in handles:
        os.close(handle)
    peer = timings["bare pread loop"]
    return [
        row("read 10,000 random frames", timings["cltt"], peer, 10_000, "<= 2", lambda r: r <= 2),
        row("the same, 256 a call", timings["cltt, 256 a call"], peer, 10_000, "", None),
    ]


def sections(folder: Path, quick: bool) -> Iterator[list[harness.Row]]:
    """All figures, group by group."""
    root = make_source(folder / "root", QUICK_FRAMES if quick else FRAMES)
    contents = [frame.read_bytes() for clip in sorted(root.rglob("*")) if clip.is_dir() for frame in frames_of(clip)]
    scratch = Scratch(folder)
    yield copying(root, scratch, len(contents), 3 if quick else 7)
    yield verifying(root, scratch, contents, 2 if quick else 5)
    yield resizing(root, scratch, contents, 1 if quick else 2)
    yield reading(root, folder, 7)
    yield slow_file_system(root, folder, len(contents))
    yield large_index(folder, 1_000_000 if quick else 100_000_000)
    yield builder_memory(20_000 if quick else 1_000_000)


def main() -> None:
    args = harness.parser("build", "Build, verify, open and read shards.").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for group in sections(Path(folder), args.quick):
            harness.print_table(group)
            rows += group
    print(f"wrote {harness.write_csv('build', rows)}")


if __name__ == "__main__":
    main()
