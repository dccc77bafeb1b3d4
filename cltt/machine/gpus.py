"""What this machine has for GPUs, asked without torch: the driver's CUDA version, GPUs given, JPEG engines."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

NVJPEG_BACKEND_HARDWARE = 3  # nvjpegBackend_t in nvjpeg.h
# CUDA of the two sets of pinned packages. A driver runs what its CUDA version and older ones of the same major version
# ask for (https://docs.nvidia.com/deploy/cuda-compatibility/, minor version compatibility): 580 is the first with 13.
DEFAULT_CUDA = (13, 0)
OLDER_CUDA = (12, 0)
OLDER_SET = "make setup CUDA=12 (constraints-cuda12.txt)"


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the installed driver speaks; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10  # 12040 is CUDA 12.4


def fitting_set(driver: tuple[int, int]) -> str:
    """Which set of pinned packages runs on a driver that speaks CUDA ``driver``, and how it is installed."""
    if driver >= DEFAULT_CUDA:
        return "make setup (constraints.txt)"
    if driver >= OLDER_CUDA:
        return OLDER_SET
    return "none of ours: CUDA 12 asks for driver 525 or newer"


def driver_fits(torch_cuda: str | None) -> bool:
    """Whether there is a driver for a torch built for CUDA ``torch_cuda`` (None: without CUDA)."""
    driver = driver_cuda_version()
    return driver is not None and torch_cuda is not None and driver[0] >= int(torch_cuda.split(".")[0])


def gpus_given(environ: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> str:
    """What shows that this process was given GPUs; empty if nothing does.

    A Slurm job has those it was given, whatever the node has; elsewhere all that are not hidden.
    """
    environ = os.environ if environ is None else environ
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # Slurm sets it, too; empty, or a name that is no device: hidden
        return f"CUDA_VISIBLE_DEVICES={visible}" if visible not in ("", "-1", "NoDevFiles") else ""
    if "SLURM_JOB_ID" in environ:
        count = environ.get("SLURM_GPUS_ON_NODE", "0")
        return f"SLURM_GPUS_ON_NODE={count}" if count not in ("", "0") else ""
    return next((str(path) for path in sorted(devices.glob("nvidia[0-9]*"))), "")


def number_given() -> int:
    """How many GPUs a batch system gave this process, and so must work; 0 if it did not say."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus_given() and "SLURM_JOB_ID" in os.environ else ""
    return len(names.split(",")) if names else 0


def why_no_cuda(torch_version: str, torch_cuda: str | None) -> str:
    """Why torch finds no GPU here, as the rest of a sentence, and what to install."""
    driver = driver_cuda_version()
    if torch_cuda is None:
        build = f"torch {torch_version} is a build without CUDA"
        return f"{build}: install {fitting_set(driver)}" if driver else build
    build = f"torch {torch_version} is a build for CUDA {torch_cuda}"
    if driver is None:
        return f"{build}, and no driver (libcuda.so.1) is found: is it installed, and passed on to this container?"
    speaks = f"{build}, and the driver speaks CUDA {driver[0]}.{driver[1]}"
    if not driver_fits(torch_cuda):
        return f"{speaks}: install what fits it, {fitting_set(driver)}"
    return f"{speaks}: see nvidia-smi for what is wrong with the device"


def nvjpeg_library() -> str | None:
    """The nvJPEG shared library: as pip lays it (for CUDA 12 and 13), or that of conda or the system."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = (path for root in roots for path in sorted(Path(root).glob("*/lib/libnvjpeg.so*")))
    in_conda = sorted((Path(sys.prefix) / "lib").glob("libnvjpeg.so*"))
    return next(map(str, (*found, *in_conda)), None) or ctypes.util.find_library("nvjpeg")


def hardware_jpeg_engines() -> int | None:
    """Number of hardware JPEG engines of the current GPU (0: none); None if nvJPEG cannot be asked here.

    Asks nvJPEG itself: creating a handle on the hardware backend fails where the chip has no such engine
    (https://docs.nvidia.com/cuda/nvjpeg/index.html, ``nvjpegGetHardwareDecoderInfo``).
    """
    library = nvjpeg_library()
    if library is None:
        return None
    try:
        nvjpeg = ctypes.CDLL(library)
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if nvjpeg.nvjpegCreateEx(NVJPEG_BACKEND_HARDWARE, None, None, 0, ctypes.byref(handle)) != 0:
        return 0
    engines, cores = ctypes.c_uint(), ctypes.c_uint()
    status = nvjpeg.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores))
    nvjpeg.nvjpegDestroy(handle)
    return int(engines.value) if status == 0 else None
