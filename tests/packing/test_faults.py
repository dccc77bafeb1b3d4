"""Faults of the world around a build: one sentence that names the file, no half shard, and the next start goes on."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.errors import DataError, SettingsError, StorageError
from cltt.files.locks import locked_in
from cltt.packing import plan_writer, workers
from cltt.shards import layout
from tests.helpers import data
from tests.helpers.folders import assert_same
from tests.helpers.quick import shorten_pauses

REPOSITORY = Path(__file__).parents[2]
SHARD_SIZE = 12_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return data.make_clips(tmp_path / "root", {"a": 20, "b": 20})


def _build(root: Path, out: Path, **options: object) -> None:
    build_shards(root, out, **{"workers": 1, "shard_size": SHARD_SIZE, **options})  # type: ignore[arg-type]


def _plan_only(root: Path, out: Path) -> None:
    """A plan with no shard packed: a task that has no shards of its own."""
    _build(root, out, task="9999/10000")


def _cli(*arguments: str, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/build_shards.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, preexec_fn=before)


def _whole_shards(out: Path) -> list[bytes]:
    return [shard.read_bytes() for shard in sorted(out.glob("shard-*.tar"))]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fault", ["gone", "changed", "touched"])
def test_a_source_file_that_is_not_what_was_planned(root: Path, tmp_path: Path, fault: str, workers: int) -> None:
    out, victim = tmp_path / "out", root / "b" / "frame_000017.jpg"
    _plan_only(root, out)
    content, times = victim.read_bytes(), victim.stat()
    if fault == "gone":
        victim.unlink()
    elif fault == "changed":
        victim.write_bytes(content + b"x")
        os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        os.utime(victim)
    with pytest.raises(DataError, match=r"frame_000017\.jpg' has (disappeared|changed) since the plan was made"):
        _build(root, out, workers=workers)
    assert not (out / layout.INDEX).exists()
    victim.write_bytes(content)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    _build(root, out)
    _build(root, tmp_path / "unbroken")
    assert_same(out, tmp_path / "unbroken")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not read the file")
def test_an_unreadable_file_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = """
import os, pathlib, sys, tempfile
sys.path.insert(0, sys.argv[1])
import cltt.packing.builder, cv2, mmap, simplejpeg  # before this user may not read them
from tests.helpers import data
folder = pathlib.Path(tempfile.mkdtemp())
root = data.make_clips(folder / "root", {"a": 3})
os.chmod(root / "a" / "frame_000001.jpg", 0)
os.chown(folder, 65534, 65534)
os.setuid(65534)
try:
    cltt.packing.builder.build_shards(root, folder / "out", workers=1)
except cltt.errors.DataError as error:
    print(error)
print([p.name for p in (folder / "out").iterdir() if p.name != ".build"])
"""
    done = subprocess.run([sys.executable, "-c", code, str(REPOSITORY)], capture_output=True, text=True, check=True)
    assert "frame_000001.jpg' cannot be read (Permission denied)" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_size_limit_stands_for_a_full_disk(root: Path, tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    flags = ["--root-dir", str(root), "--out", str(out), "--shard-size", str(SHARD_SIZE), "--workers", workers]
    failed = _cli(*flags, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000)))
    assert failed.returncode == 2
    assert f"cannot write {out}/shard-00000" in failed.stderr and "Traceback" not in failed.stderr
    assert _whole_shards(out) == [] and not (out / layout.INDEX).exists()
    assert _cli(*flags).returncode == 0
    _build(root, tmp_path / "unbroken")
    assert_same(out, tmp_path / "unbroken")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small tmpfs")
def test_a_full_disk(root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(DataError, match="No space left on device"):
            _build(root, disk / "out")
        _build(root, tmp_path / "unbroken")
        whole = _whole_shards(tmp_path / "unbroken")
        assert all(shard in whole for shard in _whole_shards(disk / "out"))
        subprocess.run(["mount", "-o", "remount,size=10m", disk], check=True)
        _build(root, disk / "out")
        assert_same(disk / "out", tmp_path / "unbroken")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_while_planning(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plan_writer._PlanFiles, "finish", full)
    with pytest.raises(DataError, match=r"cannot write .*plan: No space left on device; make room"):
        _build(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_build_refuses_while_the_first_runs(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked_in(out / layout.BUILD, "build.lock"):
        second = _cli("--root-dir", str(root), "--out", str(out))
        assert second.returncode == 2
        assert f"is being built by process {os.getpid()} on {os.uname().nodename}; wait" in second.stderr
        for options in ({"overwrite": True}, {"task": "0/2"}, {"finalize": True}):
            with pytest.raises(DataError, match="is being built by"):
                _build(root, out, **options)
    _build(root, out)  # a lock file of a dead process does not block


def test_tasks_share_the_folder_but_no_task_runs_twice(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    working = out / layout.BUILD
    with locked_in(working, "build.lock", shared=True), locked_in(working, "task-0-of-2.lock"):
        _build(root, out, task="1/2")
        with pytest.raises(DataError, match="is being built by"):
            _build(root, out, task="0/2")
        with pytest.raises(DataError, match="is being built by"):
            _build(root, out, finalize=True)


def test_two_builds_at_once_end_with_one_whole_set(root: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "out", []

    def build() -> None:
        try:
            _build(root, out, workers=2)
        except DataError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("is being built by" in error for error in errors)
    _build(root, tmp_path / "unbroken")
    assert_same(out, tmp_path / "unbroken")


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "root" / "clip").mkdir(parents=True)
    with pytest.raises(SettingsError, match="no frames under"):
        _build(tmp_path / "root", tmp_path / "out")
    (tmp_path / "root" / "clip" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="not one of the 1 files"):
        _build(tmp_path / "root", tmp_path / "out2")
    with pytest.raises(SettingsError, match="is not a folder"):
        _build(tmp_path / "nowhere", tmp_path / "out3")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out3").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(SettingsError, match="is not a folder"):
        _build(tmp_path / "nowhere", tmp_path / "mine", overwrite=True)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_folder_that_cannot_be_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match=r"file/out/.*choose another folder"):
        _build(root, tmp_path / "file" / "out")


def test_other_peoples_files_are_left_alone(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"thesis\.tex"):
            _build(root, out, overwrite=overwrite)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_workers_need_no_main_guard(root: Path, tmp_path: Path) -> None:
    code = (
        f"import cltt; print(cltt.build_shards({str(root)!r}, {str(tmp_path / 'out')!r}, workers=2, shard_size=9000))"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    from_file = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=REPOSITORY)
    assert from_file.returncode == 0 and "40 frames" in from_file.stdout, from_file.stderr
    code = code.replace("out'", "out2'")
    typed = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, cwd=REPOSITORY)
    assert typed.returncode == 0 and "40 frames" in typed.stdout, typed.stderr


def test_building_imports_neither_torch_nor_dali(root: Path, tmp_path: Path) -> None:
    code = f"import sys, cltt; cltt.build_shards({str(root)!r}, {str(tmp_path / 'out')!r}, workers=1)\n"
    code += "assert not {'torch', 'nvidia', 'triton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_packing_processes_retry_as_long_as_asked(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)
    broken = (
        "; import os; from cltt.source import clips\n"
        "def read(*_): raise OSError(5, os.strerror(5))\n"
        "clips._read_once = read; serve("
    )
    monkeypatch.setattr(workers, "_START", workers._START.replace("; serve(", broken))
    with pytest.raises(StorageError, match=r"could not be read for 0.25 s"):
        _build(root, tmp_path / "out", workers=2, io_patience=0.25)
