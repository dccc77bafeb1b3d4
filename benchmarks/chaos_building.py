"""Building under faults, held to the undisturbed build byte by byte."""

from __future__ import annotations

import contextlib
import filecmp
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos_orders import POLL_SECONDS, READ_FAULTS, ChaosError, Orders, Started, told
from cltt import build_shards
from tests.helpers import data, video
from tests.helpers.fork_server import Child, ForkServer

KILLS = ("killed builder", "killed packing process")
FAULTS = (*READ_FAULTS, "full disk", *KILLS)
SHARD_SIZE = 60_000
VIDEOS = {"p0/film.mp4": "libx264", "p1/film.webm": "libvpx", "p2/film.avi": "mpeg4"}


def disturbed(
    fork_server: ForkServer, folder: Path, root: Path, calm: Path, orders: Orders, rng: random.Random, gap: float
) -> None:
    """A build under faults, to its end; ChaosError unless all of its files are those of the undisturbed one."""
    folder.mkdir(parents=True)
    out, log = folder / "shards", folder / "log"
    flags = ["--root-dir", str(root), "--out", str(out), "--shard-size", str(SHARD_SIZE), "--workers", "2"]
    status: int | None = 1
    while status != 0:
        process = fork_server.start("benchmarks.faults", ["build", *flags], told(orders, folder, root, out), log=log)
        started = Started([process], log, lambda: _sizes(out))
        try:
            _strike(started, process, out, orders, rng, gap)
            (status,) = started.wait()
        finally:
            started.kill()
        if status == 1 or "Traceback" in started.output():
            raise ChaosError(f"a defect:\n{started.output()[-3000:]}")
    check_same_folder(out, calm)


def _sizes(folder: Path) -> list[int]:
    """Of all files there; os.walk passes over folders that vanish meanwhile."""
    sizes = []
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
    return sizes


def _strike(started: Started, process: Child, out: Path, orders: Orders, rng: random.Random, gap: float) -> None:
    """One fault after another until the build has ended or a process of it is killed."""
    while started.running and not (out / ".build" / "plan").exists():
        time.sleep(POLL_SECONDS / 4)
    while started.running:
        kind = rng.choice(FAULTS)
        if kind in KILLS:
            _kill(started, process, kind, orders, rng)
            return
        orders.give_and_wait(kind, rng.uniform(0.1, 0.4), started)
        time.sleep(gap * rng.random() * 0.1)


def _kill(started: Started, process: Child, kind: str, orders: Orders, rng: random.Random) -> None:
    time.sleep(rng.random() * 0.2)
    victims = [process.pid] if kind == "killed builder" else _children(process.pid)
    if victims and started.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(victims), signal.SIGKILL)
            if started.wait() != [0]:
                orders.note(kind)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def check_same_folder(out: Path, calm: Path) -> None:
    names = sorted(path.name for path in calm.iterdir())
    if (found := sorted(path.name for path in out.iterdir())) != names:
        raise ChaosError(f"{out} does not hold the files of an undisturbed build: {found}, not {names}")
    _, differ, missing = filecmp.cmpfiles(out, calm, names, shallow=False)
    if differ or missing:
        raise ChaosError(f"not as undisturbed: {differ + missing}")


def video_faults(folder: Path) -> dict[str, str]:
    """The environment in which reads of videos can be struck; {} where PyAV or a C compiler is missing."""
    library = folder / "video_faults.so"
    if importlib.util.find_spec("av") is None or shutil.which("cc") is None:
        return {}
    source = Path(__file__).parent / "video_faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", source, "-o", library, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def _source(root: Path, videos: bool) -> Path:
    """Clips of frames, some of which are cut off, and videos."""
    data.make_clips(root, {f"p{k % 4}/c{k}": 25 for k in range(16)}, height=96)
    for frame in sorted(root.rglob("*.jpg"))[7::41]:
        frame.write_bytes(frame.read_bytes()[:300])
    for name, codec in VIDEOS.items() if videos else ():
        video.write_video(root / name, 60, codec=codec)
    return root


def episodes(fork_server: ForkServer, folder: Path, orders: Orders, *, seed: int, gap: float) -> Callable[[int], None]:
    """Builds under faults, by their number: each ends as the undisturbed one, or ChaosError.

    Over videos, too, if ``fork_server`` can strike them (:func:`video_faults`).
    """
    rng = random.Random(f"{seed} building")
    root = _source(folder / "frames", videos="LD_PRELOAD" in fork_server.environment)
    build_shards(root, folder / "calm", workers=1, shard_size=SHARD_SIZE)
    return lambda number: disturbed(fork_server, folder / f"build-{number}", root, folder / "calm", orders, rng, gap)
