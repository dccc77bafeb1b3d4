"""Hard negatives and remembered windows: values by hand, gradients, ranks, resumes and memory."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cltt.distributed import world
from cltt.errors import SettingsError
from cltt.loss import chunked as chunked_module
from cltt.loss.infonce import TemporalInfoNCE
from cltt.loss.memory import WindowMemory
from tests.helpers.ddp import run_ranks
from tests.helpers.largest import LargestTensor
from tests.helpers.loss_cases import Case, make_case

BACKENDS = ["reference", "chunked"]


def by_hand(batches: list[Case], beta: float, capacity: int, gap: int, temperature: float) -> float:
    """The loss of the last batch in plain loops; the batches before it are remembered."""
    *earlier, case = batches
    B, T, _ = case.z.shape
    remembered = [(c, w) for c in earlier for w in range(len(c.z))][-capacity:] if capacity else []

    def unit(row: torch.Tensor) -> list[float]:
        return (row / row.norm()).tolist()

    def span(c: Case, w: int) -> tuple[int, int, int]:
        return int(c.clip_ids[w]), int(c.frame_ids[w].min()), int(c.frame_ids[w].max())

    windows = [(case, w) for w in range(B)] + remembered
    total = 0.0
    for i in range(B * T):
        anchor, (clip, start, end) = unit(case.z.flatten(0, 1)[i]), span(case, i // T)
        positives, negatives = [], []
        for number, (c, w) in enumerate(windows):
            other = span(c, w)
            logits = [sum(a * b for a, b in zip(anchor, unit(row), strict=True)) / temperature for row in c.z[w]]
            if number == i // T:
                positives += [s for k, s in enumerate(logits) if k != i % T]
            elif not (other[0] == clip and start <= other[2] + gap and other[1] <= end + gap):
                negatives += logits
        weights = [math.exp(beta * s) for s in negatives]
        hard = sum(w * math.exp(s) for w, s in zip(weights, negatives, strict=True))
        denominator = sum(map(math.exp, positives)) + (len(negatives) * hard / sum(weights) if negatives else 0)
        total += sum(math.log(denominator) - s for s in positives) / len(positives)
    return total / (B * T)


def after(loss_fn: TemporalInfoNCE, batches: list[Case]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, accuracy and gradient of the last batch, once ``loss_fn`` has seen the others."""
    for case in batches:
        z = case.z.clone().requires_grad_()
        loss, accuracy = loss_fn(z, **case.ids(), return_accuracy=True)
        (grad,) = torch.autograd.grad(loss, z)
    return loss.detach(), accuracy, grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("beta", "capacity"), [(0.7, 0), (2.0, 0), (0.0, 4), (0.0, 100), (1.0, 7)])
