"""What a GPU would compute, walked on a CPU with tensors that have a device, a type and strides but no numbers.

torch's fake tensors refuse what a GPU would: operands on two devices, of types that do not mix, of shapes that do not
fit. Streams, pinned memory, Triton's launches and autograd's engine need a driver: stand-ins take their place, and the
backward pass that is written here is called by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from cltt import TemporalInfoNCE
from cltt.config import PRESETS, OptimSettings
from cltt.frames import gather
from cltt.frames.batch import BatchMaker
from cltt.frames.geometry import Framing
from cltt.frames.store import FrameStore
from cltt.loss import infonce
from cltt.models.contrastive import ContrastiveModel, ProjectionHead
from cltt.models.encoders import build_encoder
from cltt.training import trainer as trainer_module
from cltt.training.optim import build_optimizer
from cltt.training.trainer import Trainer

CUDA = torch.device("cuda", 0)
MULTIPROCESSORS, SHARED = 132, 227 * 1024  # of an H100


class Kernel:
    """Stands for a Triton kernel: notes its launches."""

    def __init__(self) -> None:
        self.launches: list[SimpleNamespace] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **constants: Any) -> None:
            tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
            assert {tensor.device for tensor in tensors} == {CUDA}
            self.launches.append(SimpleNamespace(grid=grid, arguments=arguments, constants=constants))

        return launch


@pytest.fixture(autouse=True)
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CUDA tensors without a driver."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(record_event=object))
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(FakeTensor, "tolist", lambda tensor: [0.0] * len(tensor))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    for module in (gather, infonce):
        monkeypatch.setattr(module, "why_triton_fails", lambda: "is not to be used here")
    with FakeTensorMode():
        yield


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kernel]:
    """Triton's kernels, replaced by what notes their launches."""
    pytest.importorskip("triton")
    from cltt.frames.gpu import gather_kernel
    from cltt.loss import triton_launch

    for module in (gather, infonce):
        monkeypatch.setattr(module, "why_triton_fails", lambda: "")
    monkeypatch.setattr(triton_launch, "_multiprocessors", lambda device: MULTIPROCESSORS)
    monkeypatch.setattr(triton_launch, "_shared", lambda device: SHARED)
    made = {name: Kernel() for name in ("row_kernel", "mirrored_kernel", "gradient_kernel")}
    for name, kernel in made.items():
        monkeypatch.setattr(triton_launch, name, kernel)
    made["gather_kernel"] = Kernel()
    monkeypatch.setattr(gather_kernel, "gather_kernel", made["gather_kernel"])
    return made


def model_on_gpu() -> ContrastiveModel:
    """ResNet-18 with its head, channels-last. (Fake tensors cannot be moved by ``model.to``.)"""
    encoder = build_encoder("resnet18")
    model = ContrastiveModel(encoder, ProjectionHead(encoder.feature_dim, 8))
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            order = torch.channels_last if value.dim() == 4 else torch.contiguous_format
            moved = torch.empty(value.shape, device=CUDA, memory_format=order)
            module.register_parameter(name, nn.Parameter(moved))
        for name, value in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(value.shape, dtype=value.dtype, device=CUDA))
    return model


