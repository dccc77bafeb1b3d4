"""Inputs, an obvious reference and comparisons shared by the loss tests on the CPU, in the interpreter and on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from cltt.loss.infonce import TemporalInfoNCE

# Relative to the largest entry: fp32 in ieee or tf32x3 products, and what is left of a number in bf16 or fp16.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SIZES = [(1, 2, 3), (2, 2, 3), (2, 64, 5), (13, 7, 16), (45, 3, 40), (30, 5, 150)]


@dataclass(frozen=True)
class Case:
    """One batch, fp64 on the CPU: z [B, T, D], clip_ids [B], frame_ids [B, T] of windows that often overlap."""

    z: torch.Tensor
    clip_ids: torch.Tensor
    frame_ids: torch.Tensor

    def ids(self) -> dict[str, torch.Tensor]:
        return {"clip_ids": self.clip_ids, "frame_ids": self.frame_ids}


def make_case(B: int, T: int, D: int, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(B, 1, D, generator=generator, dtype=torch.float64)  # windows differ, as trained ones do
    z = torch.randn(B, T, D, generator=generator, dtype=torch.float64) + shift
    starts = torch.randint(0, 4 * T, (B, 1), generator=generator)
    clip_ids = torch.randint(0, 3, (B,), generator=generator)
    return Case(z, clip_ids, clip_ids[:, None] * 10_000_000_000 + starts + 2 * torch.arange(T))


def evaluate(
    z: torch.Tensor, temperature: float, backend: str, ids: dict[str, torch.Tensor] | None = None, ignore_gap: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, accuracy and gradient of z."""
    leaf = z.detach().clone().requires_grad_()
    loss_fn = TemporalInfoNCE(temperature, backend, ignore_gap=ignore_gap)
    loss, accuracy = loss_fn(leaf, return_accuracy=True, **(ids or {}))
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), accuracy, grad


def assert_matches_reference(
    case: Case, temperature: float, backend: str, dtype: torch.dtype, *, with_ids: bool, device: str = "cpu"
) -> None:
    """``backend`` in ``dtype`` against the dense reference in fp64 on the same (rounded) numbers."""
    ids = case.ids() if with_ids else {}
    z = case.z.to(dtype)
    loss, accuracy, grad = (x.cpu() for x in evaluate(z.to(device), temperature, backend, ids, ignore_gap=1))
    wanted_loss, wanted_accuracy, wanted_grad = evaluate(z.double(), temperature, "reference", ids, ignore_gap=1)
    scale = 1 / temperature  # the size of a logit, whose rounding is the loss's
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert abs(loss - wanted_loss) <= TOLERANCE[dtype] * max(scale, float(wanted_loss)), (loss, wanted_loss)
    # Anchors whose two best candidates lie closer than the rounding may turn either way.
    turned = close_calls(z.double(), temperature, ids, TOLERANCE[dtype] * scale)
    assert abs(accuracy - wanted_accuracy) <= turned + 1e-6, (accuracy, wanted_accuracy, turned)
    # A logit off by TOLERANCE/temperature moves a softmax weight by as much; a gradient row sums a few such weights.
    floor = scale / case.z.shape[0] / case.z.shape[1] / case.z.flatten(0, 1).norm(dim=1).min()
    bound = TOLERANCE[dtype] * max(1.0, scale / 10) * (wanted_grad.abs().max() + floor)
    assert (grad - wanted_grad).abs().max() <= bound, ((grad - wanted_grad).abs().max(), bound)


def close_calls(z: torch.Tensor, temperature: float, ids: dict[str, torch.Tensor], margin: float) -> float:
    """Share of anchors whose best positive and best negative logits differ by at most ``margin``."""
    B, T = z.shape[:2]
    rows = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    logits = rows @ rows.T / temperature
    visible = logits.masked_fill(torch.tensor(hidden_by_hand(B, T, ids, gap=1)), -math.inf)
    same = torch.arange(B * T)[:, None] // T == torch.arange(B * T) // T
    gap = visible.masked_fill(~same, -math.inf).amax(1) - visible.masked_fill(same, -math.inf).amax(1)
    return float((gap.abs() <= margin).double().mean())


def hidden_by_hand(B: int, T: int, ids: dict[str, torch.Tensor], gap: int) -> list[list[bool]]:
    """What leaves the denominator, frame pair by frame pair: self, and overlapping windows of one clip."""
    clips = ids["clip_ids"].tolist() if ids else []
    frames = ids["frame_ids"].tolist() if ids else []

    def overlap(a: int, b: int) -> bool:
        if not ids or a == b or clips[a] != clips[b]:
            return False
        return min(frames[a]) <= max(frames[b]) + gap and min(frames[b]) <= max(frames[a]) + gap

    windows = [[overlap(a, b) for b in range(B)] for a in range(B)]
    return [[i == j or windows[i // T][j // T] for j in range(B * T)] for i in range(B * T)]


def loss_by_hand(z: torch.Tensor, temperature: float, ids: dict[str, torch.Tensor], gap: int) -> tuple[float, float]:
    """The formula in plain Python loops: loss and retrieval accuracy."""
    B, T, _ = z.shape
    rows = [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in z.flatten(0, 1).tolist()]
    S = [[sum(x * y for x, y in zip(a, b, strict=True)) / temperature for b in rows] for a in rows]
    hidden = hidden_by_hand(B, T, ids, gap)
    terms, hits = [], []
    for i in range(B * T):
        others = [k for k in range(B * T) if not hidden[i][k]]
        log_sum = math.log(sum(math.exp(S[i][k]) for k in others))
        terms += [log_sum - S[i][j] for j in range(B * T) if j != i and j // T == i // T]
        hits.append(max(others, key=lambda k, row=S[i]: row[k]) // T == i // T)  # type: ignore[misc]
    return sum(terms) / len(terms), sum(hits) / len(hits)
