"""The one face of all kinds of source, folders of frames and videos: list the clips, give their frames in order.

A third kind is found in ``scan``, listed in :func:`list_clips` and read in :class:`FrameReader`; nothing outside this
package asks of which kind a clip is.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from cltt.errors import DataError, InvalidImage
from cltt.files import threads
from cltt.files.regular import open_regular
from cltt.files.retry import ShortRead, retry
from cltt.source import image, scan, videos
from cltt.source.odd import Odd
from cltt.source.scan import Scan, SourceClip

READ_THREADS = 32  # they wait for the file system, they do not compute
READ_FRAMES = 8  # frames read by one thread at a time ...
READ_BYTES = 1 << 20  # ... unless they hold more than this
READ_AHEAD = 64  # such pieces in flight ...
HELD_BYTES = 64 << 20  # ... unless they may hold more than this
AGAIN = "put it back and start again, or make a new plan with --overwrite"

Content = bytes | InvalidImage
Result = image.Stored | InvalidImage


# ---- listing


class Listed(NamedTuple):
    """A clip with all its frames, (path, what, reason) notes on it (``videos.Listing``), and what is odd."""

    clip: SourceClip
    notes: Sequence[tuple[bytes, str, str]] = ()
    odd: Sequence[Odd] = ()


def list_clips(found: Scan, pool: ThreadPoolExecutor, sampling: videos.Sampling) -> Iterator[Listed]:
    """The clips of ``found`` in order; ``found.skipped`` and ``found.odd`` grow along the way.

    Videos are read to their ends, not decoded. Raises SettingsError if there is one and PyAV is not installed,
    DataError for a file that cannot be read.
    """
    from tqdm import tqdm  # not at the top: packing processes start without it

    clips = scan.scan_clips(found, pool)
    for is_video, group in itertools.groupby(clips, lambda clip: bool(clip.video)):
        if not is_video:
            yield from map(Listed, group)
            continue
        videos.need_av()
        with ThreadPoolExecutor(os.cpu_count()) as readers:
            listed = threads.ordered_map(
                readers,
                lambda clip: videos.list_frames(found.root, clip, sampling),
                group,
                2 * (os.cpu_count() or 1),
            )
            yield from (
                Listed(*one) for one in tqdm(listed, desc="reading videos", unit="", delay=2, leave=False, disable=None)
            )


# ---- reading


class Planned(NamedTuple):
    """One frame of a list with all that reading it takes; see ``scan.SourceFrame``."""

    key: bytes
    video: bytes
    name: bytes
    size: int
    mark: int
    entry: int
    time: float

    @property
    def path(self) -> bytes:
        """What names the frame to people: a file's path, a video's with the time."""
        return videos.moment(self.key, self.time) if self.video else scan.join_key(self.key, self.name)


class FrameReader:
    """Gives listed frames as a shard keeps them; by threads ahead where files are slow to come.

    Args:
        root: the folder that the clips' keys are relative to.
        largest: bytes of the largest file among the frames.
        options: of ``image.as_stored``.
    """

    def __init__(self, root: bytes, largest: int, **options: Any) -> None:
        self._root = root
        self._options = options
        self._ahead = max(2, min(READ_AHEAD, HELD_BYTES // max(READ_BYTES, largest)))
        self._pool = ThreadPoolExecutor(READ_THREADS)
        self._mapped = threads.AdaptiveMap(self._pool)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, frames: Iterable[Planned]) -> Iterator[tuple[Planned, Result]]:
        """Each frame with what is to be stored, or why it is no frame.

        Raises DataError for a file that cannot be read, or is not the one that was listed.
        """
        for (key, video), group in itertools.groupby(
            frames, lambda frame: (frame.key if frame.video else b"", frame.video)
        ):
            if video:
                yield from self._read_video(key, list(group))
            else:
                yield from self._read_files(group)

    def _read_files(self, frames: Iterator[Planned]) -> Iterator[tuple[Planned, Result]]:
        for piece in self._mapped(self._read_piece, _pieces(frames), self._ahead):
            for frame, content in piece:
                yield frame, self._stored(content)

    def _read_piece(self, piece: list[Planned]) -> list[tuple[Planned, Content]]:
        limit = self._options["max_pixels"]
        return [(frame, _read_planned(self._root, frame, limit)) for frame in piece]

    def _stored(self, content: Content) -> Result:
        if isinstance(content, InvalidImage):
            return content
        try:
            return image.as_stored(content, **self._options)
        except InvalidImage as error:
            return error

    def _read_video(self, key: bytes, frames: list[Planned]) -> Iterator[tuple[Planned, Result]]:
        options = {name: self._options[name] for name in ("resize_short", "quality", "max_pixels")}
        wanted = [(frame.mark, frame.entry) for frame in frames]
        with contextlib.closing(videos.read_frames(self._root, key, frames[0].video, wanted, **options)) as results:
            yield from zip(frames, results, strict=True)


def _pieces(frames: Iterator[Planned]) -> Iterator[list[Planned]]:
    """The frames in pieces that one thread reads."""
    piece: list[Planned] = []
    held = 0
    for frame in frames:
        piece.append(frame)
        held += frame.size
        if len(piece) == READ_FRAMES or held >= READ_BYTES:
            yield piece
            piece, held = [], 0
    if piece:
        yield piece


def _read_planned(root: bytes, frame: Planned, max_pixels: int) -> Content:
    """The bytes of a source file, or why they cannot be a picture; DataError if it is not the file that was planned."""
    if frame.size == scan.DANGLING:
        return InvalidImage("symbolic link that leads nowhere")
    path = b"%b/%b/%b" % (root, frame.key, frame.name)
    data: Content
    try:
        data, info = retry(path, lambda: _read_once(path, frame.size, max_pixels))
    except OSError as error:
        what = "has disappeared since the plan was made" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise DataError(f"{_printed(root, frame)} {what} ({error.strerror}); {AGAIN}") from error
    length = frame.size if isinstance(data, InvalidImage) else len(data)
    if length != frame.size or (info.st_size, info.st_mtime_ns) != (frame.size, frame.mark):
        raise DataError(f"{_printed(root, frame)} has changed since the plan was made; {AGAIN}")
    return data


def _read_once(path: bytes, size: int, max_pixels: int) -> tuple[Content, os.stat_result]:
    """A file that should have ``size`` bytes, or why it cannot be a picture, and what the system says of it."""
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


def _printed(root: bytes, frame: Planned) -> str:
    return repr(os.fsdecode(os.path.join(root, frame.path)))
