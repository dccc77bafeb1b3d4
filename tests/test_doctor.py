"""The doctor tells the truth: about this machine, and about machines where something is missing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cltt import doctor

COMMAND = [sys.executable, "-m", "cltt.doctor"]


def test_a_working_machine_passes() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    subjects = {line[6:30].strip() for line in done.stdout.splitlines()}
    assert {"python", "torch", "DALI", "decode path", "memory", "open files", "slurm"} <= subjects


def test_a_missing_package_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "simplejpeg" else real(name))
    monkeypatch.setattr(sys, "argv", ["cltt.doctor"])
    assert doctor.main() == 1
    assert "pip install simplejpeg" in capsys.readouterr().out


def test_an_extra_may_be_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "webdataset" else real(name))
    monkeypatch.setattr(sys, "argv", ["cltt.doctor"])
    assert doctor.main() == 0, capsys.readouterr().out


def test_without_dali_the_cpu_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "dali_version", lambda: None)
    findings = {finding.subject: finding for finding in doctor.decode_path()}
    assert findings["DALI"].fact == "not installed"
    assert "OpenCV" in findings["decode path"].fact


@pytest.mark.parametrize(("engines", "status"), [(None, "note"), (0, "note"), (1, "ok")])
def test_the_jpeg_engine_is_reported(monkeypatch: pytest.MonkeyPatch, engines: int | None, status: str) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "dali_version", lambda: "2.4.0")
    monkeypatch.setattr(doctor, "hardware_jpeg_engines", lambda: engines)
    monkeypatch.setattr(doctor, "why_dali_fails", lambda device: "")
    findings = {finding.subject: finding for finding in doctor.decode_path()}
    assert findings["JPEG hardware"].status == status
    assert ("JPEG hardware and CUDA" in findings["decode path"].fact) == bool(engines)


def test_a_jpeg_is_decoded_with_dali_and_its_reason_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    graphs = pytest.importorskip("cltt.frames.gpu.dali_graphs")
    assert doctor.why_dali_fails("cpu") == ""

    def fail(*arguments: object) -> None:
        raise RuntimeError(
            "Critical error in pipeline:\nError in operator, encountered:\n\nno libnvjpeg.so\nStack: ..."
        )

    monkeypatch.setattr(graphs.DecodeGraph, "decode", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "hardware_jpeg_engines", lambda: 1)
    on_cpu = doctor.why_dali_fails
    monkeypatch.setattr(doctor, "why_dali_fails", lambda device: on_cpu("cpu"))
    path = next(finding for finding in doctor.decode_path() if finding.subject == "decode path")
    assert (path.status, path.advice) == ("note", "DALI fails on a JPEG: no libnvjpeg.so") and "CPU" in path.fact


def test_a_low_file_limit_and_a_job_are_seen() -> None:
    shell = 'ulimit -Sn 256 && exec "$@"'
    environ = dict(os.environ, SLURM_JOB_ID="77")
    done = subprocess.run(["bash", "-c", shell, "-", *COMMAND], capture_output=True, text=True, env=environ)
    lines = {line[6:30].strip(): line for line in done.stdout.splitlines()}
    assert lines["open files"].startswith("note") and "ulimit -n" in lines["open files"]
    assert "inside job 77" in lines["slurm"]


def test_both_opencv_packages_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: "4.10")
    assert any("overwrite each other" in finding.fact for finding in doctor.python_and_libraries())
