"""Shards straight from videos, against what people do today: ffmpeg writes JPEGs, tar packs them.

    python -m benchmarks.video [--quick]

Four H.264 videos of 720 lines are made from the real frames beside the repository (drawn ones where there are none),
with a key frame every two seconds and B-frames. Both sides take two processes and shrink to 256 lines, once at five
frames per second and once all frames: ours is the whole command ``build_shards.py --workers 2``, theirs two ``ffmpeg
-threads 1``, each with one video at a time, and one ``tar``. Our quality is the one that gives files of their size to a
tenth. Both end flushed. The memory is that of the largest process at 1080 lines. Needs ffmpeg.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks import harness
from benchmarks.build import Scratch, flush, frames_of, plain, resident, row, timed
from cltt import ShardDataset
from cltt.shards import layout
from tests.helpers import data, video

VIDEOS, FRAMES, QUICK_FRAMES = 4, 600, 150
RATE, GOP, BITRATE = 30, 60, "4M"  # of a head-mounted camera, about
SHORT = 256
SHARD_SIZE = 8 << 20  # a few shards for each of two workers
WORKERS = 2
BOUND = 1.25
BEST = 2  # ffmpeg's -q:v: the best without further flags
QUALITIES = range(80, 91, 2)  # ours
GRAINS = 4


# ---- the videos


class Film:
    """Pictures of any size that move as a head does: a window drifts over real frames, each shown for a while."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        self._size = width, height
        self._scenes = [cv2.resize(scene, (width * 5 // 4, height * 5 // 4)) for scene in _scenes(seed)]
        random = np.random.default_rng(seed)
        self._grain = random.integers(-4, 5, (GRAINS, height, width, 1), np.int16)  # a camera's: it costs bits

    def __call__(self, number: int) -> np.ndarray:
        width, height = self._size
        scene = self._scenes[number // 90 % len(self._scenes)]
        left = int((0.5 + 0.5 * np.sin(number / 17)) * (scene.shape[1] - width))
        top = int((0.5 + 0.5 * np.cos(number / 23)) * (scene.shape[0] - height))
        seen = scene[top : top + height, left : left + width]
        return np.clip(seen + self._grain[number % GRAINS], 0, 255).astype(np.uint8)


def _scenes(seed: int) -> list[np.ndarray]:
    real = data.SHARED / "real"
    if not real.is_dir():
        return [data.frame_image(seed, 40 * k, 480, 640) for k in range(8)]
    files = [file for folder in sorted(real.rglob("*")) if folder.is_dir() for file in frames_of(folder)]
    picked = np.random.default_rng(seed).choice(len(files), 8, replace=False)
    return [np.ascontiguousarray(cv2.imread(str(files[k]))[:, :, ::-1]) for k in picked]


def make_videos(root: Path, count: int, frames: int, width: int, height: int) -> Path:
    for seed in range(count):
        path = root / f"video_{seed}.mp4"
        if path.exists():
            continue
        film = Film(width, height, seed)
        options = {"preset": "veryfast", "b": BITRATE, "bf": "2"}
        video.write_video(path, frames, rate=RATE, gop=GOP, options=options, draw=film)
    return root


# ---- both sides


def ours(root: Path, out: Path, fps: int | None, quality: int) -> None:
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(out)]
    command += ["--workers", str(WORKERS), "--resize-short", str(SHORT), "--shard-size", str(SHARD_SIZE)]
    command += ["--quality", str(quality)]
    command += [] if fps is None else ["--fps", str(fps)]
    subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.DEVNULL)


def ffmpeg(path: Path, out: Path, fps: int | None, quality: int) -> None:
    """Write the frames of one video into a folder of its name."""
    (out / path.stem).mkdir(parents=True)
    shown = f"scale=-2:{SHORT}" if fps is None else f"fps={fps},scale=-2:{SHORT}"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path), "-vf", shown]
    command += ["-pix_fmt", "yuvj420p", "-threads", "1", "-vsync", "passthrough", "-q:v", str(quality)]
    subprocess.run([*command, str(out / path.stem / "%08d.jpg")], check=True)


def theirs(root: Path, out: Path, fps: int | None, quality: int) -> None:
    """Two processes, each with half of the videos, one after the other; then tar."""
    videos = sorted(root.glob("*.mp4"))

    def write(some: list[Path]) -> None:
        for path in some:
            ffmpeg(path, out, fps, quality)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(write, [videos[part::WORKERS] for part in range(WORKERS)]))
    subprocess.run(["tar", "cf", out / "all.tar", "-C", out, *(path.stem for path in videos)], check=True)
    flush(out / "all.tar")


