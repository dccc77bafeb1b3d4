"""The loss against its peers, forward and backward: time and extra peak memory over the number of frames N.

Peers: the dense form (the tests' reference), SupConLoss of pytorch-metric-learning (the same loss, dense as well), and
on a GPU ``torch.compile`` of the chunked form and flash attention (one head, same N and D), which does seven products
of the size of S where the loss does three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import harness
from cltt import TemporalInfoNCE, cli

D = 128
WIDE = (65_536, 512)  # one more case on a GPU: N and D
WINDOW_SIZE = {"cpu": 5, "cuda": 4}  # N is a multiple: 320 ... 10,240 and powers of two
SIZES = {
    ("cpu", True): (320, 1280, 10_240),
    ("cpu", False): (320, 640, 1280, 2560, 5120, 10_240),
    ("cuda", True): (8192, 131_072),
    ("cuda", False): (8192, 10_240, 16_384, 32_768, 65_536, 131_072),
}
# Beyond these a peer does not fit, or takes more of the run than all others together.
LARGEST = {"dense": 32_768, "supcon": 2560, "compiled chunked": 16_384, "triton fp32": 32_768, "chunked": 32_768}
FP32 = ("triton trained", "triton fp32")
Work = Callable[[], Any]
Row = dict[str, Any]


def embeddings(N: int, device: torch.device, dtype: torch.dtype, D: int = D) -> torch.Tensor:
    """z [B, T, D] with windows that differ, as trained ones do; a leaf with a gradient."""
    T = WINDOW_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N // T, T, D, generator=generator) + torch.randn(N // T, 1, D, generator=generator)
    return z.to(device, dtype).requires_grad_()


def forward_backward(loss_fn: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> Work:
    return lambda: torch.autograd.grad(loss_fn(z), z)


def supcon(z: torch.Tensor) -> Work:
    from pytorch_metric_learning.losses import SupConLoss

    windows = torch.arange(len(z), device=z.device).repeat_interleave(z.shape[1])
    peer = SupConLoss(temperature=0.5)
    return forward_backward(lambda x: peer(x.flatten(0, 1), windows), z)


def flash_attention(N: int, device: torch.device, D: int = D) -> Work:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v, grad = (torch.randn(1, 1, N, D, device=device, dtype=torch.bfloat16) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def work() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return torch.autograd.grad(scaled_dot_product_attention(q, k, v), (q, k, v), grad)

    return work


def make_work(name: str, N: int, device: torch.device, D: int = D) -> Work:
    """One forward and backward pass of the peer ``name`` on fixed inputs.

    "triton trained" is how the trainer calls it: fp32 embeddings under bf16 autocast.
    """
    dtype = torch.float32 if device.type == "cpu" or name in FP32 else torch.bfloat16
    if name == "flash attention":
        return flash_attention(N, device, D)
    z = embeddings(N, device, dtype, D)
    if name == "supcon":
        return supcon(z)
    backend = {"dense": "reference", "compiled chunked": "chunked"}.get(name, name.split()[0])
    loss_fn: Callable[[torch.Tensor], torch.Tensor] = TemporalInfoNCE(backend=backend)
    if name == "triton trained":
        return forward_backward(under_autocast(loss_fn), z)
    return forward_backward(torch.compile(loss_fn) if name.startswith("compiled") else loss_fn, z)


def under_autocast(loss_fn: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def call(z: torch.Tensor) -> torch.Tensor:
        with torch.autocast(z.device.type, torch.bfloat16):
            return loss_fn(z)

    return call


def names(N: int, device: torch.device) -> list[str]:
    everyone = ["dense", "chunked", "supcon"]
    if device.type == "cuda":
        everyone = ["triton", *FP32, "dense", "chunked", "compiled chunked", "flash attention"]
    largest = LARGEST if device.type == "cuda" else {"supcon": LARGEST["supcon"]}
    return [name for name in everyone if largest.get(name, N) >= N]


def memory_work(name: str, N: int) -> Work:
    """What the memory of a CPU peer is measured on: a small pass first, which loads libraries and starts threads."""
    make_work(name, 320, torch.device("cpu"))()
    return make_work(name, N, torch.device("cpu"))


def extra_bytes(name: str, N: int, work: Work, device: torch.device) -> int:
    """Peak memory of a pass beyond its inputs, the gradient of z included."""
    if device.type == "cpu":
        return harness.peak_memory("benchmarks.loss:memory_work", name, N)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def times(works: dict[str, Work], device: torch.device, rounds: int) -> dict[str, harness.Timing]:
    if device.type == "cpu":
        return harness.time_interleaved(works, rounds=rounds)
    return {name: harness.Timing(name, seconds) for name, seconds in event_times(works, rounds).items()}


def event_times(works: dict[str, Work], rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds of each work on the device, by events, turn by turn; the host runs ahead, so launches are hidden."""
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in works}
    for turn in range(rounds + 3):
        for name, work in works.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            if turn >= 3:  # the first turns warm up clocks and caches
                marks[name].append((start, end))
    torch.cuda.synchronize()
    return {name: tuple(start.elapsed_time(end) / 1000 for start, end in pairs) for name, pairs in marks.items()}


def prepared(N: int, device: torch.device, D: int = D) -> dict[str, Work]:
    """The works that run at this size; one that cannot be compiled or does not fit is named and left out."""
    works = {}
    for name in names(N, device):
        try:
            work = make_work(name, N, device, D)
            work()
        except Exception as error:
            print(f"{name} at N = {N} left out: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        works[name] = work
    return works


def measure(device: torch.device, N: int, D: int = D, *, quick: bool) -> Iterator[tuple[Row, harness.Timing]]:
    """One row a peer at this size, with its timing; "faster" and "lighter" say how many times."""
    works = prepared(N, device, D)
    rounds = (3 if quick else 5) if device.type == "cpu" and N > 5000 else 15
    timings = times(works, device, rounds)
    memory = {name: extra_bytes(name, N, work, device) for name, work in works.items()}
    rival = "dense" if device.type == "cpu" else "flash attention"
    suffix = rival.replace(" ", "_")
    for name, timing in timings.items():
        row = {"device": device.type, "N": N, "D": D, "T": WINDOW_SIZE[device.type], "name": name}
        row |= {f"{key}_ms" if key != "rounds" else key: value for key, value in timing.columns(1e3).items()}
        row["extra_mb"] = memory[name] / 1e6
        row[f"faster_than_{suffix}"] = harness.ratio(timings[rival], timing).median if rival in timings else math.nan
        row[f"lighter_than_{suffix}"] = memory[rival] / max(memory[name], 1) if rival in memory else math.nan
        yield row, timing


def cases(device: torch.device, *, quick: bool) -> list[tuple[int, int]]:
    """N and D of every table row."""
    wide = [WIDE] if device.type == "cuda" and not quick else []
    return [(N, D) for N in SIZES[device.type, quick]] + wide


def main() -> None:
    args = harness.parser("loss", "Time the loss and its peers, forward and backward, and weigh them.").parse_args()
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    for device in devices:
        wanted = cases(device, quick=args.quick)
        rows = [row for case in wanted for row, _ in measure(device, *case, quick=args.quick)]
        name = "loss" if device.type == "cpu" else "loss_gpu"
        harness.write_csv(name, rows)
        harness.print_table(
            rows, f"Loss, forward and backward, on {device.type} ({torch.get_num_threads()} CPU threads)"
        )


if __name__ == "__main__":
    cli.run(main, "benchmarks.loss")
