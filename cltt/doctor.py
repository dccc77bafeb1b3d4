"""``python -m cltt.doctor``: what this machine can do for a run, one line each, with what to do about it.

Exit status 0 if shards can be built and an encoder trained here, 1 if something needed for that is missing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cltt
from cltt.machine.gpus import driver_cuda_version, fitting_set, gpus_given, hardware_jpeg_engines, why_no_cuda
from cltt.machine.triton_runs import why_triton_fails
from cltt.start import require_packages, why_too_old

GIB = 1 << 30
MIN_OPEN_FILES = 4096
MIN_SHM_BYTES = 1 * GIB
WITHOUT_PYAV = "pip install av to build shards from videos; folders of frames do not need it"


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``status``: ``ok``, ``note`` (works, could be better) or ``bad`` (a run will fail)."""

    status: str
    subject: str
    fact: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<6}{self.subject:<24}{self.fact}"
        return f"{line} -> {self.advice}" if self.advice else line


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def dali_version() -> str | None:
    """Version of DALI, whichever CUDA build of it is installed; None without DALI."""
    names = (f"nvidia-dali-cuda{cuda}" for cuda in ("120", "130", "110"))
    return next(filter(None, map(version_of, names)), None)


def python_and_libraries() -> Iterator[Finding]:
    """Interpreter and the packages a run needs."""
    fact = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = why_too_old()
    yield Finding("bad" if old else "ok", "python", fact, old)
    yield Finding("ok", "cltt", cltt.__version__)
    pyav = version_of("av")
    yield Finding("ok" if pyav else "note", "PyAV", *([pyav] if pyav else ["not installed", WITHOUT_PYAV]))
    for name in ("numpy", "opencv-python-headless", "simplejpeg", "matplotlib"):
        version = version_of(name)
        if version:
            yield Finding("ok", name, version)
        elif name == "opencv-python-headless" and importlib.util.find_spec("cv2"):
            yield Finding("note", "opencv", "cv2 comes from another package", "fine unless it fails to find libGL")
        else:
            yield Finding("bad", name, "not installed", f"pip install {name}")
    if version_of("opencv-python") and version_of("opencv-python-headless"):
        advice = "pip uninstall both, then pip install opencv-python-headless"
        yield Finding("bad", "opencv", "opencv-python and opencv-python-headless overwrite each other", advice)


def driver() -> Iterator[Finding]:
    """The NVIDIA driver, and which set of pinned packages it runs; asked of libcuda, without torch."""
    version = driver_cuda_version()
    if version is None:
        yield Finding("ok", "NVIDIA driver", "none, so nothing runs on an NVIDIA GPU here")
        return
    fits = fitting_set(version)
    status = "bad" if fits.startswith("none") else "ok"
    yield Finding(status, "NVIDIA driver", f"CUDA {version[0]}.{version[1]}", f"the set that fits: {fits}")


