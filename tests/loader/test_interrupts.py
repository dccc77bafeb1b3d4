"""Ctrl-C at any moment of a loop: it ends soon, as an interrupt, and the loader can be used again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from cltt import build_shards
from tests.helpers import data

ENDS_WITHIN = 20.0  # seconds; a thread that is forgotten never ends


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupts")
    build_shards(data.make_clips(folder / "clips", {"a": 30, "b": 21}), folder / "shards", workers=1)
    return folder / "shards"


ENDS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in its background jobs, and so in ours
from cltt import ShardDataset, WindowIndex, WindowLoader
dataset = ShardDataset(sys.argv[1])
index = WindowIndex(dataset.clip_lengths, 3, 2, 1)
loader = WindowLoader(dataset, index, 4, image_size=64, device="cpu", depth=4)
how = sys.argv[2]
if how == "stuck":
    loader.dataset.read_each = lambda ids: time.sleep(0.2) or ShardDataset.read_each(dataset, ids)
while True:
    for batch in loader:
        print("batch", flush=True)
        if how == "raise":
            raise ValueError("the loop's own")
        if how == "exit":
            batches = iter(loader); next(batches); sys.exit(5)
        time.sleep(0.01 if how != "stuck" else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "status"), [("interrupt", -signal.SIGINT), ("stuck", -signal.SIGINT), ("raise", 1), ("exit", 5)]
)
def test_a_process_ends_soon_and_leaves_nothing_behind(shards: Path, how: str, status: int) -> None:
    command = [sys.executable, "-c", ENDS, str(shards), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        too_long = threading.Timer(60, process.kill)
        too_long.start()
        assert process.stdout is not None and process.stdout.readline() == "batch\n"
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        assert not children, "threads only, no processes"
        if how in ("interrupt", "stuck"):
            os.kill(process.pid, signal.SIGINT)
        began = time.monotonic()
        _, errors = process.communicate()
        too_long.cancel()
        assert time.monotonic() - began < ENDS_WITHIN
    assert process.returncode == status, errors
    expected = {"raise": "ValueError: the loop's own", "exit": ""}.get(how, "KeyboardInterrupt")
    assert expected in errors and (errors == "" or errors.rstrip().endswith(expected)), errors


ANY_MOMENT = """
import faulthandler, random, signal, sys, time
import torch
from cltt import ShardDataset, WindowIndex, WindowLoader

faulthandler.dump_traceback_later(int(sys.argv[3]), exit=True)
draw, dataset = random.Random(0), ShardDataset(sys.argv[1])
index = WindowIndex(dataset.clip_lengths, 3, 2, 1)
loader = WindowLoader(dataset, index, 4, image_size=32, device="cpu", depth=4, num_threads=3)
expected = [batch.frames.clone() for batch in loader]
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
slowest = 0.0
for _ in range(int(sys.argv[2])):
    try:  # again after half a second, as Python drops what is raised while it collects an object
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.001, 0.03), 0.5)
        while True:
            for batch in loader:
                pass
    except KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0)
    began = time.monotonic()
    loader.close()
    slowest = max(slowest, time.monotonic() - began)
loader.set_epoch(loader.epoch + 1)  # as set_epoch does not go back within an epoch
loader.set_epoch(0)
assert all(torch.equal(batch.frames, frames) for batch, frames in zip(loader, expected, strict=True))
print("slowest", slowest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="setitimer is of POSIX")
def test_an_interrupt_at_any_moment_hangs_nothing_and_stays_an_interrupt(shards: Path) -> None:
    """With the locks of concurrent.futures, one in 50 left a thread and its loop waiting for ever."""
    command = [sys.executable, "-c", ANY_MOMENT, str(shards), "500", "150"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split()[-1]) < 4, "to close what was interrupted takes no longer"
