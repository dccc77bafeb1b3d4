"""BatchNorm over ranks against one process's ``nn.BatchNorm`` on the joined batch, with other rows on each rank."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from cltt.distributed import world
from cltt.errors import SettingsError
from cltt.models import sync_batchnorm
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder
from cltt.models.sync_batchnorm import SyncBatchNorm1d, SyncBatchNorm2d, synchronise
from tests.helpers.ddp import run_ranks

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}  # of the largest value


@dataclass(frozen=True)
class Case:
    """One norm and its input; ``rows``: of each of four ranks (two ranks take two parts each)."""

    shape: tuple[int, ...]  # of one row: (C,), (C, L) or (C, H, W)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    affine: bool = True
    momentum: float | None = 0.1
    track: bool = True
    rows: tuple[int, int, int, int] = (4, 4, 4, 4)
    steps: int = 2
    act: bool = False  # timm's norm, with its activation

    def norm(self) -> nn.Module:
        kind = nn.BatchNorm2d if len(self.shape) == 3 else nn.BatchNorm1d
        if self.act:
            kind = pytest.importorskip("timm.layers").BatchNormAct2d
        options = {"momentum": self.momentum, "affine": self.affine, "track_running_stats": self.track}
        norm = kind(self.shape[0], **options).to(self.dtype)
        torch.manual_seed(1)
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
        return norm

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Input and gradient of the output, [steps, rows of all, ...]; the mean differs from rank to rank."""
        torch.manual_seed(2)
        shape = (self.steps, sum(self.rows), *self.shape)
        drift = torch.arange(shape[1]).view(1, -1, *[1] * len(self.shape)) / 5
        x = (2 * torch.randn(shape, dtype=torch.float64) + drift).to(self.dtype)
        return x, torch.randn(shape, dtype=torch.float64).to(self.dtype)

    def split(self, x: torch.Tensor, world_size: int) -> list[torch.Tensor]:
        """[rows of all, ...] -> the rows of each of ``world_size`` ranks."""
        every = 4 // world_size
        return list(x.split([sum(self.rows[i : i + every]) for i in range(0, 4, every)]))


CASES = [
    *(Case((5,), dtype) for dtype in TOLERANCE),
    Case((5, 7)),
    *(Case((6, 5, 3), dtype, last) for dtype in TOLERANCE for last in (False, True)),
    Case((6, 5, 3), affine=False),
    Case((6, 5, 3), momentum=None, steps=3),
    Case((6, 5, 3), track=False),
    Case((6, 5, 3), rows=(1, 7, 2, 4)),
    Case((4, 1, 1), torch.float64, rows=(1, 1, 1, 1)),
    Case((6, 5, 3), torch.float64, act=True),
]


def run_case(case: Case, norm: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Training steps with ``x`` and ``dy`` [steps, rows, ...] -> outputs, gradients, states."""
    results = {}
    for step in range(case.steps):
        rows = x[step].contiguous(memory_format=torch.channels_last) if case.channels_last else x[step]
        rows = rows.clone().requires_grad_()
        y = norm(rows)
        y.backward(dy[step])
        assert rows.grad is not None and y.stride() == rows.stride() == rows.grad.stride()
        results |= {f"y {step}": y.detach(), f"dx {step}": rows.grad}
    results |= {name: parameter.grad for name, parameter in norm.named_parameters()}
    return results | dict(norm.named_buffers())


def every_case() -> list[dict[str, torch.Tensor]]:
    """One spawn for all cases: starting processes takes longer than the norms."""
    size, rank = world().world_size, world().rank
    results = []
    for case in CASES:
        x, dy = case.joined()
        own = [torch.stack([case.split(step, size)[rank] for step in part]) for part in (x, dy)]
        results.append(run_case(case, synchronise(case.norm()), *own))
    return results


def joined_results(case: Case, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Results of the ranks as one process has them: rows joined, shares of a gradient summed, states alike."""
    joined = {}
    for name, value in parts[0].items():
        every = [part[name] for part in parts]
        if name.startswith(("y", "dx")):
            joined[name] = torch.cat(every)
        elif name in ("weight", "bias"):
            joined[name] = torch.stack(every).sum(0)
        else:
            assert all(torch.equal(value, other) for other in every), f"{case}: {name} differs between ranks"
            joined[name] = value
    return joined


def assert_alike(case: Case, found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        error = (found[name].double() - value.double()).abs().max() / value.double().abs().max()
        assert error <= TOLERANCE[case.dtype], f"{case}: {name} is off by {error:.1e} of its largest value"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_equal_one_process(world_size: int) -> None:
    ranks = run_ranks(every_case, world_size, timeout=180)
    for number, case in enumerate(CASES):
        wanted = run_case(case, case.norm(), *case.joined())
        assert_alike(case, joined_results(case, [results[number] for results in ranks]), wanted)


def test_gradcheck() -> None:
    norm = SyncBatchNorm2d(3).double()

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, (x,))

    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3, 2, 2), (3,), (3,))]
    assert torch.autograd.gradcheck(call, inputs)
    torch.library.opcheck(torch.ops.cltt.sync_batch_norm.default, (inputs[0].float(), None, None, 1e-5))


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_frozen_parameters_and_gradients_nobody_asks_for(frozen: tuple[str, ...]) -> None:
    """The gradient of the input needs the sums of the parameters' gradients, whether these are asked for or not."""
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    gradients = []
    for norm in (nn.BatchNorm2d(3).double(), SyncBatchNorm2d(3).double()):
        for name in frozen:
            getattr(norm, name).requires_grad_(False)
        gradients.append(torch.autograd.grad(norm(x).pow(3).sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-11, atol=1e-12)


def test_a_norm_that_nothing_trains_makes_no_graph_and_no_second_derivative() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    norm = SyncBatchNorm1d(3).double()
    assert norm(x).requires_grad and not norm.requires_grad_(False)(x).requires_grad
    y = norm(x.requires_grad_()).pow(3).sum()
    with pytest.raises(RuntimeError, match="BatchNorm over ranks has no second derivative"):
        torch.autograd.grad(y, x, create_graph=True)


def test_what_the_gradient_keeps_is_freed_with_the_output() -> None:
    """The hook on the output's node must not lead back to the node."""
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    gc.disable()
    try:
        kept = weakref.ref(pixels := x * 2)
        y = SyncBatchNorm2d(3)(pixels)
        del pixels
        assert kept() is not None
        del y
        assert kept() is None
    finally:
        gc.enable()


def test_names_states_and_evaluation_stay_those_of_torch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16))
    plain, own = copy.deepcopy(model), synchronise(model)
    assert [type(module) for module in own][1::2] == [SyncBatchNorm2d, SyncBatchNorm1d]
    assert list(own.state_dict()) == list(plain.state_dict())
    x = torch.randn(5, 3, 2, 2)
    for module in (plain, own):
        module(x)
    plain.load_state_dict(own.state_dict())
    assert torch.equal(own.eval()(x), plain.eval()(x))
    assert not own(x).equal(own.train()(x)), "evaluation takes the running statistics"