def torch_and_device() -> Iterator[Finding]:
    """torch, the device ``--device auto`` takes, and the loss backend ``auto`` takes."""
    if not version_of("torch"):
        yield Finding("bad", "torch", "not installed", "pip install torch")
        return
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            yield Finding("ok", f"cuda:{index}", f"{device.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
        why = why_triton_fails()
        advice = f"it {why}; the loss and the batches are made by plain torch, more slowly" if why else ""
        yield Finding("note" if why else "ok", "triton", version_of("triton") or "not installed", advice)
        return
    given = gpus_given()
    advice = why_no_cuda(torch.__version__, torch.version.cuda) if given or driver_cuda_version() else ""
    fact = f"{torch.__version__}, finds no GPU" + (f", but this process was given some ({given})" if given else "")
    yield Finding("bad" if given else "note" if advice else "ok", "torch", fact, advice)
    mps = torch.backends.mps.is_available()
    yield Finding("ok", "device", "mps" if mps else f"cpu, {torch.get_num_threads()} threads")


def decode_path() -> Iterator[Finding]:
    """Which decoder the loader will use."""
    dali = dali_version()
    cuda = False
    if version_of("torch"):
        import torch

        cuda = torch.cuda.is_available()
    if not dali:
        advice = "pip install nvidia-dali-cuda120 to decode on the GPU" if platform.system() == "Linux" else ""
        yield Finding("note" if cuda else "ok", "DALI", "not installed", advice)
        yield Finding("ok", "decode path", "libjpeg-turbo and OpenCV on CPU threads")
        return
    yield Finding("ok", "DALI", dali)
    if not cuda:
        yield Finding("ok", "decode path", "libjpeg-turbo and OpenCV on CPU threads (no CUDA device for DALI)")
        return
    engines = hardware_jpeg_engines()
    found = {None: "could not be asked for", 0: "not found"}.get(engines, f"found ({engines} engines)")
    advice = "" if engines else "decoding shares the GPU's cores with training; A100, H100 and H200 have the engine"
    yield Finding("ok" if engines else "note", "JPEG hardware", found, advice)
    why = why_dali_fails("cuda")
    if why:
        yield Finding("note", "decode path", "libjpeg-turbo and OpenCV on CPU threads", f"DALI fails on a JPEG: {why}")
        return
    yield Finding("ok", "decode path", "DALI mixed: JPEG hardware and CUDA" if engines else "DALI mixed: CUDA")


def why_dali_fails(device: str) -> str:
    """Why DALI cannot decode a JPEG on ``device`` (cuda, or cpu), in its words; empty if it can."""
    try:
        import torch

        from cltt.frames.decoders import DaliDecoder
        from cltt.frames.geometry import Framing

        decoder = DaliDecoder(Framing(image_size=64), torch.device(device), 1)
    except ImportError as error:
        return str(error)
    return decoder.why_it_fails()


def memory_and_limits() -> Iterator[Finding]:
    """Free memory, /dev/shm and the open-file limit."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
        low = free < 4 * GIB
        advice = "use a smaller --cache-gb or ask for more memory" if low else ""
        yield Finding("note" if low else "ok", "memory", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free", advice)
    if os.path.isdir("/dev/shm"):
        shm = shutil.disk_usage("/dev/shm").free
        small = shm < MIN_SHM_BYTES
        advice = "ranks of a node share kept frames there; containers: --shm-size=8g" if small else ""
        yield Finding("note" if small else "ok", "/dev/shm", f"{shm / GIB:.1f} GiB free", advice)
    import resource  # not on Windows, where neither DALI nor Slurm are

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = soft != resource.RLIM_INFINITY and soft < MIN_OPEN_FILES
    advice = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} before building or training on many shards"
    yield Finding("note" if low else "ok", "open files", f"limit {soft}", advice if low else "")


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted, and whether this is one."""
    if "SLURM_JOB_ID" in os.environ:
        gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
        yield Finding("ok", "slurm", f"inside job {os.environ['SLURM_JOB_ID']} ({gpus} GPUs on this node)")
    elif shutil.which("sbatch"):
        yield Finding("ok", "slurm", "sbatch found", "sbatch slurm/train.sbatch")
    else:
        yield Finding("note", "slurm", "sbatch not found", "slurm/local.sh trains here; submit from a login node")


def examine() -> list[Finding]:
    """All findings, in the order they are printed."""
    parts = (python_and_libraries, driver, torch_and_device, decode_path, memory_and_limits, slurm)
    return [finding for part in parts for finding in part()]


def main(argv: list[str] | None = None, prog: str = "cltt.doctor") -> int:
    from cltt import cli  # imports numpy, which may be missing

    cli.Parser(prog=prog, description="Say what this machine can do, and what to do about it.").parse_args(argv)
    findings = examine()
    print("\n".join(map(str, findings)))
    return 1 if any(finding.status == "bad" for finding in findings) else 0


if __name__ == "__main__":
    require_packages("cltt.doctor")
    from cltt import cli

    cli.run(main, "cltt.doctor")
