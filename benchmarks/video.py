"""Shards straight from videos, against what people do today: ffmpeg writes JPEGs, tar packs them.

    python -m benchmarks.video [--quick]

Four H.264 videos of 720 lines are made from the real frames beside the repository (drawn ones where there are none),
with a key frame every two seconds and B-frames. Both sides take two processes and shrink to 256 lines, once at five
frames a second and once all frames: ours is the whole command ``build_shards.py --workers 2``, theirs two ``ffmpeg
-threads 1``, each with one video at a time, and one ``tar``. Their quality is the one that gives files of our size
to a tenth. Both end flushed. The memory is that of the largest process at 1080 lines. Needs ffmpeg.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks import harness
from benchmarks.build import Scratch, flush, frames_of, plain, resident, row, timed
from tests.helpers import data, video

VIDEOS, FRAMES, QUICK_FRAMES = 4, 600, 150
RATE, GOP = 30, 60
SHORT = 256
SHARD_SIZE = 8 << 20  # a few shards for each of two workers
WORKERS = 2
BOUND = 1.25
QUALITIES = range(2, 9)  # ffmpeg's -q:v


# ---- the videos


class Film:
    """Pictures of any size that move as a head does: a window drifts over real frames, each shown for a while."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self._size = width, height
        self._scenes = [cv2.resize(scene, (width * 5 // 4, height * 5 // 4)) for scene in _scenes(seed)]
        self._random = np.random.default_rng(seed)

    def __call__(self, number: int) -> np.ndarray:
        width, height = self._size
        scene = self._scenes[number // 90 % len(self._scenes)]
        left = int((0.5 + 0.5 * np.sin(number / 17)) * (scene.shape[1] - width))
        top = int((0.5 + 0.5 * np.cos(number / 23)) * (scene.shape[0] - height))
        seen = scene[top : top + height, left : left + width]
        grain = self._random.integers(-4, 5, (height, width, 1), np.int16)  # a camera's: it costs bits
        return np.clip(seen + grain, 0, 255).astype(np.uint8)


def _scenes(seed: int) -> list[np.ndarray]:
    real = data.SHARED / "real"
    if not real.is_dir():
        return [data.frame_image(seed, 40 * k, 480, 640) for k in range(8)]
    files = [file for folder in sorted(real.rglob("*")) if folder.is_dir() for file in frames_of(folder)]
    picked = np.random.default_rng(seed).choice(len(files), 8, replace=False)
    return [np.ascontiguousarray(cv2.imread(str(files[k]))[:, :, ::-1]) for k in picked]


def make_videos(root: Path, count: int, frames: int, width: int, height: int) -> Path:
    for seed in range(count):
        film = Film(width, height, seed)
        options = {"preset": "veryfast", "crf": "23", "bf": "2"}
        video.write_video(root / f"video_{seed}.mp4", frames, rate=RATE, gop=GOP, options=options, draw=film)
    return root


# ---- both sides


def ours(root: Path, out: Path, fps: int | None) -> None:
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(out)]
    command += ["--workers", str(WORKERS), "--resize-short", str(SHORT), "--shard-size", str(SHARD_SIZE)]
    command += [] if fps is None else ["--fps", str(fps)]
    subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)


def ffmpeg(videos: list[Path], out: Path, fps: int | None, quality: int) -> subprocess.Popen[bytes]:
    """One process that writes the frames of some videos, a folder each."""
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1"]
    for path in videos:
        (out / path.stem).mkdir(parents=True)
        command += ["-i", str(path)]
    rate = "" if fps is None else f"fps={fps},"
    for number, path in enumerate(videos):
        command += ["-map", f"{number}:v:0", "-vf", f"{rate}scale=-2:{SHORT}", "-pix_fmt", "yuvj420p", "-threads", "1"]
        command += ["-vsync", "passthrough", "-q:v", str(quality), str(out / path.stem / "%08d.jpg")]
    return subprocess.Popen(command)


def theirs(root: Path, out: Path, fps: int | None, quality: int) -> None:
    """As people do it: each process takes one of its videos after the other."""
    videos = sorted(root.glob("*.mp4"))
    for pair in zip(videos[0::2], videos[1::2], strict=True):
        for process in [ffmpeg([path], out, fps, quality) for path in pair]:
            if process.wait():
                raise RuntimeError("ffmpeg failed; its words are above")
    subprocess.run(["tar", "cf", out / "all.tar", "-C", out, *sorted(path.stem for path in videos)], check=True)
    flush(out / "all.tar")


def picture_bytes(folder: Path) -> int:
    return sum(
        file.stat().st_size for file in folder.rglob("*") if file.suffix in (".jpg", ".tar") and file.name != "all.tar"
    )


def same_size(root: Path, scratch: Scratch, fps: int | None) -> tuple[int, float]:
    """(ffmpeg's quality whose files come closest to ours, their size over ours); the headers of tar left out."""
    made = scratch.new()
    ours(root, made, fps)
    frames = frame_count(made)
    own = picture_bytes(made) - frames * 768  # a header, and half a block of padding
    sizes = {}
    for quality in QUALITIES:
        sizes[quality] = picture_bytes(_frames_of(root, scratch.new(), fps, quality)) / own
    scratch.clear()
    best = min(sizes, key=lambda quality: abs(sizes[quality] - 1))
    return best, sizes[best]


def _frames_of(root: Path, out: Path, fps: int | None, quality: int) -> Path:
    for path in sorted(root.glob("*.mp4")):
        ffmpeg([path], out, fps, quality).wait()
    return out


def frame_count(shards: Path) -> int:
    from cltt import ShardDataset

    return ShardDataset(shards).num_frames


# ---- figures


def building(root: Path, scratch: Scratch, fps: int | None, rounds: int) -> list[harness.Row]:
    what = "every frame" if fps is None else f"{fps} frames/s"
    quality, size = same_size(root, scratch, fps)
    made, written = scratch.new(), scratch.new()
    ours(root, made, fps)
    theirs(root, written, fps, quality)
    frames = frame_count(made)
    files = {"cltt": len(list(made.iterdir())), "ffmpeg and tar": sum(file.is_file() for file in written.rglob("*"))}
    scratch.clear()
    calls = {
        "cltt": lambda: ours(root, scratch.new(), fps),
        "ffmpeg and tar": lambda: theirs(root, scratch.new(), fps, quality),
    }
    timings = timed(calls, scratch, rounds)
    mine, peer = timings["cltt"], timings["ffmpeg and tar"]
    figure = row(f"videos to shards, {what}", mine, peer, frames, f"<= {BOUND}", lambda ratio: ratio <= BOUND)
    sizes = {"peer_bytes_over_ours": size, "files": files["cltt"], "peer_files": files["ffmpeg and tar"]}
    return [{**figure, **sizes, "reached": "yes" if figure["reached"] == "yes" and abs(size - 1) <= 0.1 else "no"}]


def memory(folder: Path, frames: int) -> list[harness.Row]:
    """Peak memory of the largest process at 1080 lines, every frame stored at its own size."""
    root = make_videos(folder / "large", 2, frames, 1920, 1080)
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(folder / "large_out")]
    command += ["--workers", str(WORKERS), "--shard-size", str(16 << 20)]
    process = subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, *resident(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError("the build failed; its words are above")
    return [plain("memory of the largest process, 1080 lines", peak / 1e6, "MB", "< 600", peak < 600e6)]


def main() -> None:
    args = harness.parser("video", "Shards from videos against ffmpeg and tar.").parse_args()
    if shutil.which("ffmpeg") is None:
        raise SystemExit("this benchmark needs ffmpeg (Debian: apt-get install --no-install-recommends ffmpeg)")
    frames, rounds = (QUICK_FRAMES, 3) if args.quick else (FRAMES, 5)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        root = make_videos(folder / "root", VIDEOS, frames, 1280, 720)
        (folder / "runs").mkdir()
        scratch = Scratch(folder / "runs")
        rows = building(root, scratch, 5, rounds) + building(root, scratch, None, rounds)
        rows += memory(folder, frames // 5)
    harness.print_table(rows, "Shards from videos (time_ratio: ours over theirs)")
    if not args.quick:
        print(f"\nwrote {harness.write_csv('video', rows)}")


if __name__ == "__main__":
    main()