def test_autocast_keeps_statistics_in_float32() -> None:
    """As nn.BatchNorm: bfloat16 in and out, float32 statistics, parameters and their gradients."""
    torch.manual_seed(0)
    x = torch.randn(64, 8, 6, 6) * 3 + 100  # in bfloat16 the mean of such values is off by up to 0.25
    results = []
    for norm in (nn.BatchNorm2d(8), SyncBatchNorm2d(8)):
        with torch.autocast("cpu", torch.bfloat16):
            y = norm(x.bfloat16())
        y.float().pow(2).sum().backward()
        assert y.dtype == torch.bfloat16 and norm.weight.grad.dtype == torch.float32
        results.append((y.detach().float(), norm.running_mean, norm.running_var, norm.weight.grad))
    for found, wanted, tolerance in zip(results[1], results[0], (2**-7, 2e-6, 2e-6, 2**-7), strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize(("rows", "channels"), [(0, 3), (1, 3)])
def test_too_few_values_are_refused(rows: int, channels: int) -> None:
    with pytest.raises(ValueError, match="rows on every rank and 2 values per channel"):
        SyncBatchNorm1d(channels)(torch.zeros(rows, channels))


def unused_on_one_rank() -> torch.Tensor | None:
    """The output of one rank is not used; its rows still count, and the other rank must not wait for it."""
    norm = SyncBatchNorm1d(3).double()
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(world().rank))
    y = norm(x.requires_grad_())
    (y.pow(3) if world().rank == 0 else y * 0).sum().backward()
    return x.grad


def test_an_output_of_no_weight_still_gets_the_gradient_of_the_statistics() -> None:
    first, second = (grad for grad in run_ranks(unused_on_one_rank, 2, timeout=180))
    x = torch.cat([torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(r)) for r in (0, 1)])
    nn.BatchNorm1d(3).double()(x.requires_grad_())[:4].pow(3).sum().backward()
    torch.testing.assert_close(torch.cat([first, second]), x.grad, rtol=1e-11, atol=1e-12)


# ---- torch.compile


def small_network() -> nn.Module:
    torch.manual_seed(3)
    return synchronise(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
        )
    )


def compiled_against_eager() -> float:
    """Two steps of a compiled network that may not break, against the same without compilation: largest difference."""
    eager, compiled = small_network().double(), small_network().double()
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(world().rank)
    for _ in range(2):
        x = torch.randn(4, 3, 9, 9, dtype=torch.float64, generator=generator)
        for network in (eager, run):
            network(x).pow(3).sum().backward()
    pairs = [
        *zip(eager.buffers(), compiled.buffers(), strict=True),
        *((a.grad, b.grad) for a, b in zip(eager.parameters(), compiled.parameters(), strict=True)),
    ]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.slow
def test_compiles_without_a_graph_break_over_ranks() -> None:
    assert max(run_ranks(compiled_against_eager, 2, timeout=240)) < 1e-10