def jpeg_bytes(folder: Path) -> int:
    """Bytes of all JPEGs in a folder of frames or of shards, without the headers and padding of tar."""
    if (folder / layout.INDEX).is_file():
        dataset = ShardDataset(folder)
        return int(dataset.frame_records(range(dataset.num_frames))["size"].sum())
    return sum(file.stat().st_size for file in folder.rglob("*.jpg"))


def same_quality(root: Path, scratch: Scratch) -> int:
    """The quality at which our JPEGs of the first video have about the size of ffmpeg's best."""
    path, alone, theirs_out = sorted(root.glob("*.mp4"))[0], scratch.new(), scratch.new()
    alone.mkdir()
    os.link(path, alone / path.name)
    ffmpeg(path, theirs_out, 5, BEST)
    sizes = {}
    for quality in QUALITIES:
        made = scratch.new()
        ours(alone, made, 5, quality)
        sizes[quality] = jpeg_bytes(made)
    wanted = jpeg_bytes(theirs_out)
    scratch.clear()
    return min(sizes, key=lambda quality: abs(sizes[quality] - wanted))


# ---- figures


def cpu_seconds(run: Callable[[], None]) -> float:
    """Processor time of all processes that ``run`` starts and waits for: what a busy machine changes little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def building(root: Path, scratch: Scratch, fps: int | None, quality: int, rounds: int) -> list[harness.Row]:
    what = "every frame" if fps is None else f"{fps} frames/s"
    made, written = scratch.new(), scratch.new()
    own_cpu = cpu_seconds(lambda: ours(root, made, fps, quality))
    peer_cpu = cpu_seconds(lambda: theirs(root, written, fps, BEST))
    frames, size = ShardDataset(made).num_frames, jpeg_bytes(written) / jpeg_bytes(made)
    files = {"cltt": len(list(made.iterdir())), "ffmpeg and tar": sum(file.is_file() for file in written.rglob("*"))}
    scratch.clear()
    calls = {
        "cltt": lambda: ours(root, scratch.new(), fps, quality),
        "ffmpeg and tar": lambda: theirs(root, scratch.new(), fps, BEST),
    }
    timings = timed(calls, scratch, rounds)
    mine, peer = timings["cltt"], timings["ffmpeg and tar"]
    figure = row(f"videos to shards, {what}", mine, peer, frames, f"<= {BOUND}", lambda ratio: ratio <= BOUND)
    more = {
        "cpu_ratio": own_cpu / peer_cpu,
        "peer_bytes_over_ours": size,
        "files": files["cltt"],
        "peer_files": files["ffmpeg and tar"],
    }
    return [{**figure, **more, "reached": "yes" if figure["reached"] == "yes" and abs(size - 1) <= 0.1 else "no"}]


def memory(root: Path, out: Path) -> list[harness.Row]:
    """Peak memory of the largest process at 1080 lines, every frame stored at its own size."""
    command = [sys.executable, "tools/build_shards.py", "--root-dir", str(root), "--out", str(out)]
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
    parser = harness.parser("video", "Shards from videos against ffmpeg and tar.")
    parser.add_argument("--videos", type=Path, help="folder to keep the videos in, made once (default: made anew)")
    args = parser.parse_args()
    if shutil.which("ffmpeg") is None:
        raise SystemExit("this benchmark needs ffmpeg (Debian: apt-get install --no-install-recommends ffmpeg)")
    frames, rounds = (QUICK_FRAMES, 2) if args.quick else (FRAMES, 2)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        videos: Path = args.videos or folder
        root = make_videos(videos / f"720_{frames}", VIDEOS, frames, 1280, 720)
        large = make_videos(videos / f"1080_{frames}", WORKERS, frames // 5, 1920, 1080)
        (folder / "runs").mkdir()
        scratch = Scratch(folder / "runs")
        quality = same_quality(root, scratch)
        rows = building(root, scratch, 5, quality, rounds) + building(root, scratch, None, quality, rounds)
        rows += memory(large, folder / "large")
    harness.print_table(rows, "Shards from videos (time_ratio: ours over theirs)")
    if not args.quick:
        print(f"\nwrote {harness.write_csv('video', rows)}")


if __name__ == "__main__":
    main()
