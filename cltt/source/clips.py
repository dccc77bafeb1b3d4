"""Sources of all kinds, folders of frames and videos: list the clips, read their frames in order.

A new kind of source is found in ``scan``, listed in :func:`list_clips` and read in :class:`FrameReader`; no other
package depends on the kind of a clip.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cltt.errors import InvalidImage
from cltt.files import maps
from cltt.files.regular import open_regular
from cltt.files.retry import ShortRead, retry
from cltt.source import image, scan, videos
from cltt.source.scan import Scan, SourceFrame

READ_THREADS = 32  # more than cores: they wait for the file system
READ_FRAMES = 8  # frames per thread and read ...
READ_BYTES = 1 << 20  # ... fewer if they hold more than this
READ_AHEAD = 64  # such reads in flight ...
HELD_BYTES = 64 << 20  # ... fewer if they may hold more than this

Content = bytes | InvalidImage
Result = image.Stored | InvalidImage


# ---- listing


def list_clips(found: Scan, pool: ThreadPoolExecutor, sampling: videos.Sampling) -> Iterator[videos.Listed]:
    """The clips of ``found`` in order; ``found.skipped`` and ``found.odd`` grow meanwhile.

    Videos are read to their ends, but not decoded unless their packets do not tell their frames. Raises SettingsError
    if there is a video and PyAV is not installed, DataError for a file that cannot be read.
    """
    from tqdm import tqdm  # not at the top: packing processes start faster without it

    clips = scan.scan_clips(found, pool)
    for is_video, group in itertools.groupby(clips, lambda clip: bool(clip.video)):
        if not is_video:
            yield from map(videos.Listed, group)
            continue
        videos.need_av()
        cores = os.cpu_count() or 1
        with ThreadPoolExecutor(cores) as readers:
            listed = maps.ordered_map(
                readers, lambda clip: videos.list_frames(found.root, clip, sampling), group, 2 * cores
            )
            yield from tqdm(listed, desc="reading videos", unit="", delay=2, leave=False, disable=None)


# ---- reading


class FrameReader:
    """Reads planned frames and converts them to what a shard stores; threads read ahead if the file system is slow.

    Args:
        root: the folder that the clips' keys are relative to.
        largest: bytes of the largest file among the frames.
        options: as of ``image.as_stored``, all of them.
    """

    def __init__(self, root: bytes, largest: int, **options: Any) -> None:
        self._root = root
        self._options = options
        self._ahead = max(2, min(READ_AHEAD, HELD_BYTES // max(READ_BYTES, largest)))
        self._pool = ThreadPoolExecutor(READ_THREADS)
        self._mapped = maps.AdaptiveMap(self._pool)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, frames: Iterable[SourceFrame]) -> Iterator[tuple[SourceFrame, Result]]:
        """Each frame with what a shard stores for it, or an InvalidImage that says why it is none.

        Raises DataError for a file that cannot be read, or has changed since it was listed.
        """
        for (key, video), group in itertools.groupby(
            frames, lambda frame: (frame.key if frame.video else b"", frame.video)
        ):
            if video:
                yield from self._read_video(key, list(group))
            else:
                yield from self._read_files(group)

    def _read_files(self, frames: Iterator[SourceFrame]) -> Iterator[tuple[SourceFrame, Result]]:
        for piece in self._mapped(self._read_piece, _pieces(frames), self._ahead):
            for frame, content in piece:
                yield frame, self._stored(content)

    def _read_piece(self, piece: list[SourceFrame]) -> list[tuple[SourceFrame, Content]]:
        limit = self._options["max_pixels"]
        return [(frame, _read_planned(self._root, frame, limit)) for frame in piece]

    def _stored(self, content: Content) -> Result:
        if isinstance(content, InvalidImage):
            return content
        try:
            return image.as_stored(content, **self._options)
        except InvalidImage as error:
            return error

    def _read_video(self, key: bytes, frames: list[SourceFrame]) -> Iterator[tuple[SourceFrame, Result]]:
        sampling = videos.sampling_of(self._options)
        wanted = [(frame.mark, frame.entry) for frame in frames]
        with contextlib.closing(videos.read_frames(self._root, key, frames[0].video, wanted, sampling)) as results:
            yield from zip(frames, results, strict=True)


def _pieces(frames: Iterator[SourceFrame]) -> Iterator[list[SourceFrame]]:
    """The frames in pieces, each read by one thread at once."""
    piece: list[SourceFrame] = []
    held = 0
    for frame in frames:
        piece.append(frame)
        held += frame.size
        if len(piece) == READ_FRAMES or held >= READ_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _read_planned(root: bytes, frame: SourceFrame, max_pixels: int) -> Content:
    """The bytes of a source file, or why it is no image; DataError if it is not the file that was planned."""
    if frame.size == scan.DANGLING:
        return InvalidImage("symbolic link that leads nowhere")
    path = b"%b/%b/%b" % (root, frame.key, frame.name)
    try:
        data, info = retry(path, lambda: _read_once(path, frame.size, max_pixels))
    except OSError as error:
        raise scan.not_as_planned(os.path.join(root, frame.path), error) from error
    length = frame.size if isinstance(data, InvalidImage) else len(data)
    if length != frame.size or (info.st_size, info.st_mtime_ns) != (frame.size, frame.mark):
        raise scan.not_as_planned(os.path.join(root, frame.path))
    return data


def _read_once(path: bytes, size: int, max_pixels: int) -> tuple[Content, os.stat_result]:
    """(contents of a file that should have ``size`` bytes, or why it is no image; its status)."""
    handle = open_regular(path)
    try:
        info = os.fstat(handle)
        image.check_file(handle, info.st_size, max_pixels)
        data = os.read(handle, size + 1)
        while len(data) < info.st_size and (more := os.read(handle, info.st_size - len(data))):
            data += more
    except InvalidImage as error:
        return error, info
    except MemoryError:
        return InvalidImage("it takes more memory than there is"), info
    finally:
        os.close(handle)
    if len(data) < info.st_size:
        raise ShortRead(path)
    return data, info
