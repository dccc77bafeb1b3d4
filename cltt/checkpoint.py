"""Checkpoints: saved whole or not at all, the newest intact one restored.

    RUN/epoch-0003.pt               after epoch 3
    RUN/epoch-0003-step-000120.pt   120 steps into epoch 4
    RUN/latest                      name of the newest, as text

A file is written under a temporary name, flushed to disk and renamed; then ``latest`` is replaced the same way. A file
holds tensors and plain values only, so ``torch.load(weights_only=True)`` reads it. It is a zip archive with a checksum
a record: :func:`load` compares them all, which torch.load alone does not.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import time
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from cltt.config import MAX_IMAGE_SIZE, MIN_IMAGE_SIZE
from cltt.config.recipe import is_backbone
from cltt.errors import DataError, StorageError
from cltt.files.atomic import create, flush, replace_file
from cltt.files.retry import is_transient, retry
from cltt.text import shorten
from cltt.threads import Call, Threads

T = TypeVar("T")
VERSION = 1
LATEST = "latest"
_OTHER_OBJECT = re.compile(r"GLOBAL ([\w.]+)")  # what torch says of one that it does not make
SETTINGS_FILE = "settings.json"  # of a run, beside its checkpoints
_OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number that torch.save began with
_MAX_VALUES = 10_000_000  # in a checkpoint
_SHARED = 4  # so many tensors may stand on the same bytes
# Of replace_file and write.
_LEFTOVER = re.compile(r"\.(epoch-.*|latest|complete|first-step|.*\.(csv|json|png))\.\d+\.tmp")
_NAME = re.compile(r"epoch-([0-9]{4,18})(?:-step-([0-9]{6,18}))?\.pt")
_MAX_NAME = 100  # letters of a checkpoint's


def checkpoint_name(epoch: int, step: int = 0) -> str:
    """File name after ``epoch`` whole epochs and ``step`` steps of the next."""
    return f"epoch-{epoch:04d}.pt" if step == 0 else f"epoch-{epoch:04d}-step-{step:06d}.pt"


def position(path: Path) -> tuple[int, int]:
    """``(epoch, step)`` written in a checkpoint's file name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path} is not named like a checkpoint (epoch-0003.pt or epoch-0003-step-000120.pt)")
    return int(match[1]), int(match[2] or 0)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first."""
    try:
        found = [path for path in folder.glob("epoch-*.pt") if _NAME.fullmatch(path.name) and path.is_file()]
    except FileNotFoundError:  # another rank tried whether the folder can be made, and took it away meanwhile
        return []
    return sorted(found, key=position)


def runs_below(folder: Path) -> str:
    """The end of a sentence that names the runs in ``folder``, which is none itself; "" if there are none."""
    runs = sorted({path.parent.name for path in folder.glob("*/epoch-*.pt")})
    return f"; the runs in it are {shorten(', '.join(runs), 80)}" if runs else ""


def older_checkpoints(folder: Path) -> list[Path]:
    """The files ``simclr_epoch_NNN.pth`` of the older script in ``folder``, by epoch."""
    files = [path for path in folder.glob("simclr_epoch_*.pth") if path.stem.rpartition("_")[2].isdecimal()]
    return sorted(files, key=lambda path: int(path.stem.rpartition("_")[2]))


def older_run(folder: Path) -> Path | None:
    """The newest file that the older script left in ``folder``; None: none, or a run of ours has saved there."""
    if list_checkpoints(folder):
        return None
    if files := older_checkpoints(folder):
        return files[-1]
    log = folder / "metrics.csv"
    return log if log.exists() and not (folder / SETTINGS_FILE).exists() else None


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Save ``state`` under ``path``, whole or not at all; OSError, and nothing left behind, if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    watched = _Watched()
    try:
        with create(temporary) as watched.file:
            torch.save({"version": VERSION, **state}, cast(IO[bytes], watched))
            watched.flush()
            os.fsync(watched.file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if watched.error is not None and watched.error is not error:
            raise watched.error from None
        raise
    flush(path.parent)


class _Watched:
    """A file for torch.save, which hides the system's error behind one of its own."""

    file: IO[bytes]
    error: OSError | None = None

    def write(self, data: Any) -> int:
        return self._noting(lambda: self.file.write(data))

    def flush(self) -> None:
        self._noting(self.file.flush)

    def _noting(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            self.error = self.error or error
            raise


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; DataError if it is missing, damaged, or of another version."""
    state = read(path)
    version = state.get("version") if isinstance(state, dict) else None
    if type(version) is not int or version != VERSION:
        found = shorten(repr(version).partition("\n")[0], 30)
        raise DataError(f"checkpoint {path} has version {found}; this program reads version {VERSION}")
    return dict(state)


def read(path: Path) -> Any:
    """What any program saved with torch, onto the CPU: tensors and plain values; DataError if there is nothing intact.

    Files of before torch 1.6 are no archives and have no checksums. Transient errors are retried.
    """
    if not os.path.isfile(path):  # False, too, for a name that the system cannot take
        raise DataError(f"no checkpoint at {shorten(str(path), 200)}")
    return retry(path, lambda: _read_once(path))


def _read_once(path: Path) -> Any:
    try:
        if not _is_old_format(path):
            _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(path, state)
        return state
    except DataError:
        raise
    except Exception as error:  # a damaged file can fail in the zip, pickle and tensor readers alike
        if isinstance(error, OSError) and is_transient(error):
            raise
        if isinstance(error, pickle.UnpicklingError) and (other := _OTHER_OBJECT.search(str(error))):
            raise DataError(_more_than_weights(path, other[1])) from error
        words = shorten(" ".join(str(error).split()), 200) or type(error).__name__
        raise DataError(f"checkpoint {path} is damaged or not a checkpoint ({words})") from error


def _more_than_weights(path: Path, other: str) -> str:
    return (
        f"{path} holds more than weights: objects of Python's ({shorten(other, 60)}), which are not read, as that can "
        f"run code; if you trust the file, save its weights alone and give that file:\n"
        f"  import torch; state = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
        "  torch.save(state.state_dict() if hasattr(state, 'state_dict') else {name: part for name, part in "
        "state.items() if isinstance(part, dict) and all(map(torch.is_tensor, part.values()))}, 'weights.pth')"
    )


def _is_old_format(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_OLD_FORMAT)) == _OLD_FORMAT


def _check_archive(path: Path) -> None:
    """Compare the checksum of every record. Those that torch writes are not compressed, so none grows when read."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise DataError(f"checkpoint {path} holds compressed records, which torch does not write")
        damaged = archive.testzip()
    if damaged is not None:
        raise DataError(f"checkpoint {path} is damaged (checksum of {shorten(damaged, 60)})")


def _check_tensors(path: Path, state: Any) -> None:
    """DataError for a tensor that stands for more memory than the file holds, as one repeated without end does."""
    room = _SHARED * path.stat().st_size
    todo, seen = [state], 0
    while todo:
        value = todo.pop()
        seen += 1
        if isinstance(value, torch.Tensor):
            room -= value.numel() * value.element_size()
        elif isinstance(value, Mapping):
            todo += [*value.values()]
        elif isinstance(value, (list, tuple)):
            todo += value
        if room < 0 or seen > _MAX_VALUES:
            raise DataError(f"checkpoint {path} stands for more than its file can hold")


def require_parts(path: Path, state: Mapping[str, Any], **parts: type) -> None:
    """DataError unless ``state``, read from ``path``, holds each of ``parts`` with a value of the type given."""
    for name, kind in parts.items():
        if not isinstance(state.get(name), kind):
            raise DataError(f"checkpoint {path} holds no {name!r} as training writes it; is it another program's?")


def settings_of(path: Path, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that ``state`` was saved with, by group; DataError unless a model's and the data's are there."""
    require_parts(path, state, settings=dict)
    settings = state["settings"]
    if not all(isinstance(group, dict) for group in settings.values()):
        raise DataError(f"checkpoint {path} holds no 'settings' as training writes them; is it another program's?")
    model, data = settings.get("model", {}), settings.get("data", {})
    fits = is_backbone(model.get("backbone")) and type(model.get("proj_dim")) is int
    if (
        not fits
        or type(data.get("image_size")) is not int
        or not MIN_IMAGE_SIZE <= data["image_size"] <= MAX_IMAGE_SIZE
    ):
        raise DataError(f"checkpoint {path} was saved with settings that this program does not know")
    return dict(settings)


def to_cpu(value: Any) -> Any:
    """A copy of nested dictionaries, lists and tensors that later training steps cannot change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_cpu(item) for item in value]
    return value


class CheckpointStore:
    """The checkpoints of one run.

    ``save`` copies the state and writes it in a thread, so that training goes on. What cannot be written is said, once
    when it begins and once when it ends, and leaves the older checkpoints as they are; the next ``save`` and ``retry``
    try again. Entered as a context, before anything is written to ``folder``, it removes what a killed run left there.

    Args:
        folder: folder of the run; made at the first save if missing.
        keep_last: checkpoints kept, the newest.
        keep_every: also keep the checkpoint of every n-th epoch (0: none).
        say: shows a line.

    Attributes:
        failed_at: when the last save failed, by ``time.monotonic()``; None: it is on disk or under way.
    """

    def __init__(
        self, folder: Path, *, keep_last: int = 3, keep_every: int = 0, say: Callable[[str], None] = print
    ) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.failed_at: float | None = None
        self._say = say
        self._why = ""
        self._newest: tuple[Path, dict[str, Any]] | None = None  # what is to be written, until it is
        self._writer = Threads(1, "cltt-checkpoint")
        self._pending: Call[None] | None = None

    def __enter__(self) -> CheckpointStore:
        self._remove_leftovers()  # before the first save: later, this process writes such files itself
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def save(self, state: Mapping[str, Any], *, epoch: int, step: int = 0) -> Path:
        """Save ``state`` as the newest checkpoint; returns its path at once, the file appears when it is whole."""
        copy = to_cpu(state)
        self.wait()
        path = self.folder / checkpoint_name(epoch, step)
        self._newest = path, copy
        self._start_writing()
        return path

    def wait(self) -> None:
        """Return when the last ``save`` is on disk, or has failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def retry(self) -> str:
        """Try again what could not be written; "" if all is on disk, else what is missing and why."""
        self.wait()
        if self.failed_at is not None:
            self._start_writing()
            self.wait()
        if self._newest is None:
            return ""
        newest = next(iter(_newest_first(self.folder)), None)
        return f"{self._newest[0]} ({self._why}); the newest checkpoint there: {newest.name if newest else 'none'}"

    def _start_writing(self) -> None:
        assert self._newest is not None
        self._pending = self._writer.submit(partial(self._write, *self._newest))

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        try:
            write(path, state)
            replace_file(self.folder / LATEST, f"{path.name}\n".encode())
        except OSError as error:
            self._why = error.strerror or str(error)
            if self.failed_at is None:
                self._say(f"warning: cannot save {path}: {self._why}; training goes on, and the write is retried")
            self.failed_at = time.monotonic()
            return
        if self.failed_at is not None:
            self._say(f"saved {path}: checkpoints can be written again")
        self.failed_at = self._newest = None
        with contextlib.suppress(OSError):  # the next save tries again
            self._remove_old()

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote here; what cannot be removed stays."""
        for path in self.folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _remove_old(self) -> None:
        for path in list_checkpoints(self.folder)[: -self.keep_last]:
            epoch, step = position(path)
            if not (self.keep_every and step == 0 and epoch % self.keep_every == 0):
                path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoint that ``latest`` names, then the others from the newest to the oldest."""
    paths = list_checkpoints(folder)[::-1]
    pointer = folder / LATEST
    named = folder / pointer.read_bytes()[:_MAX_NAME].decode(errors="replace").strip() if pointer.is_file() else None
    if named in paths:
        paths.remove(named)
        paths.insert(0, named)
    return paths


def find_latest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest intact checkpoint of a run (None if there is none), its contents, a warning for each damaged one.

    A damaged file is renamed to ``*.damaged``: out of the way of those to come, and there to be looked at. Raises
    DataError if there are checkpoints but none is intact; then nothing is renamed.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _newest_first(folder):
        try:
            state = load(path)
        except StorageError:
            raise  # no telling what is in it
        except DataError as error:
            damaged.append((path, f"{error}; going back to the one before"))
            continue
        for bad, _ in damaged:
            bad.rename(bad.with_name(f"{bad.name}.damaged"))
        return path, state, [warning for _, warning in damaged]
    if damaged:
        raise DataError(f"none of the {len(damaged)} checkpoints in {folder} is intact; the newest: {damaged[0][1]}")
    return None, {}, []


def resolve(path: Path) -> Path:
    """The checkpoint meant by ``path``: itself, or the newest of a run folder. DataError if there is none."""
    if not os.path.isdir(path):  # False, too, for a name that the system cannot take
        return path
    paths = _newest_first(path)
    if not paths:
        raise DataError(f"{path} holds no checkpoints (epoch-*.pt)")
    return paths[0]