@pytest.mark.parametrize("backend", ["chunked", "triton"])
@pytest.mark.parametrize(
    ("optim", "with_ids"),
    [
        (OptimSettings(), False),
        (OptimSettings(optimizer="adamw", schedule="cosine", max_grad_norm=0), True),
        (OptimSettings(sub_batch_size=4), True),
    ],
    ids=["adam", "adamw", "sub-batches"],
)
def test_a_step_of_training(
    backend: str,
    optim: OptimSettings,
    with_ids: bool,
    kernels: dict[str, Kernel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def backward(loss: torch.Tensor, *_: torch.Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, z: (torch.empty_like(z),))
    monkeypatch.setattr(trainer_module, "HostCopy", lambda scalar: SimpleNamespace(read=lambda: 1.0))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    model = model_on_gpu()
    optimizer, scheduler = build_optimizer(model, optim, CUDA, 12)
    trainer = Trainer(
        model=model,
        loss_fn=TemporalInfoNCE(backend=backend),
        optimizer=optimizer,
        scheduler=scheduler,
        loader=MagicMock(),
        saver=MagicMock(),
        stop=MagicMock(),
        device=CUDA,
        optim=optim,
        run_dir=tmp_path,
        autocast=torch.bfloat16,
        places=(lambda ids: ids[:, None] + torch.arange(5)) if with_ids else None,
    )
    frames = torch.empty(8, 5, 3, 64, 64, device=CUDA, dtype=torch.bfloat16)
    ids = torch.arange(8)
    trainer._step(SimpleNamespace(frames=frames, window_ids=ids, clip_ids=ids))  # type: ignore[arg-type]
    assert optimizer.param_groups[0]["fused"]
    for parameter, state in optimizer.state.items():
        moments = [value for value in state.values() if torch.is_tensor(value) and value.dim()]
        assert all(value.stride() == parameter.stride() and value.device == CUDA for value in moments)
    if backend == "triton":
        (launch,) = kernels["mirrored_kernel"].launches
        assert launch.arguments[0].dtype == torch.bfloat16  # autocast halves the products


def backward_of(loss: torch.Tensor) -> torch.Tensor:
    """What the loss' backward pass gives for its unit rows."""
    with torch.no_grad():
        found = infonce._FusedLoss.backward(loss.grad_fn, torch.ones_like(loss), loss)[0]
    assert found is not None
    return found


@pytest.mark.parametrize("backend", ["chunked", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_the_loss(temperature: float, dtype: torch.dtype, backend: str, kernels: dict[str, Kernel]) -> None:
    z = torch.empty(2053, 5, 128, device=CUDA, dtype=dtype, requires_grad=True)
    ids = {"clip_ids": torch.arange(2053), "frame_ids": torch.arange(2053 * 5).view(2053, 5)}
    loss_fn = TemporalInfoNCE(temperature, backend=backend)
    loss, accuracy = loss_fn(z, return_accuracy=True, **ids)
    grad = backward_of(loss)
    assert loss.device == accuracy.device == grad.device == CUDA
    assert loss.shape == accuracy.shape == () and grad.shape == (2053 * 5, 128)
    assert loss.dtype == grad.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(kernels["gradient_kernel"].launches) == (backend == "auto" and dtype != torch.float64)


@pytest.mark.parametrize(("count", "D"), [(1, 3), (45, 40), (2053, 128), (32_768, 128), (2053, 512)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_launches_cover_every_tile_once(
    temperature: float, dtype: torch.dtype, count: int, D: int, kernels: dict[str, Kernel]
) -> None:
    """Programs times the tiles of each is at least the tiles there are, and one program less would be too few."""
    z = torch.empty(count, 2, D, device=CUDA, dtype=dtype, requires_grad=True)
    N = 2 * count
    backward_of(TemporalInfoNCE(temperature)(z))
    rows, mirrored, gradient = (kernels[name].launches for name in ("row_kernel", "mirrored_kernel", "gradient_kernel"))
    assert (len(rows), len(mirrored), len(gradient)) == ((1, 0, 1) if temperature == 0.01 else (0, 1, 1))
    for launch, place in [*((launch, 6) for launch in rows), *((launch, 7) for launch in gradient)]:
        blocks, splits = launch.grid[:2]
        each, tiles = launch.arguments[place], -(-N // launch.constants["BN"])
        assert (blocks - 1) * launch.constants["BM"] < N <= blocks * launch.constants["BM"]
        assert (splits - 1) * each < tiles <= splits * each
    for launch in mirrored:
        (programs,), (places, each) = launch.grid, launch.arguments[4:6]
        assert (programs - 1) * each < places <= programs * each
    assert gradient[0].constants["num_stages"] == (3 if dtype == torch.bfloat16 and D <= 256 else 2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("fused", [False, True])
def test_batches(
    fused: bool, dtype: torch.dtype, channels_last: bool, kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathered from a store on the GPU, and made of the bytes of batches that the CPU put together."""
    if not fused:
        monkeypatch.setattr(gather, "why_triton_fails", lambda: "is not to be used here")
    framing = Framing(image_size=33)
    maker = BatchMaker(framing, CUDA, dtype, PRESETS["none"], channels_last, 1)
    gathered = maker.make(FrameStore(50, framing, CUDA), np.arange(12).reshape(4, 3), None)
    laid_out = maker.finish(torch.empty(4, 3, 33, 33, 3, dtype=torch.uint8).permute(0, 1, 4, 2, 3), (4, 3))
    augmented = maker.finish(torch.empty(12, 33 * 33 * 3, dtype=torch.uint8, device=CUDA), (4, 3))
    order = torch.channels_last if channels_last else torch.contiguous_format
    for batch in (gathered, laid_out, augmented):
        assert (batch.shape, batch.dtype, batch.device) == ((4, 3, 3, 33, 33), dtype, CUDA)
        assert batch.flatten(0, 1).is_contiguous(memory_format=order)
    launches = kernels["gather_kernel"].launches
    assert len(launches) == (3 if fused and dtype != torch.uint8 else 0)
    for launch in launches:
        frames, parts = launch.grid
        numbers = 33 * 33 * (3 if channels_last else 1)
        assert frames == 12 and (parts - 1) * launch.constants["BLOCK"] < numbers <= parts * launch.constants["BLOCK"]


def test_a_tensor_left_on_the_cpu_is_refused() -> None:
    """What the other tests rest on."""
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=CUDA) + torch.empty(3)
