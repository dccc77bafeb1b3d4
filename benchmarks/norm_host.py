"""BatchNorm over ranks: what a forward and a backward pass take of the host, against ``nn.BatchNorm2d``.

``python -m benchmarks.norm_host [--quick]``. One thread, an input so small that its arithmetic takes no time, the norms
in turns. *One process*: as it is. *Two ranks*: rank 0 of two, with collectives that do nothing, so that only what
surrounds them counts. Writes norm_host.csv: the fastest tenth of all passes, in microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks import harness
from cltt import cli, distributed
from cltt.models.sync_batchnorm import SyncBatchNorm2d

SHAPE = (2, 64, 2, 2)


def microseconds(norms: list[nn.Module], repeats: int) -> list[float]:
    """Of each norm the fastest tenth of ``repeats`` forward and backward passes, the norms in turns."""
    torch.manual_seed(0)
    rows, gradient = torch.randn(SHAPE), torch.randn(SHAPE)
    spent: list[list[float]] = [[] for _ in norms]
    for _ in range(repeats):
        for norm, times in zip(norms, spent, strict=True):
            x = rows.clone().requires_grad_()
            start = time.perf_counter()
            norm(x).backward(gradient)
            times.append(1e6 * (time.perf_counter() - start))
    return [harness.percentile(times, 10) for times in spent]


@contextmanager
def two_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    gather = mock.patch.object(distributed, "all_gather_rows", lambda rows: torch.cat([rows, rows]))
    try:
        with gather, mock.patch.object(distributed, "all_sum", lambda x: x):
            yield
    finally:
        dist.destroy_process_group()


def rows(repeats: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    norms = [nn.BatchNorm2d(SHAPE[1]), SyncBatchNorm2d(SHAPE[1])]
    found = {"one process": microseconds(norms, repeats)}
    with two_ranks():
        found["two ranks"] = microseconds(norms, repeats)
    return [
        {"case": case, "nn_us": plain, "over_ranks_us": ours, "ratio": ours / plain}
        for case, (plain, ours) in found.items()
    ]


def main() -> None:
    args = harness.parser("norm_host", "Host time of BatchNorm over ranks, against nn.BatchNorm2d.").parse_args()
    found = rows(300 if args.quick else 10_000)
    harness.write_csv("norm_host", found)
    harness.print_table(found, "BatchNorm over ranks, host time of a forward and a backward pass")


if __name__ == "__main__":
    cli.run(main, "benchmarks.norm_host")
