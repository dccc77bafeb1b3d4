"""A node whose Triton cannot compile: said once, and plain torch takes over."""

from __future__ import annotations

import logging
import subprocess

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cltt import doctor
from cltt.loss import infonce
from cltt.machine import triton_runs


@pytest.fixture(autouse=True)
def afresh() -> None:
    triton_runs.why_triton_fails.cache_clear()


def no_compiler() -> None:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def no_header() -> None:
    raise subprocess.CalledProcessError(1, ["gcc", "main.c"])


@pytest.mark.parametrize("fault", [no_compiler, no_header])
def test_a_triton_that_cannot_compile_is_said_once_and_left(
    fault: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_runs, "_run_one", fault)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with FakeTensorMode():
        z = torch.empty(2, 2, 4, device="cuda")
    with caplog.at_level(logging.WARNING):
        assert infonce.resolve_backend("auto", z) == "chunked"
        assert infonce.resolve_backend("auto", z) == "chunked"
    assert len(caplog.records) == 1 and "gcc and Python's headers" in caplog.text


def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_runs, "_run_one", no_compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    findings = {finding.subject: finding for finding in doctor.torch_and_device()}
    assert findings["triton"].status == "note" and "C compiler" in findings["triton"].advice


def test_a_machine_without_a_device_is_a_reason_too() -> None:
    pytest.importorskip("triton")
    assert torch.cuda.is_available() or triton_runs.why_triton_fails()
