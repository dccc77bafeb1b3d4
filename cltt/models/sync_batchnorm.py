"""BatchNorm with the statistics of the whole batch over all ranks.

It gives the results of one process's ``nn.BatchNorm`` on the joined batch, with one collective in the forward pass and
one in the backward pass. It differs from torch's ``SyncBatchNorm``: it runs on any device, the host never waits for the
device, and ``torch.compile`` treats it as one operator, so a norm never breaks a graph. The collectives use the default
process group; without one there is a single rank.

Each rank computes mean and variance of its own values. These and the number of values per channel (n, times H * W for
images) are gathered and combined (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances", 1979), which loses no digits as sums of squares would. The gradient needs the sums of dy and of dy *
(x - mean) over all ranks (Ioffe and Szegedy, arXiv:1502.03167). On CUDA torch's own kernels compute both passes.

Letters: n rows, C channels, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cltt import distributed
from cltt.config import require

# y, mean, invstd, unbiased_var, counts
Forward = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Backward = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # dx, dweight, dbias


class _SyncMixin(_BatchNorm):
    """Computes the forward pass in training; in evaluation the parent class does."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if not torch.compiler.is_compiling():
            if input.is_cuda:
                return _EagerCuda.apply(input, self.weight, self.bias, self)
            return _eager_plain(input, self)
        y, mean, _, unbiased_var, _ = _compiled(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.update_running(mean, unbiased_var)
        return y

    def update_running(self, mean: torch.Tensor, unbiased_var: torch.Tensor) -> None:
        """Update the running statistics: exponentially or, without momentum, as the mean."""
        if not self.track_running_stats:
            return
        count, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        if count is None or running_mean is None or running_var is None:
            return
        count.add_(1)
        share = self.momentum if self.momentum is not None else (1 / count).to(running_mean.dtype)
        running_mean.lerp_(_typed(mean, running_mean.dtype), share)
        running_var.lerp_(_typed(unbiased_var, running_mean.dtype), share)


class SyncBatchNorm1d(_SyncMixin, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over all ranks: [n, C] or [n, C, L] with n >= 1 on each.

    It has the same parameters and buffers.
    """


class SyncBatchNorm2d(_SyncMixin, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over all ranks: [n, C, H, W] with n >= 1 on each.

    It has the same parameters and buffers.
    """


class _SyncActMixin(_SyncMixin):
    """For timm's ``BatchNormAct2d``: a norm followed by ``drop`` and ``act``."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        y = super().forward(input)
        return self.act(self.drop(y)) if self.training else y


def synchronise(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm of ``model`` in place by one over all ranks.

    Parameters and buffers stay.

    Raises SettingsError for an unknown class of BatchNorm, as its statistics would differ between ranks.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, _SyncMixin):
            module.__class__ = _synchronised(name, type(module))
    return model


def _synchronised(name: str, kind: type[_BatchNorm]) -> type[_BatchNorm]:
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        return SyncBatchNorm1d if kind is nn.BatchNorm1d else SyncBatchNorm2d
    require(
        kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."),
        f"{name} of the model is a {kind.__name__}, whose statistics cannot be computed over ranks; "
        "train this backbone with one process, or choose another",
    )
    return type("SyncBatchNormAct2d", (_SyncActMixin, kind), {})


def _forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [n, C, ...] -> y like x.

    Mean, 1/std and unbiased variance [C]; values per channel of each rank [R].

    Statistics are float32, or float64 for float64 input. Raises ValueError for no rows on this rank, or for a single
    value per channel over all ranks.
    """
    _check_rows(x)
    forward = _forward_cuda if x.is_cuda else _forward_plain
    return forward(x.contiguous(memory_format=_layout(x)), weight, bias, eps)


def _check_rows(x: torch.Tensor) -> None:
    own = x.numel() // max(1, x.shape[1])
    if own == 0 or (own == 1 and distributed.world().world_size == 1):
        raise ValueError(
            f"BatchNorm in training needs rows on every rank and 2 values per channel; got {tuple(x.shape)}"
        )


def _fake_forward(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> Forward:
    mean, invstd, unbiased_var = (x.new_empty(x.shape[1], dtype=_statistics_type(x)) for _ in range(3))
    counts = mean.new_empty(distributed.world().world_size)
    return torch.empty_like(x, memory_format=_layout(x)), mean, invstd, unbiased_var, counts


def _forward_plain(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> Forward:
    wide = x.to(_statistics_type(x))
    mean, var, counts = _statistics(wide)
    y = _normalised(wide, mean, var, weight, bias, eps)
    total = counts.sum()
    return y.to(x.dtype), mean, torch.rsqrt(var + eps), var * (total / (total - 1)), counts.clone()


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and variance [C] over all ranks, and the values per channel of each rank [R]."""
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    if distributed.world().world_size == 1:
        return mean, var, _count(x.numel() // x.shape[1], mean.dtype, mean.device)
    means, variances, counts = _gathered(mean, var, x)
    shares = (counts / counts.sum()).unsqueeze(1)  # no matrix product: autocast would round it
    mean = (shares * means).sum(0)
    apart = means - mean
    return mean, (shares * torch.addcmul(variances, apart, apart)).sum(0), counts


def _forward_cuda(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> Forward:
    """The forward pass by torch's kernels.

    The kernel that combines the statistics updates running ones. With momentum 1 it writes the batch's own there.
    """
    means, invstds, counts = _gathered(*torch.batch_norm_stats(x, eps), x)
    batch_mean, unbiased_var = torch.zeros_like(means[0]), torch.zeros_like(means[0])
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        x, means, invstds, batch_mean, unbiased_var, 1.0, eps, counts
    )
    return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps), mean, invstd, unbiased_var, counts.clone()


def _gathered(mean: torch.Tensor, spread: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Gather two vectors [C] and the values per channel of each rank -> [R, C], [R, C], [R]."""
    count = _count(x.numel() // x.shape[1], mean.dtype, mean.device)
    rows = distributed.all_gather_rows(torch.cat([mean, spread, count]).unsqueeze(0))
    means, spreads, counts = torch.split_with_sizes(rows, [len(mean), len(mean), 1], 1)
    return means, spreads, counts.flatten()


@lru_cache(maxsize=64)
def _count(values: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``values`` as a tensor [1]. It is shared, so it must not be changed."""
    return torch.full((1,), values, dtype=dtype, device=device)


def _gradients(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    counts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, and this rank's part of dweight [C] and dbias [C].

    Their sums over ranks are the gradients.
    """
    x = x.contiguous(memory_format=_layout(x))
    dy = dy.contiguous(memory_format=_layout(x))
    weight = torch.ones_like(mean) if weight is None else weight.to(mean.dtype)
    return (_backward_cuda if x.is_cuda else _backward_plain)(dy, x, weight, mean, invstd, counts)


def _fake_gradients(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, mean: torch.Tensor, *_: torch.Tensor
) -> Backward:
    return torch.empty_like(x, memory_format=_layout(x)), torch.empty_like(mean), torch.empty_like(mean)


def _backward_plain(dy: torch.Tensor, *saved: torch.Tensor) -> Backward:
    """dx = weight/std * (dy - mean(dy) - (x - mean)/var * mean(dy*(x - mean))), over all ranks."""
    x, weight, mean, invstd, counts = saved
    wide, var = x.to(mean.dtype), invstd**-2
    dx, dweight, dbias = _constant_gradients(dy.to(mean.dtype), wide, weight, mean, var, 0.0)
    _complete(dx, wide, weight, mean, var, 0.0, dweight, dbias, counts.sum())
    return dx.to(x.dtype), dweight, dbias


def _constant_gradients(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, eps: float
) -> Backward:
    """dx = weight/std * dy: the gradients in evaluation, where mean and variance do not depend on x."""
    return torch.ops.aten.native_batch_norm_backward(
        dy, x, weight, mean, var, None, None, False, eps, [True, True, True]
    )


def _complete(
    dx: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
    dweight: torch.Tensor,
    dbias: torch.Tensor,
    total: torch.Tensor | int,
) -> None:
    """Subtract from ``dx``, the gradient for constant mean and variance, the part that goes through these."""
    scale = torch.rsqrt(var + eps).mul_(weight).div_(total)
    # From the sums of dy * (x - mean) / std, and of dy.
    slope, offset = distributed.all_sum(torch.cat([dweight, dbias])).view(2, -1).mul_(scale).unbind()
    dx.sub_(torch.native_batch_norm(x, slope, offset, mean, var, False, 0.0, eps)[0])


def _backward_cuda(dy: torch.Tensor, *saved: torch.Tensor) -> Backward:
    x, weight, mean, invstd, counts = saved
    sum_dy, sum_dyx, dweight, dbias = torch.batch_norm_backward_reduce(dy, x, mean, invstd, weight, True, True, True)
    sum_dy, sum_dyx = distributed.all_sum(torch.cat([sum_dy, sum_dyx])).chunk(2)
    dx = torch.batch_norm_backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dyx, counts.to(torch.int32))
    return dx, dweight, dbias


def _normalised(
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, in one pass."""
    weight = None if weight is None else _typed(weight, mean.dtype)
    bias = None if bias is None else _typed(bias, mean.dtype)
    return torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, _ = inputs
    _, mean, invstd, _, counts = output
    ctx.set_materialize_grads(False)
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight, mean, invstd, counts)


def _backward(gradients: Callable[..., Backward], ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    x, weight, mean, invstd, counts = ctx.saved_tensors
    if dy is None:  # y is not used on this rank, but the other ranks wait for its sums
        dy = torch.zeros_like(x)
    dx, dweight, dbias = gradients(dy, x, weight, mean, invstd, counts)
    return (
        dx,
        None if weight is None else dweight.to(weight.dtype),
        None if ctx.bias_type is None else dbias.to(ctx.bias_type),
        None,
    )


def _eager_plain(x: torch.Tensor, norm: _SyncMixin) -> torch.Tensor:
    """Both passes by torch's operator for constant statistics; a hook adds to its gradient what they leave out.

    A custom operator or a Function would take longer than the kernels.
    """
    _check_rows(x)
    x_type, dtype = x.dtype, _statistics_type(x)
    x = _typed(x.contiguous(memory_format=_layout(x)), dtype)
    weight, bias = norm.weight, norm.bias
    with torch.no_grad():
        mean, var, counts = _statistics(x)
        total = x.numel() // x.shape[1] if len(counts) == 1 else counts.sum()
        norm.update_running(mean, var * (total / (total - 1)))
    y = _normalised(x, mean, var, weight, bias, norm.eps)
    if x.requires_grad and y.grad_fn is not None:
        slope = torch.ones_like(mean) if weight is None else _typed(weight.detach(), dtype)
        y.grad_fn.register_hook(partial(_complete_gradient, x.detach(), slope, mean, var, norm.eps, total))
    return _typed(y, x_type)


def _complete_gradient(
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
    total: torch.Tensor | int,
    gradients: tuple[torch.Tensor | None, ...],
    dy: tuple[torch.Tensor, ...],
) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("BatchNorm over ranks has no second derivative")
    dx, dweight, dbias = gradients
    if dx is None:
        return
    if dweight is None or dbias is None:  # nobody asked for them, but dx needs them
        _, dweight, dbias = _constant_gradients(dy[0], x, weight, mean, var, eps)
    _complete(dx, x, weight, mean, var, eps, dweight, dbias, total)


class _EagerCuda(torch.autograd.Function):
    """Calls both passes directly.

    The dispatch of a custom operator takes several times as long as their kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, norm: _SyncMixin
    ) -> torch.Tensor:
        output = _forward(x, weight, bias, norm.eps)
        _save(ctx, (x, weight, bias, norm.eps), output)
        norm.update_running(output[1], output[3])
        return output[0]

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # torch's once_differentiable takes longer than the kernels
            raise RuntimeError("BatchNorm over ranks has no second derivative")
        return _backward(_gradients, ctx, dy)


_compiled = torch.library.custom_op("cltt::sync_batch_norm", _forward, mutates_args=())
_compiled.register_fake(_fake_forward)
_compiled_gradients = torch.library.custom_op("cltt::sync_batch_norm_backward", _gradients, mutates_args=())
_compiled_gradients.register_fake(_fake_gradients)
_compiled.register_autograd(lambda ctx, dy, *_: _backward(_compiled_gradients, ctx, dy), setup_context=_save)


def _typed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As ``x.to(dtype)``, without the microsecond that torch takes even where there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def _statistics_type(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _layout(x: torch.Tensor) -> torch.memory_format:
    """The memory format of ``x``: channels-last, or else contiguous."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
