"""When to build shards of a video, and when to draw windows from the video itself.

``python -m benchmarks.video_direct [--quick] [--video FILE]``. Windows of five frames, 224 pixels, float32, on the CPU.
Direct: windows drawn at random, one thread, a decoder that stays open (torchcodec, with both ways to seek, where it is
installed; PyAV as ``inspect_windows.py`` reads), each frame made smaller and normalised as the loader does. Shards: one
``build_shards --resize-short 256`` of all frames of some copies of the video, then epochs of ``WindowLoader``, which
decodes each frame anew (``keep_bytes=0``). All by CPU time, in turns. Writes video_direct.csv: what a window costs each
way, what the build costs, and after how many windows of a video the build has paid for itself.

The video is measured as it is, and coded anew with a key frame a second, as cameras write them: to draw a frame, all
frames since the key frame before it are decoded.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks import harness
from benchmarks.kept import Cost, epoch, in_turns
from benchmarks.loader import cpu_seconds
from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.frames.batch_cpu import tables
from cltt.frames.decode_cpu import FrameDecoder
from cltt.frames.geometry import Framing
from cltt.shards.folder import FolderDataset
from tests.helpers import data, video

T, SIZE, SHORT, STEPS = 5, 224, 256, (2, 10)
COPIES, WINDOWS, ROUNDS = 8, 48, 5
Draw = Callable[[np.ndarray], list[np.ndarray]]  # frame numbers -> RGB uint8 [h, w, 3] each


def with_key_frames(path: Path, out: Path, every: int) -> Path:
    """The same pictures, coded anew with a key frame ``every`` so many."""
    import av

    with av.open(str(path)) as file:
        stream = max(file.streams.video, key=lambda one: one.width)
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    return video.write_video(out, len(frames), rate=30, gop=every, draw=frames.__getitem__)


# ---- windows from the video


def torchcodec_draw(path: Path, seek: str) -> Draw:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek)
    return lambda numbers: list(decoder.get_frames_at(numbers.tolist()).data.numpy())


def folder_draw(path: Path) -> Draw:
    """By PyAV; each frame becomes a JPEG on the way, as shards would hold it."""
    dataset, decoder = FolderDataset(path.parent), FrameDecoder(Framing(image_size=SIZE))
    return lambda numbers: [decoder.frame(jpeg) for jpeg in dataset.read(numbers)]


def draws_of(path: Path) -> dict[str, Draw]:
    found = {"PyAV (FolderDataset)": folder_draw(path)}
    if importlib.util.find_spec("torchcodec"):
        name = f"torchcodec {version('torchcodec')}"
        found |= {f"{name}, {seek} seek": torchcodec_draw(path, seek) for seek in ("exact", "approximate")}
    return found


def direct_cost(draw: Draw, length: int, step: int, windows: int) -> Cost:
    """CPU seconds and seconds of a window."""
    decoder, lookup = FrameDecoder(Framing(image_size=SIZE)), tables(torch.float32, "imagenet").astype(np.float32)
    starts = np.random.default_rng(step).integers(0, length - (T - 1) * step, windows)
    batch = np.empty((T, 3, SIZE, SIZE), np.float32)
    before, clock = cpu_seconds(), time.perf_counter()
    for start in starts:
        for place, frame in enumerate(draw(start + step * np.arange(T))):
            small = frame if frame.shape[:2] == (SIZE, SIZE) else decoder.fit(frame)
            for channel in range(3):
                np.take(lookup[channel], small[:, :, channel], out=batch[place, channel])
    return (cpu_seconds() - before) / windows, (time.perf_counter() - clock) / windows


# ---- windows from shards


def build_cost(path: Path, folder: Path) -> float:
    """CPU seconds of building shards, a video."""
    root = folder / "videos"
    root.mkdir()
    for copy in range(COPIES):
        shutil.copy(path, root / f"{copy}.mp4")
    before = cpu_seconds()
    build_shards(root, folder / "shards", resize_short=SHORT)
    return (cpu_seconds() - before) / COPIES


def loader_of(shards: Path, step: int) -> WindowLoader:
    dataset = ShardDataset(shards)
    index = WindowIndex(dataset.clip_lengths, T, step, 10)
    return WindowLoader(dataset, index, 16, device="cpu", keep_bytes=0, num_threads=harness.cores())


def measure(name: str, path: Path, quick: bool) -> Iterator[dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="direct-") as made:
        folder = Path(made)
        built = build_cost(path, folder)
        dataset = ShardDataset(folder / "shards")
        length, size = int(dataset.clip_lengths[0]), sum(file.stat().st_size for file in dataset.path.glob("*.tar"))
        (folder / "alone").mkdir()
        draws = draws_of(Path(shutil.copy(path, folder / "alone")))
        windows, rounds = (8, 2) if quick else (WINDOWS, ROUNDS)
        for step in STEPS:
            calls = {
                name: lambda draw=draw, step=step: direct_cost(draw, length, step, windows)
                for name, draw in draws.items()
            }
            loader = loader_of(folder / "shards", step)
            epoch(loader)  # takes its memory
            calls["shards"] = lambda loader=loader: epoch(loader)
            costs = {name: [cost for cost, _ in found] for name, found in in_turns(calls, rounds).items()}
            loaded = harness.percentile(costs.pop("shards"), 50)
            for peer, found in costs.items():
                direct = harness.percentile(found, 50)
                yield {
                    "video": name,
                    "frames": length,
                    "frame_step": step,
                    "direct": peer,
                    "direct_ms_a_window": direct * 1000,
                    "shards_ms_a_window": loaded * 1000,
                    "build_s_a_video": built,
                    "build_pays_from_windows": built / (direct - loaded) if direct > loaded else "never",
                    "video_mb": path.stat().st_size / 1e6,
                    "shards_mb": size / COPIES / 1e6,
                    "rounds": rounds,
                }


def main() -> None:
    parser = harness.parser("video_direct", "Windows from videos against building shards first.")
    parser.add_argument("--video", type=Path, default=data.SHARED / "video" / "nasa_13013.mp4")
    args = parser.parse_args()
    if not args.video.is_file():
        raise SystemExit(f"there is no {args.video}; give another file with --video")
    with tempfile.TemporaryDirectory(prefix="coded-") as folder:
        camera = with_key_frames(args.video, Path(folder) / args.video.with_suffix(".mp4").name, 30)
        rows = [*measure("as it is", args.video, args.quick), *measure("a key frame a second", camera, args.quick)]
    harness.print_table(rows, "Windows from a video against shards of it")
    if not args.quick:
        print(f"\nwrote {harness.write_csv('video_direct', rows)}")


if __name__ == "__main__":
    main()
