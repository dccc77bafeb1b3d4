"""The loss over several real processes against one process on the joined batch, with other data on each rank."""

from __future__ import annotations

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cltt.distributed import world
from cltt.errors import SettingsError
from cltt.loss.infonce import TemporalInfoNCE
from tests.helpers.ddp import run_ranks

B, T, D = 8, 3, 6
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def joined_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z [B, T, D], clip_ids [B], frame_ids [B, T] with overlapping windows on different ranks."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(B, T, D, generator=generator, dtype=torch.float64)
    starts = torch.tensor([0, 1, 50, 2, 100, 4, 101, 9])
    return z, torch.tensor([0, 0, 0, 0, 1, 0, 1, 0]), starts[:, None] + torch.arange(T)


def own_part(x: torch.Tensor) -> torch.Tensor:
    here = world()
    return x.chunk(here.world_size)[here.rank]


def loss_and_gradient(backend: str, with_ids: bool, gather: bool) -> Outcome:
    z, clip_ids, frame_ids = (own_part(x) for x in joined_batch())
    z = z.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()  # not contiguous
    ids = {"clip_ids": clip_ids, "frame_ids": frame_ids} if with_ids else {}
    loss, accuracy = TemporalInfoNCE(0.3, backend, gather=gather)(z, return_accuracy=True, **ids)
    loss.backward()
    assert z.grad is not None
    return loss.detach(), accuracy, z.grad


def every_case() -> dict[tuple[str, bool], Outcome]:
    """One spawn for all cases: starting processes takes longer than the losses."""
    cases = [(backend, with_ids) for backend in ("reference", "chunked") for with_ids in (False, True)]
    return {case: loss_and_gradient(*case, gather=True) for case in cases}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_equal_one_process(world_size: int) -> None:
    single = every_case()
    for rank, results in enumerate(run_ranks(every_case, world_size)):
        for case, (loss, accuracy, grad) in results.items():
            expected_loss, expected_accuracy, expected_grad = single[case]
            torch.testing.assert_close(loss, expected_loss, msg=lambda m, c=case: f"{c}: {m}")
            assert accuracy == expected_accuracy
            own = expected_grad.chunk(world_size)[rank]
            torch.testing.assert_close(grad, world_size * own, msg=lambda m, c=case, r=rank: f"{c}, rank {r}: {m}")


def local_case() -> Outcome:
    return loss_and_gradient("chunked", False, gather=False)


def test_without_gather_each_rank_is_alone() -> None:
    z = joined_batch()[0]
    for part, (loss, _, grad) in zip(z.chunk(2), run_ranks(local_case, 2), strict=True):
        part = part.clone().requires_grad_()
        expected = TemporalInfoNCE(0.3, "reference")(part)
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grad, torch.autograd.grad(expected, part)[0])


def train(wrap: bool) -> list[torch.Tensor]:
    """Three steps of SGD with a gradient clip; the parameters after them. Adam would hide a wrong gradient scale."""
    torch.manual_seed(1)
    network: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(D, 7), torch.nn.ReLU(), torch.nn.Linear(7, 5)
    ).double()
    parameters = list(network.parameters())
    if wrap:
        network = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    x = own_part(joined_batch()[0])
    for step in range(3):
        optimizer.zero_grad()
        TemporalInfoNCE(0.2, "chunked")(network(x + step)).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        assert norm > 0.1, "a clip that does nothing tests nothing"
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def train_wrapped() -> list[torch.Tensor]:
    return train(wrap=True)


def test_ddp_training_equals_one_process() -> None:
    expected = train(wrap=False)
    for parameters in run_ranks(train_wrapped, 2):
        for got, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(got, wanted)


def bad_inputs() -> list[str]:
    """The message of each bad call on this rank; afterwards the ranks must still be in step."""
    rank = world().rank
    loss = TemporalInfoNCE(backend="chunked")
    messages = []
    uneven = torch.randn(3 - rank, 2, 4)
    wrong_on_one = torch.randn(3, 2, 4) if rank == 0 else torch.randn(6, 4)
    for z in (uneven, wrong_on_one):
        with pytest.raises(SettingsError) as error:
            loss(z)
        messages.append(str(error.value))
    with pytest.raises(SettingsError) as error:
        if rank == 0:
            loss(torch.randn(3, 2, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 2, dtype=torch.int64))
        else:
            loss(torch.randn(3, 2, 4))
    messages.append(str(error.value))
    z = torch.randn(3, 2, 4)
    for differs in (
        lambda: loss(z, return_accuracy=rank == 0),
        lambda: loss(z.bfloat16() if rank else z.half()),
        lambda: TemporalInfoNCE(0.5 + rank, backend="chunked")(z),
    ):
        with pytest.raises(SettingsError, match=r"do not agree.*return_accuracy and ids on all or none"):
            differs()
    assert loss(torch.randn(3, 2, 4)).isfinite()
    return messages


def test_uneven_input_is_refused_on_every_rank() -> None:
    first, second = run_ranks(bad_inputs, 2)
    assert "rank 0 (3, 2, 4)" in first[0] and "rank 1 (2, 2, 4)" in first[0]
    assert first[0] == second[0]
    assert "do not agree" in first[1] and "shape (6, 4)" in second[1]
    assert first[2] == second[2] and "ids on all or none" in first[2]
