"""Windows drawn from videos by torchcodec, beside shards of the same videos: CPU time, bytes, build time.

``python -m benchmarks.loader_video [--quick] [--videos DIR]``. The videos of video.py (H.264, 720 lines, 30 frames per
second, a key frame every two seconds), every frame stored at 256 lines. Sets of 100,000 frames: the same videos again
and again under other names. torchcodec draws each window in one of as many threads as there are cores: it opens the
video (with many videos the next window is of another one), seeks, decodes from the key frame on, and crops and resizes
to S x S. ``exact`` reads all packets of the file first, which takes the longer the longer the video is.

``windows_until_shards_pay``: how many windows must be drawn from a video of 600 frames, over all epochs, until building
shards has taken less CPU time than drawing from the video; shards are counted at the cost of the first epoch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks import harness, video
from benchmarks.loader import BATCH, FRAMES, QUICK_FRAMES, STEP, FirstEpoch, LaterEpochs, T, Timings, run_race
from benchmarks.loader_data import repeat_clips
from benchmarks.loader_peers import Peer, S, Wanted
from benchmarks.loader_pools import ThreadPool
from cltt import ShardDataset, WindowIndex, build_shards, cli

VIDEOS, FRAMES_A_VIDEO, QUALITY = 4, 600, 90
STRIDES = (1, 10)


class Approximate(ThreadPool):
    """torchcodec on videos with every frame in the set; ``wanted.files`` is the video of each frame."""

    name = "torchcodec on videos, approximate seek"
    needs = "torchcodec.decoders"
    untimed, timed = 1, 4
    seek_mode: Literal["approximate", "exact"] = "approximate"

    def __init__(self, wanted: Wanted) -> None:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import CenterCrop, Resize

        super().__init__(wanted)
        seen = VideoDecoder(wanted.files[0]).metadata
        side = min(seen.width or 0, seen.height or 0)  # of all videos
        self._transforms = [CenterCrop((side, side)), Resize((S, S))]

    def made_ahead(self, windows: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """All threads work on one batch: a window takes so long that nothing is lost, and none is begun too many."""
        with ThreadPoolExecutor(self.wanted.workers) as pool:
            for ids in windows:
                rows = self._free.get()
                parts = rows.reshape(len(ids), self.wanted.index.window_size, -1)
                list(pool.map(self.write, self.wanted.index.frames(ids).tolist(), parts))
                yield rows

    def frames(self, places: list[int]) -> Iterator[np.ndarray]:
        from torchcodec.decoders import VideoDecoder

        dataset, path = self.wanted.dataset, self.wanted.files[places[0]]
        first = int(dataset.clip_offsets[dataset.clip_of(places[0])])
        decoder = VideoDecoder(path, seek_mode=self.seek_mode, dimension_order="NHWC", transforms=self._transforms)
        yield from decoder.get_frames_at([place - first for place in places]).data.numpy()

    def set_bytes(self) -> int:
        firsts = self.wanted.dataset.clip_offsets[:-1].tolist()
        return sum(Path(self.wanted.files[first]).stat().st_size for first in firsts)


class Exact(Approximate):
    name = "torchcodec on videos, exact seek"
    seek_mode = "exact"


PEERS: tuple[type[Peer], ...] = (FirstEpoch, LaterEpochs, Approximate, Exact)


def unpack(shards: Path, root: Path) -> Path:
    """The frames of ``shards`` as JPEG files, a folder per video."""
    dataset = ShardDataset(shards)
    for clip, (first, stop) in enumerate(zip(dataset.clip_offsets[:-1], dataset.clip_offsets[1:], strict=True)):
        folder = root / dataset.clip_key(clip)
        folder.mkdir(parents=True)
        for number, jpeg in enumerate(dataset.read(np.arange(first, stop))):
            (folder / f"{number:06d}.jpg").write_bytes(jpeg)
    return root


def wanted_of(videos: Path, shards: Path, stride: int) -> Wanted:
    dataset = ShardDataset(shards)
    files: list[str] = []
    for clip, length in enumerate(dataset.clip_lengths.tolist()):
        files += [str(videos / dataset.clip_key(clip).partition("_again_")[0])] * length
    return Wanted(
        dataset, files, WindowIndex(dataset.clip_lengths, T, STEP, stride), BATCH, harness.cores(), floats=True
    )


def rows_of(wanted: Wanted, peers: dict[str, Peer], timings: Timings, build: tuple[float, float]) -> list[harness.Row]:
    """One row per loader; ``build``: seconds by the clock and of the CPU, per video."""
    first, later = timings[FirstEpoch.name], timings[LaterEpochs.name]
    rows: list[harness.Row] = []
    for name, peer in peers.items():
        clock, cpu = timings[name]
        direct = isinstance(peer, Approximate)
        rows.append(
            {
                "stride": wanted.index.window_stride,
                "loader": name,
                "cpu_ms_a_window": cpu.median * 1000,
                "cltt_times_less_cpu": harness.ratio(cpu, first[1]).median,
                "later_times_less_cpu": harness.ratio(cpu, later[1]).median,
                "windows_per_s": 1 / clock.median,
                "later_times_faster": harness.ratio(clock, later[0]).median,
                "mb_per_video": peer.set_bytes() / wanted.dataset.num_clips / 1e6,
                "build_cpu_s_per_video": 0.0 if direct else build[1],
                "build_s_per_video": 0.0 if direct else build[0],
                "windows_until_shards_pay": build[1] / (cpu.median - first[1].median) if direct else "",
                "rounds": len(cpu.seconds),
            }
        )
    return rows


def main() -> None:
    parser = harness.parser(
        "loader_video", "Windows drawn from videos by torchcodec, beside shards of the same videos."
    )
    parser.add_argument("--videos", type=Path, help="folder to keep the videos in, made once (default: made anew)")
    args = parser.parse_args()
    present = []
    for kind in PEERS:
        if why := kind.why_missing():
            print(f"left out: {kind.name}: {why}")
        else:
            present.append(kind)
    with tempfile.TemporaryDirectory(prefix="race-video-") as name:
        folder = Path(name)
        videos = video.make_videos((args.videos or folder) / f"720_{FRAMES_A_VIDEO}", VIDEOS, FRAMES_A_VIDEO, 1280, 720)
        start = time.perf_counter()
        cpu = video.cpu_seconds(lambda: video.ours(videos, folder / "built", None, QUALITY))
        build = (time.perf_counter() - start) / VIDEOS, cpu / VIDEOS
        root = repeat_clips(unpack(folder / "built", folder / "clips"), QUICK_FRAMES if args.quick else FRAMES)
        build_shards(root, folder / "shards", verify="header")
        rows: list[harness.Row] = []
        for stride in STRIDES:
            wanted = wanted_of(videos, folder / "shards", stride)
            peers = {kind.name: kind(wanted) for kind in present}
            rows += rows_of(wanted, peers, run_race(peers, wanted.dataset, 2 if args.quick else 3), build)
    harness.print_table(rows, "Windows from videos and from shards of them")
    if not args.quick:
        harness.write_csv("loader_video", rows)


if __name__ == "__main__":
    cli.run(main, "benchmarks.loader_video")
