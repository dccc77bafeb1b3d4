"""The parts of the GPU benchmark, one a process: ``python -m benchmarks.gpu_parts NAME`` (see gpu_first.py).

Checks first (the machine, pixels, loss, writes of two threads, whole runs, one rank of NCCL), then figures: training
with the real loader against free data, the loss, bare decoding, the loader, Python's share, memory over epochs.
"""

from __future__ import annotations

import math
import shutil
import signal
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_data, harness
from benchmarks.gpu_record import Bench
from cltt import EpochPlan, ShardDataset, WindowIndex, WindowLoader, cli
from cltt.machine.gpus import hardware_jpeg_engines

DECODE_THREADS = (2, 4, 8)
WINDOWS = ((5, 2, 1), (5, 10, 1), (5, 2, 10))
# The default; and a stride at which no two windows share a frame, so that every frame is decoded for one use.
TRAINED = ((5, 10, 1), (5, 2, 10))
LOSS_FRAMES = (1280, 10_240, 65_536)
STEPS = 6  # an epoch of a whole run


# --- checks
def machine(bench: Bench) -> None:
    """What is here; no part needs all of it."""
    from cltt.machine.triton_runs import why_triton_fails

    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    facts = {
        "gcc": shutil.which("gcc") or "none",
        "Python.h": str(header) if header.exists() else "none",
        "cuda": str(torch.version.cuda),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if bench.device.type == "cuda" else "none",
        "compute mode": harness.output("nvidia-smi", "--query-gpu=compute_mode", "--format=csv,noheader") or "none",
    }
    if bench.device.type == "cuda":
        engines = hardware_jpeg_engines()
        facts["jpeg engines"] = "unknown" if engines is None else str(engines)
        facts["triton"] = why_triton_fails() or "runs"
    for name, fact in facts.items():
        bench.record("machine", name, "is", fact, "")


def graphs(bench: Bench) -> None:
    """DALI's decode graph as the loader builds it, without and with the JPEG engine; an error is shown in full."""
    from cltt.frames.geometry import Framing
    from cltt.frames.gpu.dali_graphs import DecodeGraph

    data = gpu_data.jpegs(bench.work, 256, True)[:128]
    boxes = np.tile([0, 0, 256, 341], (len(data), 1))
    device_id = 0 if bench.device.type == "cuda" else None
    for hardware in (False, True) if device_id is not None and hardware_jpeg_engines() else (False,):
        graph = DecodeGraph(128, 4, device_id, hardware, Framing(image_size=224))
        start = time.perf_counter()
        frames = graph.decode([frame.tobytes() for frame in data], boxes, boxes[:, 2:], boxes)
        assert len(frames) == len(data)
        bench.record("graphs", f"128 frames, load {hardware:d}", "first_batch", time.perf_counter() - start, "s")


