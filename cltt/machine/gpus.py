"""The GPUs of this machine, found without torch: the driver's CUDA version, the GPUs given, JPEG engines."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

NVJPEG_BACKEND_HARDWARE = 3  # nvjpegBackend_t in nvjpeg.h
# CUDA versions of the two sets of pinned packages. A driver runs programs for its own CUDA version and for older ones
# (https://docs.nvidia.com/deploy/cuda-compatibility/, minor version compatibility). CUDA 13 needs driver 580.
DEFAULT_CUDA = (13, 0)
OLDER_CUDA = (12, 0)
OLDER_SET = "make setup CUDA=12 (constraints-cuda12.txt)"


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA version (major, minor) that the installed driver supports; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10  # 12040 is CUDA 12.4


def fitting_set(driver: tuple[int, int]) -> str:
    """The set of pinned packages for a driver that supports CUDA ``driver``, as the command that installs it."""
    if driver >= DEFAULT_CUDA:
        return "make setup (constraints.txt)"
    if driver >= OLDER_CUDA:
        return OLDER_SET
    return "none: CUDA 12 needs driver 525 or newer"


def driver_fits(torch_cuda: str | None) -> bool:
    """Whether the installed driver fits a torch built for CUDA ``torch_cuda`` (None: without CUDA)."""
    driver = driver_cuda_version()
    return driver is not None and torch_cuda is not None and driver[0] >= int(torch_cuda.split(".")[0])


def gpus_given(environ: Mapping[str, str] | None = None, devices: Path = Path("/dev")) -> str:
    """The variable or device file that shows that this process was given GPUs; "" if there is none.

    A Slurm job has the GPUs that it was given; any other process has all GPUs that are not hidden.
    """
    environ = os.environ if environ is None else environ
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # Slurm sets it too; empty, or without a device's name, it hides all GPUs
        return f"CUDA_VISIBLE_DEVICES={visible}" if visible not in ("", "-1", "NoDevFiles") else ""
    if "SLURM_JOB_ID" in environ:
        count = environ.get("SLURM_GPUS_ON_NODE", "0")
        return f"SLURM_GPUS_ON_NODE={count}" if count not in ("", "0") else ""
    return next((str(path) for path in sorted(devices.glob("nvidia[0-9]*"))), "")


def number_given() -> int:
    """The number of GPUs that Slurm gave this process; 0 if it gave none, or without Slurm."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpus_given() and "SLURM_JOB_ID" in os.environ else ""
    return len(names.split(",")) if names else 0


def why_no_cuda(torch_version: str, torch_cuda: str | None) -> str:
    """Why torch finds no GPU here and what to do, as the end of a sentence."""
    driver = driver_cuda_version()
    if torch_cuda is None:
        build = f"torch {torch_version} is a build without CUDA"
        return f"{build}; the packages that fit the driver: {fitting_set(driver)}" if driver else build
    build = f"torch {torch_version} is a build for CUDA {torch_cuda}"
    if driver is None:
        return f"{build}, and no driver (libcuda.so.1) is found: install it, or pass it on to this container"
    supports = f"{build}, and the driver supports CUDA {driver[0]}.{driver[1]}"
    if not driver_fits(torch_cuda):
        return f"{supports}; the packages that fit it: {fitting_set(driver)}"
    return f"{supports}: see nvidia-smi for what is wrong with the device"


def nvjpeg_library() -> str | None:
    """The nvJPEG shared library of pip's packages (for CUDA 12 or 13), of conda, or of the system."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    found = (path for root in roots for path in sorted(Path(root).glob("*/lib/libnvjpeg.so*")))
    in_conda = sorted((Path(sys.prefix) / "lib").glob("libnvjpeg.so*"))
    return next(map(str, (*found, *in_conda)), None) or ctypes.util.find_library("nvjpeg")


def hardware_jpeg_engines() -> int | None:
    """The number of hardware JPEG engines of the current GPU (0: none); None if nvJPEG cannot be loaded.

    Creating an nvJPEG handle on the hardware backend fails if the GPU has no engine
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