def test_the_loss_by_hand(backend: str, beta: float, capacity: int) -> None:
    batches = [make_case(5, 3, 4, seed) for seed in range(3)]
    for case in batches:  # what is remembered is float32
        case.z.copy_(torch.nn.functional.normalize(case.z, dim=2).float())
    loss_fn = TemporalInfoNCE(0.4, backend, ignore_gap=1, hard_negatives=beta, memory=capacity)
    loss, _, _ = after(loss_fn, batches)
    assert loss.item() == pytest.approx(by_hand(batches, beta, capacity, 1, 0.4), rel=1e-6)
    if capacity:
        alone = TemporalInfoNCE(0.4, backend, ignore_gap=1, hard_negatives=beta)(batches[-1].z, **batches[-1].ids())
        assert loss.item() > alone.item() + 1e-3, "nothing was remembered"


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(2, 5), st.integers(1, 7)),
    st.sampled_from([0.05, 0.5]),
    st.sampled_from([0.0, 0.5, 3.0]),
    st.sampled_from([0, 1, 8, 30]),
    st.sampled_from([1, 7, 512]),
    st.integers(0, 99),
)
def test_chunked_is_the_reference(
    size: tuple[int, int, int], temperature: float, beta: float, capacity: int, side: int, seed: int
) -> None:
    batches = [make_case(*size, seed + k) for k in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_module, "_TILE_SIDE", {"cpu": side})
        got, wanted = (
            after(TemporalInfoNCE(temperature, name, hard_negatives=beta, memory=capacity), batches)
            for name in ("chunked", "reference")
        )
    for value, expected in zip(got, wanted, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_either_it_is_the_plain_loss(backend: str) -> None:
    case = make_case(6, 3, 5)
    plain, zero, almost = (after(TemporalInfoNCE(0.2, backend, hard_negatives=beta), [case]) for beta in (0.0, 0, 1e-9))
    for value, same, close in zip(plain, zero, almost, strict=True):
        assert value.equal(same)
        torch.testing.assert_close(close, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("beta", "capacity"), [(0.8, 0), (0.0, 6), (2.0, 6)])
def test_the_gradient_by_differences(beta: float, capacity: int) -> None:
    cases = [make_case(4, 3, 3, seed) for seed in range(2)]
    loss_fn = TemporalInfoNCE(0.5, "chunked", hard_negatives=beta, memory=capacity)
    after(loss_fn, cases[:1])
    loss_fn.eval()  # remembers nothing more
    z = (cases[1].z * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_fn(x, **cases[1].ids()), (z,), eps=1e-7, atol=1e-5, rtol=1e-4)


def test_a_moment_is_not_its_own_negative() -> None:
    """What is remembered of the anchor's own time is hidden; the same pixels of another clip are negatives."""
    case = make_case(6, 3, 5)
    apart = Case(case.z, torch.zeros(6, dtype=torch.int64), 10 * torch.arange(6)[:, None] + torch.arange(3))
    whole_clip = Case(case.z, apart.clip_ids, torch.tensor([[0, 30, 60]] * 6))
    alone = after(TemporalInfoNCE(0.3, "chunked"), [apart])[0]
    for clip, wanted in ((0, alone), (1, None)):
        loss = after(
            TemporalInfoNCE(0.3, "chunked", memory=6), [replace(whole_clip, clip_ids=apart.clip_ids + clip), apart]
        )[0]
        assert loss == pytest.approx(wanted.item(), rel=1e-12) if wanted is not None else loss > alone + 0.1


def test_a_restored_memory_goes_on_with_the_same_bits() -> None:
    batches = [make_case(5, 3, 4, seed) for seed in range(7)]
    unbroken, stopped = (TemporalInfoNCE(0.4, memory=12) for _ in range(2))
    after(unbroken, batches[:4])
    after(stopped, batches[:4])
    resumed = TemporalInfoNCE(0.4, memory=12)
    resumed.load_state_dict(stopped.state_dict())
    for case in batches[4:]:
        for got, wanted in zip(after(resumed, [case]), after(unbroken, [case]), strict=True):
            assert got.equal(wanted)


def test_an_empty_memory_follows_the_embeddings_to_their_device() -> None:
    """``meta`` stands for a GPU: torch refuses to join its tensors with the CPU's."""
    memory = WindowMemory(4)
    z, spans = torch.empty(3, 2, 5, device="meta"), torch.empty(3, 3, dtype=torch.int64, device="meta")
    for seen in (0, 3, 4):
        rows, their_spans = memory.columns(z)
        assert rows.shape == (2 * seen, 5) and len(their_spans) == seen
        assert rows.is_meta and their_spans.is_meta
        memory.append(z, spans)


def on_ranks() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Three steps with both, on this rank's part of each batch."""
    here, outcomes = world(), []
    for name in BACKENDS:
        loss_fn = TemporalInfoNCE(0.3, name, ignore_gap=1, hard_negatives=0.7, memory=13)
        for seed in range(3):
            case = make_case(8, 3, 6, seed)
            parts = Case(*(x.chunk(here.world_size)[here.rank] for x in (case.z, case.clip_ids, case.frame_ids)))
            outcomes.append(after(loss_fn, [parts]))
    return outcomes


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_equal_one_process(world_size: int) -> None:
    single = on_ranks()
    for rank, outcomes in enumerate(run_ranks(on_ranks, world_size)):
        for (loss, accuracy, grad), (wanted, wanted_accuracy, whole) in zip(outcomes, single, strict=True):
            torch.testing.assert_close(loss, wanted)
            assert accuracy == wanted_accuracy
            torch.testing.assert_close(grad, world_size * whole.chunk(world_size)[rank])


def test_no_square_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_module, "_TILE_SIDE", {"cpu": 50})
    with LargestTensor() as largest:
        after(TemporalInfoNCE(0.5, hard_negatives=1.0, memory=60), [make_case(100, 5, 16)] * 2)
    assert largest.elements < 160 * 5 * 16 * 2


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_nan_in_nan_out(beta: float) -> None:
    case = make_case(7, 3, 5)
    case.z[4, 1, 2] = math.nan
    loss, accuracy, _ = after(TemporalInfoNCE(0.5, "chunked", hard_negatives=beta, memory=3), [case])
    assert loss.isnan() and accuracy.isnan()


def test_what_cannot_be_is_refused() -> None:
    z, ids = torch.randn(3, 2, 4), (torch.arange(3), torch.arange(6).view(3, 2))
    for bad, words in [
        ({"hard_negatives": -1.0}, "hard_negatives is -1.0"),
        ({"hard_negatives": math.inf}, "hard_negatives is inf"),
        ({"memory": -1}, "memory is -1"),
        ({"memory": 5, "gather": False}, "gather is False"),
        ({"memory": 5, "backend": "triton"}, "backend 'triton' does not support"),
        ({"hard_negatives": 1.0, "backend": "triton"}, "backend 'triton' does not support"),
    ]:
        with pytest.raises(SettingsError, match=words):
            TemporalInfoNCE(**bad)
    loss_fn = TemporalInfoNCE(memory=5)
    with pytest.raises(SettingsError, match="clip_ids and frame_ids are not given"):
        loss_fn(z)
    loss_fn(z, *ids)
    with pytest.raises(SettingsError, match=r"the memory holds windows of \[T, D\] = \[2, 4\]"):
        loss_fn(torch.randn(3, 2, 5), *ids)
