"""Everything that only a GPU can show, in one command: ``python -m benchmarks.gpu [--out DIR]``.

Makes its own data, checks, then measures, what matters most first: training with the real loader against free data, the
loss, the loader, bare DALI decode (torchvision's where installed), and Python's share of it. Needs no network. Every
figure is written the moment it is measured (``gpu.csv`` and ``gpu.json`` in DIR), so a time-out loses only what was not
reached; a section that fails is written down as failed and the others go on. ``--device cpu --quick`` walks the same
road at toy size on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_data, harness
from benchmarks.gpu_record import FIELDS, Bench
from cltt import EpochPlan, ShardDataset, WindowIndex, WindowLoader, cli
from cltt.machine.gpus import hardware_jpeg_engines

DECODE_THREADS = (2, 4, 8)
WINDOWS = ((5, 2, 1), (5, 10, 1), (5, 2, 10))
# The default; and a stride at which no two windows share a frame, so that every frame is decoded for one use.
TRAINED = ((5, 10, 1), (5, 2, 10))


# --- checks
def check(bench: Bench) -> None:
    """The figures below mean nothing if the pixels or the loss are wrong."""
    from cltt.loss.infonce import TemporalInfoNCE

    shards = gpu_data.shards(bench.work, 256, bench.quick)
    frames = []
    for device in {bench.device.type, "cpu"}:
        data = ShardDataset(shards)
        with WindowLoader(data, WindowIndex(data.clip_lengths), 8, device=device, dtype=torch.uint8) as loader:
            frames.append(next(iter(loader)).frames.float().cpu())
    difference = float((frames[0] - frames[-1]).abs().mean())
    bench.record("check", "decode on the device against the CPU path", "mean_difference", difference, "of 255")
    assert difference < 2, f"pixels differ by {difference:.2f} of 255 on average; expected under 2"

    z = torch.randn(67, 5, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = TemporalInfoNCE(0.1, backend="reference")(z)
    got = TemporalInfoNCE(0.1)(z.float().to(bench.device))
    error = abs(float(got) - float(want)) / abs(float(want))
    bench.record("check", "loss against the fp64 reference", "relative_error", error, "")
    assert error < 1e-5, f"the loss differs from the fp64 reference by {error:.1e}; expected under 1e-5"


# --- decode
def decode(bench: Bench) -> None:
    """Bare decoders over JPEG bytes in memory: DALI at several settings, torchvision where it is installed."""
    for height in (256, 480):
        jpegs = gpu_data.jpegs(bench.work, height, bench.quick)
        for load, threads, fancy in decode_settings(bench):
            rates = [gpu_data.dali_frames_per_second(jpegs, bench.device, load, threads, fancy) for _ in range(3)]
            case = f"DALI {height} lines, load {load}, {threads} threads" + ("" if fancy else ", plain chroma")
            bench.record("decode", case, "frames_per_s", rates, "1/s")
        try:
            rates = [gpu_data.torchvision_frames_per_second(jpegs, bench.device) for _ in range(3)]
        except (ImportError, RuntimeError) as error:
            bench.record("decode", f"torchvision {height} lines", "frames_per_s", f"not measured: {error}"[:80], "")
        else:
            bench.record("decode", f"torchvision {height} lines", "frames_per_s", rates, "1/s")


def decode_settings(bench: Bench) -> Iterator[tuple[float, int, bool]]:
    """Share of the hardware decoder, threads, and whether chroma is upsampled as on the CPU."""
    share = hardware_share(bench)
    if bench.device.type != "cuda" or bench.quick:
        yield share, 2, True
        return
    yield from ((load, 4, True) for load in (0.0, 1.0))
    yield from ((share, threads, True) for threads in DECODE_THREADS if threads != 4)
    yield share, 4, False


def hardware_share(bench: Bench) -> float:
    """What the loader gives to the JPEG engine: all where there is one, else nothing."""
    return float(bench.device.type == "cuda" and bool(hardware_jpeg_engines()))


# --- loader
def loader(bench: Bench) -> None:
    """Windows/s and unique frames/s of the loader alone, beside a bare decode loop over the same bytes in turn."""
    jpegs = gpu_data.jpegs(bench.work, 256, bench.quick)
    for size, step, stride in WINDOWS:
        data = ShardDataset(gpu_data.shards(bench.work, 256, bench.quick))
        index = WindowIndex(data.clip_lengths, size, step, stride)
        case, batch = f"({size},{step},{stride})", 4 if bench.quick else 64
        frames, windows, ratios = [], [], []
        depth = gpu_data.depth_of_blocks(index, batch)
        options: dict[str, Any] = {"device": bench.device, "dtype": torch.uint8, "num_threads": 4, "depth": depth}
        with WindowLoader(data, index, batch, **options) as made:
            for _ in range(1 if bench.quick else 3):
                bare = gpu_data.dali_frames_per_second(jpegs, bench.device, hardware_share(bench), 4)
                before, count, seconds = made.stats()["frames_decoded"], *timed(bench, made)
                decoded = made.stats()["frames_decoded"] - before
                frames.append(decoded / seconds)
                windows.append(count * batch / seconds)
                ratios.append(frames[-1] / bare)
        bench.record("loader", case, "windows_per_s", windows, "1/s")
        bench.record("loader", case, "decoded_per_s", frames, "1/s")
        bench.record("loader", case, "of_bare_decode", ratios, "ratio")
        bench.record(
            "loader",
            case,
            "decodes_per_frame_used",
            decoded / frames_used(index, batch, len(windows) - 1, depth),
            "ratio",
        )


def frames_used(index: WindowIndex, batch: int, epoch: int, depth: int) -> int:
    """Distinct frames that the batches of one epoch hold."""
    plan = EpochPlan(index, batch, epoch=epoch, depth=depth)
    return len(np.unique(np.concatenate([plan.block_frames(block) for block in range(plan.num_blocks)])))


def timed(bench: Bench, batches: Any) -> tuple[int, float]:
    """Number of batches in one pass over ``batches`` and the seconds it took, device work included."""
    bench.sync()
    start = time.perf_counter()
    count = sum(1 for _ in batches)
    bench.sync()
    return count, time.perf_counter() - start


# --- loss
def loss(bench: Bench) -> None:
    """The loss benchmark's own table for this device."""
    from benchmarks import loss as loss_benchmark

    for row in loss_benchmark.device_rows(bench.device, quick=bench.quick):
        bench.record("loss", row["case"], row["metric"], row["values"], row["unit"])


