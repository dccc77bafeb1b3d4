"""The InfoNCE loss over windows: the frames of one window are positives of each other.

The rows of z [B, T, D] are scaled to unit length. With S = z z^T / temperature and P = same window, not self,

    loss = mean over P_ij = 1 of  -(S_ij - logsumexp over k != i of S_ik).

The matrix S has N x N entries, N = B*T. Only :func:`reference_loss` holds it. The fused backends compute it tile by
tile and keep the log-sum-exp (lse) of each row. The positive term needs only the sum of z over each window. As S is
symmetric, its gradient

    dS + dS^T = (exp(S_ij - lse_i) + exp(S_ij - lse_j)) / N  -  2 P_ij / (N (T-1))       (off the diagonal)

needs only the log-sum-exps of the rows, so a second pass over the tiles gives it.

Over ranks, z is gathered, then the log-sum-exps. Each rank then computes the whole gradient of its own rows:

              columns = frames of all ranks
    rank 0    [ own | rank 1's | rank 2's ]    its rows against all columns
    rank 1    [ ... | own      | ...      ]

The loss is that of SupCon (Khosla et al. 2020, https://arxiv.org/abs/2004.11362, L_out) with windows as classes. The
log-sum-exp over tiles follows FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from cltt.config import require
from cltt.distributed import RankInfo, all_gather_integers, all_gather_rows, world
from cltt.errors import SettingsError
from cltt.loss import chunked
from cltt.loss.memory import WindowMemory
from cltt.loss.reference import reference_accuracy, reference_loss, unit_rows, working_dtype
from cltt.loss.weighted import Weighted
from cltt.machine.triton_runs import why_triton_fails

BACKENDS = ("auto", "reference", "chunked", "triton")
_TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


class TemporalInfoNCE(torch.nn.Module):
    """InfoNCE over windows, without the N x N matrix, over one process or all ranks.

    Args:
        temperature: divides the cosine similarities; above 0.
        backend: ``reference`` (dense, for checks), ``chunked`` (plain torch, any device), ``triton`` (CUDA kernels), or
            ``auto``: triton if it can run, else chunked.
        gather: take the frames of all ranks as negatives; False: only this rank's frames, with a loss of its own.
        ignore_gap: with ids given, pairs of windows of one clip at most this many frames apart are ignored, too.
        hard_negatives: beta, 0 or more: how much more a similar negative counts (:mod:`cltt.loss.weighted`).
        memory: number of windows of earlier batches that are additional negatives (:mod:`cltt.loss.memory`). It needs
            ``gather`` and ids, so that remembered windows that overlap the anchor's are ignored. Each forward pass
            with gradients in training mode appends the joined batch; ``state_dict()`` holds the remembered windows.

    Called with ``z`` [b, T, D] (fp64, fp32, bf16 or fp16; any strides), it returns an fp32 scalar (fp64 for fp64). It
    computes in at least fp32 with autocast off, except for the products of ``triton``: half inputs, and fp32 inputs
    under autocast, are multiplied as unit rows rounded to half precision and summed in fp32. The error of a logit, and
    of the loss, is then at most 0.01 / temperature in bf16 (0.002 in fp16), that of the gradient 1% of its largest
    entry.

    With ``clip_ids`` [b] and ``frame_ids`` [b, T] (integers, any device), pairs of frames from two windows of one clip
    are ignored (neither positive nor negative) if the windows overlap in time: if ``start_i <= end_j + ignore_gap``
    and ``start_j <= end_i + ignore_gap``, where start and end are the lowest and highest frame id of a window.

    With ``return_accuracy=True`` it also returns the retrieval accuracy: the share of anchors whose most similar other
    frame, ignored pairs aside, is of the same window. A tie with a frame of another window is a miss, so a collapsed
    encoder scores 0 (except for ties that rounding breaks). It has no gradient, and it does not use the memory.

    Over W ranks every rank returns the loss of the joined batch. z.grad is W times the rank's rows of the gradient, so
    the mean over ranks in DistributedDataParallel is the gradient of one process.

    ``reference`` and ``chunked`` compute hard negatives and memory; ``auto`` chooses chunked for them.

    NaN in any row gives a NaN loss and a NaN accuracy. Only ``reference`` can be differentiated twice; the others raise
    RuntimeError.

    Raises SettingsError, on every rank, for a wrong shape or dtype, ids that do not fit, ranks with different shapes,
    and a backend that cannot run.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        backend: str = "auto",
        gather: bool = True,
        ignore_gap: int = 0,
        hard_negatives: float = 0.0,
        memory: int = 0,
    ) -> None:
        super().__init__()
        require(
            0 < temperature < math.inf,
            f"temperature is {temperature}; it must be above 0 and finite (0.05 to 1 is usual)",
        )
        require(backend in BACKENDS, f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
        require(ignore_gap >= 0, f"ignore_gap is {ignore_gap}; it must be 0 or more frames")
        require(
            0 <= hard_negatives < math.inf,
            f"hard_negatives is {hard_negatives}; it must be 0 or more (0.5 to 2 is usual)",
        )
        require(memory >= 0, f"memory is {memory}; it must be 0 or more windows")
        require(gather or not memory, f"memory is {memory}, but gather is False; a memory holds windows of all ranks")
        plain = not (hard_negatives or memory)
        require(
            plain or backend != "triton", "backend 'triton' does not support hard_negatives or memory: use 'chunked'"
        )
        self.temperature = temperature
        self.backend = backend if plain or backend != "auto" else "chunked"
        self.gather = gather
        self.ignore_gap = ignore_gap
        self.hard_negatives = hard_negatives
        self.memory = WindowMemory(memory) if memory else None

    def forward(
        self,
        z: torch.Tensor,
        clip_ids: torch.Tensor | None = None,
        frame_ids: torch.Tensor | None = None,
        *,
        return_accuracy: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The loss of ``z`` [b, T, D], and the retrieval accuracy if asked for; see the class."""
        info = world() if self.gather else RankInfo()
        signature = self._signature(z, clip_ids, return_accuracy)
        _check_on_all_ranks(lambda: _check(z, clip_ids, frame_ids, self.memory), signature, info)
        products = _autocast_dtype(z)
        with torch.autocast(z.device.type, enabled=False):
            spans = self._spans(z, clip_ids, frame_ids, info)
            loss, accuracy = self._evaluate(z, spans, info, return_accuracy, products)
            if self.memory is not None and spans is not None and self.training and torch.is_grad_enabled():
                self.memory.append(all_gather_rows(unit_rows(z.detach().float(), 1.0)).view(-1, *z.shape[1:]), spans)
        # NaN * 0 is NaN: a NaN loss makes the accuracy NaN.
        return (loss, accuracy + 0 * loss.detach()) if return_accuracy else loss

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        names = ("temperature", "backend", "gather", "ignore_gap", "hard_negatives")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _signature(self, z: torch.Tensor, clip_ids: torch.Tensor | None, return_accuracy: bool) -> tuple[int, ...]:
        """Eleven numbers that must be the same on all ranks before their rows are gathered."""
        shape = (*z.shape, 0, 0, 0)[:3]
        hashes = (hash(number) & 0x7FFFFFFF for number in (self.temperature, self.hard_negatives))
        settings = (
            BACKENDS.index(self.backend),
            *hashes,
            self.ignore_gap,
            0 if self.memory is None else len(self.memory),
        )
        return (*shape, _TYPES.get(z.dtype, -1), int(clip_ids is not None), int(return_accuracy), *settings)

    def _spans(
        self, z: torch.Tensor, clip_ids: torch.Tensor | None, frame_ids: torch.Tensor | None, info: RankInfo
    ) -> torch.Tensor | None:
        """Clip, first frame and last frame plus the gap of all ranks' windows: int64 [B, 3]."""
        if clip_ids is None or frame_ids is None:
            return None
        frames = frame_ids.long()
        columns = [clip_ids.long().to(frames.device), frames.amin(1), frames.amax(1) + self.ignore_gap]
        spans = torch.stack(columns, 1)
        if z.is_cuda and spans.device.type == "cpu":  # pinned memory, so that the host does not wait for queued work
            spans = spans.pin_memory()
        spans = spans.to(z.device, non_blocking=z.is_cuda)
        return all_gather_rows(spans) if info.world_size > 1 else spans

    def _evaluate(
        self,
        z: torch.Tensor,
        spans: torch.Tensor | None,
        info: RankInfo,
        with_accuracy: bool,
        products: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        backend = resolve_backend(self.backend, z)
        windows, remembered = None if spans is None else len(spans), None
        if self.memory is not None and spans is not None:
            remembered, their_spans = self.memory.columns(z)
            spans = torch.cat([spans, their_spans])
        if backend == "reference":
            ignored = None if spans is None else _dense_overlaps(spans[:windows], spans, z.shape[1])
            z = _gather_with_own_gradient(z, info)
            of_batch = None if ignored is None else ignored[:, : len(ignored)]
            accuracy = reference_accuracy(z, of_batch) if with_accuracy else z.new_zeros(())
            return reference_loss(z, self.temperature, ignored, self.hard_negatives, remembered), accuracy
        rows = chunked.Rows(
            window_size=z.shape[1],
            first=info.rank * z.shape[0] * z.shape[1],
            count=z.shape[0] * z.shape[1],
            max_abs_logit=1 / self.temperature,
            spans=spans,
        )
        kernels = self._kernels(backend, z, remembered)
        v = unit_rows(z, self.temperature * kernels.NATS)
        dtype = products or z.dtype if backend == "triton" else working_dtype(z)
        return _FusedLoss.apply(v, rows, kernels, dtype, info.world_size, with_accuracy)

    def _kernels(self, backend: str, z: torch.Tensor, remembered: torch.Tensor | None) -> ModuleType | Weighted:
        """The module or object that computes the sums over tiles."""
        if self.hard_negatives or remembered is not None:
            rows = z.new_empty(0, z.shape[2]) if remembered is None else remembered
            return Weighted(self.hard_negatives, rows.to(working_dtype(z)) * self.temperature**-0.5)
        if backend == "chunked":
            return chunked
        from cltt.loss import triton_launch  # triton is an optional package and slow to import

        return triton_launch


class _FusedLoss(torch.autograd.Function):
    """The loss of the joined batch from this rank's rows ``v`` [n, D].

    ``v`` holds unit rows divided by sqrt(temperature * NATS). The logits and log-sum-exps of the kernels are in base e
    (NATS = 1) or base 2; times NATS they are in base e.
    """

    @staticmethod
    def forward(
        ctx: Any,
        v: torch.Tensor,
        rows: chunked.Rows,
        kernels: ModuleType | Weighted,
        dtype: torch.dtype,
        world_size: int,
        with_accuracy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gather: Callable[[torch.Tensor], torch.Tensor] = all_gather_rows if world_size > 1 else lambda x: x
        v = gather(v.to(dtype))
        stats, top1_correct = kernels.row_logsumexp(v, rows, with_top1=with_accuracy)
        accuracy = stats.new_zeros(()) if top1_correct is None else gather(top1_correct).to(stats.dtype).mean()
        stats = gather(stats)  # [N] or [N, k]; the log-sum-exps of the rows come first
        lse = stats.view(len(v), -1)[:, 0]
        ctx.save_for_backward(v, stats)
        ctx.rows, ctx.kernels, ctx.world_size = rows, kernels, world_size
        ctx.mark_non_differentiable(accuracy)
        return (lse.mean() - _mean_positive(v.to(lse.dtype), rows.window_size)) * kernels.NATS, accuracy

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; torch's once_differentiable does not catch all cases
            raise RuntimeError("this loss has no second derivative; use TemporalInfoNCE(backend='reference')")
        v, stats = ctx.saved_tensors
        rows, size = ctx.rows, ctx.rows.window_size
        with torch.autocast(v.device.type, enabled=False):
            grad = ctx.kernels.grad_rows(v, stats, rows) / len(v)
            own = v[rows.first : rows.first + rows.count].to(grad.dtype)
            others = own.view(-1, size, own.shape[1]).sum(1, keepdim=True).expand(-1, size, -1).flatten(0, 1) - own
            grad.sub_(others, alpha=2 / (len(v) * (size - 1)))
            return grad.mul_(grad_loss * (ctx.world_size * ctx.kernels.NATS)), None, None, None, None, None


def resolve_backend(backend: str, z: torch.Tensor) -> str:
    """The backend that computes the loss of ``z``.

    Replaces ``auto`` by ``triton`` or ``chunked``.

    Raises SettingsError if ``backend`` is ``triton`` and cannot run.
    """
    if backend == "triton":
        reason = "" if _interpreted(z) else _why_no_triton(z)
        require(not reason, f"backend 'triton' {reason}; use backend 'auto' or 'chunked'")
    if backend == "auto":
        return "chunked" if _why_no_triton(z) else "triton"
    return backend


def _why_no_triton(z: torch.Tensor) -> str:
    """Why the Triton kernels cannot compute the loss of ``z``; "" if they can."""
    if z.dtype == torch.float64:
        return "works in fp32 at most, but z is fp64"
    if z.device.type != "cuda":
        return f"needs a CUDA device, but z is on {z.device}"
    if torch.cuda.get_device_capability(z.device) < (8, 0):
        return f"needs compute capability 8.0, but {torch.cuda.get_device_name(z.device)} is older"
    return why_triton_fails()


def _interpreted(z: torch.Tensor) -> bool:
    """Whether the kernels run in Triton's interpreter on the CPU, as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and z.device.type == "cpu" and z.dtype != torch.float64


def _autocast_dtype(z: torch.Tensor) -> torch.dtype | None:
    """The dtype in which autocast multiplies fp32 matrices.

    None if autocast is off or z is not fp32.
    """
    device = z.device.type
    return torch.get_autocast_dtype(device) if z.dtype == torch.float32 and torch.is_autocast_enabled(device) else None


def _mean_positive(v: torch.Tensor, size: int) -> torch.Tensor:
    """Mean logit of the positive pairs, from the squared length of each window's sum."""
    sums = v.view(-1, size, v.shape[1]).sum(1)
    return (sums.square().sum() - v.square().sum()) / (len(v) * (size - 1))


def _dense_overlaps(spans: torch.Tensor, columns: torch.Tensor, size: int) -> torch.Tensor:
    """The ignored pairs of frames: bool [N, N + M].

    ``columns`` holds ``spans`` and the M remembered ones.
    """
    ignored = chunked.overlapping(spans, columns)
    ignored.diagonal().fill_(False)
    return ignored.repeat_interleave(size, 0).repeat_interleave(size, 1)


def _gather_with_own_gradient(z: torch.Tensor, info: RankInfo) -> torch.Tensor:
    """The windows of all ranks in rank order.

    This rank's own get the gradient times the number of ranks.
    """
    if info.world_size == 1:
        return z
    parts = list(all_gather_rows(z.detach()).chunk(info.world_size))
    own = z.clone()
    if own.requires_grad:
        own.register_hook(lambda grad: grad * info.world_size)
    parts[info.rank] = own
    return torch.cat(parts)


def _check(
    z: torch.Tensor, clip_ids: torch.Tensor | None, frame_ids: torch.Tensor | None, memory: WindowMemory | None
) -> None:
    """Raise SettingsError unless the arguments fit each other."""
    given = f"z has shape {tuple(z.shape)}"
    require(z.ndim == 3 and z.numel() > 0, f"{given}; expected [B, T, D], none of them 0")
    require(
        z.shape[1] >= 2, f"{given}; T = {z.shape[1]}, but a frame needs at least one positive, so T >= 2 is expected"
    )
    require(z.is_floating_point(), f"z is of type {z.dtype}; a floating-point type is expected")
    if clip_ids is None and frame_ids is None:
        require(
            memory is None, "clip_ids and frame_ids are not given; a loss with memory needs them to ignore overlaps"
        )
        return
    if memory is not None:
        memory.columns(z)
    clips, frames = (None if ids is None else tuple(ids.shape) for ids in (clip_ids, frame_ids))
    expected = (z.shape[0],), tuple(z.shape[:2])
    require(
        (clips, frames) == expected,
        f"clip_ids, frame_ids have shapes {clips}, {frames}; expected {expected[0]}, {expected[1]} because {given}",
    )
    dtypes = [ids.dtype for ids in (clip_ids, frame_ids) if ids is not None]
    require(
        not any(dtype.is_floating_point or dtype.is_complex or dtype == torch.bool for dtype in dtypes),
        f"clip_ids, frame_ids are of types {', '.join(map(str, dtypes))}; integers are expected",
    )


def _check_on_all_ranks(check: Callable[[], None], signature: tuple[int, ...], info: RankInfo) -> None:
    """Run ``check`` and compare the signatures of the ranks.

    If a rank fails or differs, every rank raises.

    If one rank raised alone, the others would wait for it in the next collective.
    """
    error = None
    try:
        check()
    except SettingsError as raised:
        error = raised
    if info.world_size > 1:
        everyone = all_gather_integers((*signature, int(error is not None)))
        if error is None and len(set(everyone)) > 1:
            shapes = ", ".join(f"rank {rank} {numbers[:3]}" for rank, numbers in enumerate(everyone))
            error = SettingsError(
                f"the ranks do not agree on the loss's input: z has shape {shapes}; every rank needs the same number "
                "of windows (choose a batch size that the number of ranks divides), one type, the same loss settings, "
                "and return_accuracy and ids on all or none"
            )
    if error is not None:
        raise error
