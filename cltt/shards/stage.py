"""Staging: shards are copied to a node's own disk before a run reads them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cltt import distributed
from cltt.distributed.identity import RankInfo
from cltt.errors import DataError, SettingsError
from cltt.files import atomic
from cltt.files.atomic import check_writable, replace_file
from cltt.files.locks import locked
from cltt.files.regular import is_regular
from cltt.files.retry import read_bytes, read_pieces, retry
from cltt.shards import checks, layout

COPY_BYTES = 8 << 20  # read and written at a time


def stage(shards: Path, target: Path, info: RankInfo) -> Path:
    """Copy ``shards`` to ``target/NAME-FINGERPRINT`` and return that folder. Each file's checksum is compared.

    Local rank 0 of each node copies, and the other ranks wait without a timeout. A lock keeps several jobs on a node
    from copying at a time. A complete copy is used again.

    Reads are retried after transient errors, writes are not. Raises SettingsError if ``target`` cannot be written,
    DataError if a file cannot be copied.
    """
    index = checks.read_index(shards)
    copy = target / f"{shards.resolve().name}-{index['fingerprint'][:12]}"
    if info.local_rank == 0:
        check_writable(target, "give another --stage-to")
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / f".{copy.name}.lock", wait=True):
            _copy_missing(shards, copy, index)
    distributed.wait_for_all()
    if not (copy / layout.INDEX).is_file():
        raise DataError(f"no shards in {copy} after staging; is --stage-to on this node's own disk?")
    return copy


def _copy_missing(shards: Path, copy: Path, index: dict[str, Any]) -> None:
    """Copy each file that is missing or differs, compare its checksum, and write ``index.json`` last."""
    if copy.is_symlink():
        raise SettingsError(f"{copy} is a symbolic link; remove it or give another --stage-to")
    if is_regular(copy / layout.INDEX):
        return
    copy.mkdir(parents=True, exist_ok=True)
    files = {shard["name"]: shard for shard in index["shards"]} | index["files"]
    for name, expected in tqdm(files.items(), desc="stage", unit="file", disable=None):
        target = copy / name
        if checks.file_problem(target, expected):
            temporary = atomic.temporary_path(target)
            _copy(shards / name, temporary, expected["size"])
            if checks.file_problem(temporary, expected):
                raise DataError(f"{shards / name} does not have the size and hash in its index; run `cltt verify`")
            os.replace(temporary, target)
    replace_file(copy / layout.INDEX, read_bytes(shards / layout.INDEX))


def _copy(source: Path, target: Path, size: int) -> None:
    """Copy the regular file ``source`` (no link, FIFO or device) if it has ``size`` bytes."""
    try:
        if not is_regular(source):
            raise OSError(errno.EINVAL, "not a regular file")
        with atomic.create(target) as file:
            if retry(source, source.stat).st_size == size:  # otherwise the checksum will not fit, and the caller raises
                for piece in read_pieces(source, COPY_BYTES, follow=False):
                    file.write(piece)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise DataError(
            f"cannot copy {source} to {target.parent}: {error.strerror}; make room or give another --stage-to"
        ) from error
