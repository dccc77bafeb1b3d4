"""What the machine has for GPUs: the driver's CUDA asked of libcuda, GPUs given, and no CPU taken in silence."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from cltt import doctor
from cltt.distributed import RankInfo, described, pick_device
from cltt.errors import CLTTError
from cltt.machine import gpus

ROOT = Path(__file__).parents[2]


class Driver:
    """Stands for libcuda."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, pointer: object) -> int:
        pointer._obj.value = self.version  # type: ignore[attr-defined]
        return self.status


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A driver that speaks the CUDA of the test's parameter; None: no driver."""

    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if request.param is None:
            raise OSError(name)
        return Driver(request.param)

    monkeypatch.setattr(ctypes, "CDLL", load)


@pytest.mark.parametrize(
    ("driver", "version"),
    [(13000, (13, 0)), (12080, (12, 8)), (12040, (12, 4)), (11080, (11, 8)), (0, None), (None, None)],
    indirect=["driver"],
)
def test_the_drivers_version_is_read(driver: None, version: tuple[int, int] | None) -> None:
    assert gpus.driver_cuda_version() == version


@pytest.mark.parametrize(
    ("version", "words"), [((13, 2), "constraints.txt"), ((12, 0), "CUDA=12"), ((11, 8), "driver 525 or newer")]
)
def test_the_set_that_fits_a_driver(version: tuple[int, int], words: str) -> None:
    assert words in gpus.fitting_set(version)


@pytest.mark.parametrize(
    ("environ", "nodes", "given"),
    [
        ({}, [], ""),
        ({}, ["nvidia0", "nvidiactl"], "nvidia0"),
        ({}, ["nvidiactl"], ""),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ""),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["nvidia0"], ""),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, [], "CUDA_VISIBLE_DEVICES=0,1"),
        ({"SLURM_JOB_ID": "7"}, ["nvidia0"], ""),  # a job without GPUs on a node with some
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0"}, ["nvidia0"], ""),
        ({"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}, [], "SLURM_GPUS_ON_NODE=4"),
    ],
)
def test_gpus_given(environ: dict[str, str], nodes: list[str], given: str, tmp_path: Path) -> None:
    for name in nodes:
        (tmp_path / name).touch()
    found = gpus.gpus_given(environ, tmp_path)
    assert found.endswith(given) and bool(found) == bool(given)


@pytest.mark.parametrize("driver", [12040], indirect=True)
@pytest.mark.parametrize(
    ("torch_cuda", "words", "status"),
    [
        ("13.0", ["CUDA 13.0", "driver supports CUDA 12.4", "make setup CUDA=12"], 2),
        ("12.8", ["CUDA 12.8", "nvidia-smi"], 1),  # the device is broken: another node's may work
        (None, ["without CUDA", "make setup CUDA=12"], 2),
    ],
)
def test_auto_refuses_the_cpu_where_gpus_were_given(
    driver: None, torch_cuda: str | None, words: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for name in ("auto", "cuda"):
        with pytest.raises(CLTTError) as error:
            pick_device(name, RankInfo())
        said = str(error.value)
        assert all(word in said for word in ["CUDA_VISIBLE_DEVICES=0", "--device cpu", *words]) and "\n" not in said
        assert error.value.exit_status == status
    assert pick_device("cpu", RankInfo()).type == "cpu"
    findings = {finding.subject: finding for finding in [*doctor.driver(), *doctor.torch_and_device()]}
    assert findings["NVIDIA driver"].fact == "CUDA 12.4" and "CUDA=12" in findings["NVIDIA driver"].advice
    assert findings["torch"].status == "bad" and words[0] in findings["torch"].advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert pick_device("auto", RankInfo()).type in ("cpu", "mps")


@pytest.mark.parametrize(("given", "status"), [("0,1", 1), ("0", 2)])
def test_a_gpu_that_is_missing_of_those_given_is_a_broken_one(
    given: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("SLURM_JOB_ID", "7"), ("CUDA_VISIBLE_DEVICES", given)):
        monkeypatch.setenv(name, value)
    with pytest.raises(CLTTError, match="local rank 1 has no GPU of its own: torch finds 1") as error:
        pick_device("auto", RankInfo(1, 2, 1))
    assert error.value.exit_status == status


def test_the_device_is_described() -> None:
    assert described(torch.device("cpu"), RankInfo()).startswith("the CPU")
    assert described(torch.device("cpu"), RankInfo(0, 4)).endswith("4 ranks")


def test_both_sets_pin_the_same_packages() -> None:
    """Except torch, torchvision and Triton."""

    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        return dict(line.split("==", 1) for line in lines if line and not line.startswith("#"))

    default, older = pins("constraints.txt"), pins("constraints-cuda12.txt")
    differ = {name for name in default if older.get(name) != default[name]}
    assert differ == {"torch", "torchvision", "triton"}
    assert older.keys() - default.keys() == {"cuda-pathfinder"}