def writes(bench: Bench) -> None:
    """Two threads write frames smaller than their slots, with deterministic algorithms: no frame is lost."""
    from cltt.frames.decoders import DaliDecoder
    from cltt.frames.geometry import Framing
    from cltt.frames.store import FrameStore

    torch.use_deterministic_algorithms(True)
    framing, count, each = Framing(image_size=64, margin=True), 64, 100  # a slot has room for a frame of 4:3
    store = FrameStore(count, framing, bench.device)
    values = torch.arange(count, dtype=torch.uint8, device=bench.device)
    frames = values.view(-1, 1, 1, 1).expand(-1, framing.short, framing.short, 3)
    writer: Any = SimpleNamespace(device=bench.device)

    def write(parity: int) -> None:
        slots = list(range(parity, count, 2))
        for _ in range(each):
            DaliDecoder._write(writer, store, slots, frames[slots].contiguous())

    threads = [threading.Thread(target=write, args=(parity,)) for parity in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [slot for slot in range(count) if not torch.equal(store.frame(slot), frames[slot])]
    bench.record("writes", f"2 threads, {2 * each} writes", "frames_lost", len(lost), f"of {count}")
    if bench.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / store.rows().numel()
        bench.record("writes", f"2 threads, {2 * each} writes", "peak_memory", peak, "times the store")
    assert not lost, f"the frames in slots {lost} are not those written"


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
    for height in (256,) if bench.quick else (256, 480):
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
    """Windows/s and unique frames/s of the loader alone, in turn with DALI, if there, decoding the same bytes alone."""
    from cltt.frames.decoders import dali_installed

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
                bare = 0.0
                if dali_installed():
                    bare = gpu_data.dali_frames_per_second(jpegs, bench.device, hardware_share(bench), 4)
                before, count, seconds = made.stats()["frames_decoded"], *timed(bench, made)
                decoded = made.stats()["frames_decoded"] - before
                frames.append(decoded / seconds)
                windows.append(count * batch / seconds)
                ratios += [frames[-1] / bare] if bare else []
        bench.record("loader", case, "windows_per_s", windows, "1/s")
        bench.record("loader", case, "decoded_per_s", frames, "1/s")
        if ratios:
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
    """The loss and its peers (benchmarks/loss.py) at a few sizes."""
    from benchmarks import loss as loss_benchmark

    for N in (320,) if bench.quick else LOSS_FRAMES:
        for row, timing in loss_benchmark.measure(bench.device, N, quick=bench.quick):
            case = f"{row['name']}, N={N}"
            bench.record("loss", case, "fwd_bwd", [seconds * 1e3 for seconds in timing.seconds], "ms")
            bench.record("loss", case, "extra_memory", row["extra_mb"], "MB")
            if math.isfinite(faster := row.get("faster_than_flash_attention", math.nan)):
                bench.record("loss", case, "faster_than_flash", faster, "ratio")


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

    cases = [("resnet18", False, window) for window in (TRAINED[1:] if bench.quick else TRAINED)]
    if bench.device.type == "cuda" and not bench.quick:
        cases += [("resnet18", True, TRAINED[0]), ("resnet50", False, TRAINED[0])]
    for name, compiled, window in cases:
        case = f"{name} {window}".replace(" ", "") + (", compiled" if compiled else "")
        for metric, values, unit in gpu_train.measure(bench, name, window, compiled=compiled):
            bench.record("training", case, metric, values, unit)


# --- whole runs
def train(bench: Bench, name: str, *more: str, stop_after: int = 0) -> tuple[int, list[float]]:
    """One run of train.py in this process -> its exit status and the loss of each step."""
    from cltt.commands import train as command
    from cltt.training import run

    losses: list[float] = []

    def on_step(loss: float) -> None:
        losses.append(loss)
        if len(losses) == stop_after:
            signal.raise_signal(signal.SIGUSR1)

    size, batch, steps = ("32", "4", STEPS // 2) if bench.quick else ("224", "64", STEPS)
    flags = ["--shards", str(gpu_data.shards(bench.work, 256, bench.quick)), "--checkpoint-dir", str(bench.work / name)]
    flags += ["--device", bench.device.type, "--image-size", size, "--batch-size", batch, "--num-workers", "2"]
    flags += ["--max-batches-per-epoch", str(steps), *more]
    return run.train(command.parse(flags), on_step=on_step), losses


def resumed(bench: Bench) -> None:
    """A run stopped by SIGUSR1 and resumed makes the steps of the run that was not."""
    flags = ("--epochs", "2", "--deterministic")
    status, whole = train(bench, "whole", *flags)
    stopped, first = train(bench, "parts", *flags, stop_after=STEPS // 2 + 1 if bench.quick else STEPS + 2)
    ended, rest = train(bench, "parts", *flags, "--resume")
    bench.record("resumed", "whole, stopped, resumed", "exit_status", f"{status} {stopped} {ended}", "expected 0 85 0")
    assert (status, stopped, ended) == (0, 85, 0)
    assert first + rest == whole, f"losses differ: {whole} and {first + rest}"


def compiled(bench: Bench) -> None:
    """Steps of a model in float32 throughout, and of one that is compiled."""
    runs = [("float32", "--amp=off"), ("compiled", "--compile")]
    for name, flag in runs if bench.device.type == "cuda" else runs[:1]:  # compiling for a CPU takes minutes
        status, losses = train(bench, name, "--epochs", "1", flag)
        assert status == 0 and all(np.isfinite(losses))
        bench.record("compiled", name, "last_loss", losses[-1], "")


def ranks(bench: Bench) -> None:
    """One rank of NCCL (Gloo on a CPU): DDP, our BatchNorm and the loss for 20 steps; then how long the end takes."""
    import torch.distributed as dist

    from benchmarks import gpu_train
    from cltt import TemporalInfoNCE
    from cltt.models.sync_batchnorm import synchronise

    cuda = bench.device.type == "cuda"
    store = dist.HashStore()
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
    bare = gpu_train.build_model("resnet18", bench.device)
    synchronise(bare)
    model = torch.nn.parallel.DistributedDataParallel(bare.to(bench.device), device_ids=[0] if cuda else None)
    optimizer, loss_fn = torch.optim.SGD(model.parameters(), lr=0.01), TemporalInfoNCE()
    frames = torch.randn(4 if bench.quick else 32, 5, 3, 64, 64, device=bench.device)
    for _ in range(2 if bench.quick else 20):
        loss = loss_fn(model(frames))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss)
    bench.sync()
    start = time.perf_counter()
    dist.destroy_process_group()
    bench.record("ranks", "one rank", "tear_down", time.perf_counter() - start, "s")


# --- memory
def memory(bench: Bench) -> None:
    """Memory that torch holds after each of six short epochs with augmentation: it must not grow."""
    data = ShardDataset(gpu_data.shards(bench.work, 256, bench.quick))
    index = WindowIndex(data.clip_lengths, 5, 10, 10)
    size, batch = (32, 4) if bench.quick else (224, 64)
    held = []
    with WindowLoader(
        data, index, batch, image_size=size, device=bench.device, augment="simclr", num_threads=4
    ) as loader:
        for epoch in range(2 if bench.quick else 6):
            loader.set_epoch(epoch)
            for _, _ in zip(range(4), loader, strict=False):
                pass
            bench.sync()
            held.append(torch.cuda.memory_reserved() / 1e6 if bench.device.type == "cuda" else 0.0)
            bench.record("memory", f"simclr, epoch {epoch}", "memory_reserved", held[-1], "MB")
    assert held[-1] <= 1.05 * held[1], f"memory grew from epoch to epoch: {held} MB"


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part
    for part in (
        *(machine, graphs, check, writes, resumed, compiled, ranks),
        *(training, loss, loader, decode, host, memory),
    )
}


def main() -> None:
    parser = harness.parser(
        "gpu_parts", "One part of the GPU benchmark (python -m benchmarks.gpu_first runs them all)."
    )
    parser.add_argument("name", choices=list(PARTS), help="which part")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="what to measure")
    parser.add_argument("--work", type=Path, required=True, help="folder for the data that the parts share")
    args = parser.parse_args()
    PARTS[args.name](Bench(torch.device(args.device), args.quick, args.work))


if __name__ == "__main__":
    cli.run(main, "benchmarks.gpu_parts")