# ---- the way through CUDA's kernels, with these written out in plain torch


def kernel_stats(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    dims = [d for d in range(x.dim()) if d != 1]
    var, mean = torch.var_mean(x.float(), dims, correction=0)
    return mean, torch.rsqrt(var + eps)


def kernel_gather(x, mean, invstd, running_mean, running_var, momentum, eps, counts):  # type: ignore[no-untyped-def]
    """``batch_norm_reduce_statistics_kernel``: pairwise; moves the running statistics by the unbiased variance."""
    assert counts.dtype == running_mean.dtype == mean.dtype and mean.shape == invstd.shape == (len(counts), x.shape[1])
    n, average, squares = 0.0, torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    for m, s, count in zip(mean, invstd, counts.tolist(), strict=True):
        squares += (s**-2 - eps) * count + (average - m) ** 2 * n * count / (n + count)
        average = (n * average + count * m) / (n + count)
        n += count
    running_mean.copy_((1 - momentum) * running_mean + momentum * average)
    running_var.copy_((1 - momentum) * running_var + momentum * squares / (n - 1))
    return average, torch.rsqrt(squares / n + eps)


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))


def kernel_elemt(x, weight, bias, mean, invstd, eps):  # type: ignore[no-untyped-def]
    y = (x.float() - per_channel(mean, x)) * per_channel(invstd, x)
    if weight is not None:
        y = y * per_channel(weight, x) + per_channel(bias, x)
    return y.to(x.dtype)


def kernel_backward_reduce(dy, x, mean, invstd, weight, input_g, weight_g, bias_g):  # type: ignore[no-untyped-def]
    assert input_g and weight_g and bias_g and weight.dtype == mean.dtype and dy.stride() == x.stride()
    dims = [d for d in range(x.dim()) if d != 1]
    sum_dy = dy.float().sum(dims)
    sum_dy_xmu = (dy.float() * (x.float() - per_channel(mean, x))).sum(dims)
    return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd, sum_dy.clone()


def kernel_backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count):  # type: ignore[no-untyped-def]
    assert count.dtype == torch.int32 and weight.dtype == mean.dtype
    n = int(count.sum())
    centred = x.float() - per_channel(mean, x)
    dx = dy.float() - per_channel(sum_dy / n, x) - centred * per_channel(invstd**2 * sum_dy_xmu / n, x)
    return (dx * per_channel(invstd * weight, x)).to(x.dtype)


KERNELS = {
    "batch_norm_stats": kernel_stats,
    "batch_norm_gather_stats_with_counts": kernel_gather,
    "batch_norm_elemt": kernel_elemt,
    "batch_norm_backward_reduce": kernel_backward_reduce,
    "batch_norm_backward_elemt": kernel_backward_elemt,
}
CUDA_CASES = [case for case in CASES if case.dtype == torch.float32]


def every_case_by_kernels() -> list[dict[str, torch.Tensor]]:
    for name, kernel in KERNELS.items():
        setattr(torch, name, kernel)
    sync_batchnorm._forward_plain = sync_batchnorm._forward_cuda
    sync_batchnorm._backward_plain = sync_batchnorm._backward_cuda
    sync_batchnorm._eager_plain = lambda x, norm: sync_batchnorm._EagerCuda.apply(x, norm.weight, norm.bias, norm)
    return [results for case, results in zip(CASES, every_case(), strict=True) if case in CUDA_CASES]


def test_the_way_through_cudas_kernels() -> None:
    """What is passed to the kernels, in which type, and what is made of their results."""
    ranks = run_ranks(every_case_by_kernels, 2, timeout=180)
    for number, case in enumerate(CUDA_CASES):
        wanted = run_case(case, case.norm(), *case.joined())
        assert_alike(case, joined_results(case, [results[number] for results in ranks]), wanted)


def test_the_kernels_exist_with_these_arguments() -> None:
    """The stand-ins above take what torch's operators take, in that order."""
    for name, kernel in KERNELS.items():
        wanted = [argument.name for argument in getattr(torch.ops.aten, name).default._schema.arguments]
        code = kernel.__code__
        assert code.co_argcount == len(wanted), f"{name} takes {wanted}"


# ---- the whole model


def test_the_whole_model_is_one_graph() -> None:
    """As one of four ranks: ResNet-18 and the head, forward, with no break at any of its 21 norms."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        encoder = build_encoder("resnet18")
        model = synchronise(ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim, 8)))
        assert sum(isinstance(module, (SyncBatchNorm1d, SyncBatchNorm2d)) for module in model.modules()) == 21
        found = torch._dynamo.explain(model)(torch.randn(2, 2, 3, 32, 32))
    finally:
        dist.destroy_process_group()
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_an_unknown_kind_of_norm_is_refused() -> None:
    with pytest.raises(SettingsError, match="0 of the model is a BatchNorm3d"):
        synchronise(nn.Sequential(nn.BatchNorm3d(4)))