# --- host
def host(bench: Bench) -> None:
    """Python's time for a frame that DALI decodes; on the CPU graph, whatever the device."""
    from benchmarks import decode_host

    for row in decode_host.rows(quick=bench.quick):
        bench.record("host", row["case"], row["metric"], row["values"], row["unit"])


# --- training
def training(bench: Bench) -> None:
    """Training in bf16: whole epochs of the real loader against one batch replayed, windows that share frames and not.

    ResNet-18 first: the fastest network leaves the loader the least time.
    """
    from benchmarks import gpu_train

    cases = [("resnet18", False, window) for window in TRAINED]
    if bench.device.type == "cuda" and not bench.quick:
        cases += [("resnet18", True, TRAINED[0]), ("resnet50", False, TRAINED[0])]
    for name, compiled, window in cases:
        case = f"{name} {window}".replace(" ", "") + (", compiled" if compiled else "")
        if bench.seconds_left < 60 and not bench.quick:
            bench.record("training", case, "skipped", "no time left", "")
            continue
        for metric, values, unit in gpu_train.measure(bench, name, window, compiled=compiled):
            bench.record("training", case, metric, values, unit)


SECTIONS: tuple[Callable[[Bench], None], ...] = (check, training, loss, loader, decode, host)


def run_section(bench: Bench, section: Callable[[Bench], None]) -> bool:
    """Run one section; a failure is recorded and does not stop the others. True if it passed."""
    if bench.seconds_left <= 0:
        bench.record(section.__name__, "-", "skipped", "no time left", "")
        return False
    start = time.monotonic()
    try:
        section(bench)
    except Exception as error:
        traceback.print_exc()
        bench.record(section.__name__, "-", "failed", f"{type(error).__name__}: {error}"[:200], "")
        return False
    bench.record(section.__name__, "-", "section_took", time.monotonic() - start, "s")
    return True


def main() -> int:
    parser = harness.parser("gpu", "Measure decode, loader, loss and training on one GPU.")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of gpu.csv and gpu.json")
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: walk the same road without a GPU"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting new sections after this long")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --quick walks the same road on a CPU")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cltt-gpu-") as work:
        deadline = time.monotonic() + args.minutes * 60
        bench = Bench(torch.device(args.device), args.quick, args.out, Path(work), deadline)
        passed = [run_section(bench, section) for section in SECTIONS]
    harness.print_table([{name: row[name] for name in FIELDS} for row in bench.records], "GPU benchmark")
    print(json.dumps(bench.machine), file=sys.stderr)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    cli.run(main, "benchmarks.gpu")
