"""Videos as clips: which frames a video gives, and the JPEGs that shards store for them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from cltt.errors import DataError, InvalidImage, SettingsError
from cltt.files.retry import is_transient, retry
from cltt.source import image, pixels
from cltt.source.odd import Odd
from cltt.source.scan import SourceClip, SourceFrame, moment, not_as_planned, reading
from cltt.source.video.file import InvalidVideo, file_identity, opened, rate_of, reason_of
from cltt.source.video.kinds import RAW_FORMATS
from cltt.source.video.streams import Crop, crop_of, moving_streams
from cltt.source.video.timeline import DECODED, PACKETS, Samples, Timeline, sample

if TYPE_CHECKING:
    import av.container
    import av.video.stream

OTHER_STREAM = "another video stream than the one that is taken"
MAX_STREAM = 1000
_GUESSED_VIDEOS, _GUESSED_PLACES = 12, (0.1, 0.5, 0.9)  # of ``guess_bytes``; places: shares of a video's length
READ = "read"  # the kind of a note that says how the frames of a video were listed
BY_PACKETS = "by its packets"
NO_FRAMES = "a video without frames"
# Rough bytes per pixel of a 4:2:0 JPEG by its quality (measured on 320x256 frames of streets and rooms).
_BYTES_PER_PIXEL = ((100, 0.8), (95, 0.36), (90, 0.25), (75, 0.14), (0, 0.08))


@dataclass(frozen=True)
class Sampling:
    """Which frames are taken of a video, and how they are stored.

    fps: frames per second; None: all. max_gap: seconds without a frame that cut the clip; None: chosen from ``fps``.
    stream: number of the video stream; None: ``streams.main_stream``.
    """

    fps: float | None = None
    max_gap: float | None = None
    resize_short: int | None = None
    quality: int = 90
    stream: int | None = None
    max_pixels: int = image.MAX_PIXELS


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """The sampling in a build's settings; what those of older versions lack has its default."""
    given = {field.name: settings.get(field.name, field.default) for field in fields(Sampling)}
    return Sampling(**given)


def need_av() -> None:
    """Raise SettingsError, naming the extra to install, if PyAV cannot be imported."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"there are videos, and they need PyAV, which cannot be imported ({error}); pip install 'cltt[video]'"
        ) from error


# ---- listing


class Listed(NamedTuple):
    """A clip with all its frames, and what was noted about it.

    notes: (path, "skipped", "cut" or READ, reason).
    """

    clip: SourceClip
    notes: Sequence[tuple[bytes, str, str]] = ()
    odd: Sequence[Odd] = ()


def list_frames(root: bytes, found: SourceClip, sampling: Sampling) -> Listed:
    """The video that was ``found``, with its frames; without any if it is no valid video.

    Raises DataError if the file cannot be read, or changes meanwhile.
    """
    path = os.path.join(root, found.key)
    try:
        with reading(path):
            listed = retry(path, lambda: _examine(path, found, sampling))
    except InvalidVideo as error:
        return Listed(found._replace(frames=[]), [(found.key, "skipped", str(error))])
    _check_unchanged(path, (found.frames[0].size, found.frames[0].mark))
    return listed


def _examine(path: bytes, found: SourceClip, sampling: Sampling) -> Listed:
    """As :func:`list_frames`, raising InvalidVideo, and OSError as the system does."""
    from cltt.source.video.times import timeline_of

    key = found.key
    with opened(path, sampling.stream) as (container, stream):
        size = _stored_size(path, container, stream, sampling)
        line = timeline_of(container, stream, sampling.max_pixels)
        samples = sample(line, sampling.fps, sampling.max_gap)
        others = len(moving_streams(container)) - 1
        odd = [*_odd_streams(key, container, stream, sampling), *_odd_times(key, line, samples, sampling)]
    info = {"size": found.frames[0].size, "mtime_ns": found.frames[0].mark, "timing": line.timing}
    info |= {} if sampling.stream is None else {"stream": sampling.stream}
    video = json.dumps(info).encode()
    frames = [
        SourceFrame(
            b"%08d.jpg" % k, size, int(line.ids[at]), int(line.entries[at]), float(line.times[at]), begins, key, video
        )
        for k, (at, begins) in enumerate(zip(samples.frames.tolist(), samples.begins.tolist(), strict=True))
    ]
    notes = [(key, "skipped", OTHER_STREAM)] * others
    notes += [(moment(key, note.time), note.what, note.reason) for note in [*line.notes, *samples.notes]]
    notes.append((key, READ, f"by decoding, as {line.why}" if line.why else BY_PACKETS))
    if not frames:
        notes.append((key, "skipped", NO_FRAMES))
    return Listed(SourceClip(key, frames, video), notes, odd)


def _odd_streams(
    key: bytes, container: av.container.InputContainer, stream: av.video.stream.VideoStream, sampling: Sampling
) -> Iterator[Odd]:
    name, streams = os.fsdecode(key), len(moving_streams(container))
    if streams > 1 and sampling.stream is None:
        example = f"{name}: number {container.streams.video.index(stream)} of those from 0 to {streams - 1}"
        yield Odd("videos of several video streams", example, "--stream N takes another")
    if container.format.name in RAW_FORMATS:
        rate = float(rate_of(stream))
        yield Odd(f"videos without times, whose frames are taken to come at {rate:g} per second", name)


def _odd_times(key: bytes, line: Timeline, samples: Samples, sampling: Sampling) -> Iterator[Odd]:
    name = os.fsdecode(key)
    if samples.slower:
        what = f"videos of fewer frames per second than --fps {sampling.fps:g}, all of whose frames are taken"
        yield Odd(what, name, "their steps are longer than those of the others; a lower --fps makes them equal")
    if line.fields:
        yield Odd("HEVC videos of single fields, which are taken for frames: each has every other line", name)


def list_one(root: bytes, key: bytes, sampling: Sampling) -> SourceClip:
    """The clip of the video ``key`` as the file is now; DataError if it cannot be read."""
    path = os.path.join(root, key)
    need_av()
    with reading(path):
        size, mtime_ns = file_identity(path)
    return list_frames(root, SourceClip(key, [SourceFrame(b"", size, mtime_ns, key=key)]), sampling).clip


def _stored_size(
    path: bytes, container: av.container.InputContainer, stream: av.video.stream.VideoStream, sampling: Sampling
) -> int:
    """A rough estimate of the bytes of one stored frame, by its size in pixels alone."""
    from cltt.source.video.pixels import square_size

    with open(path, "rb") as file:
        shown = crop_of(file, container, stream).size(stream.width, stream.height)
    known = max(1, shown[0]), max(1, shown[1])  # a damaged header may say 0
    width, height = pixels.shrunk_size(*square_size(*known, stream.sample_aspect_ratio), sampling.resize_short)
    return 1 + int(width * height * _bytes_per_pixel(sampling.quality))


def _bytes_per_pixel(quality: int) -> float:
    return next(share for least, share in _BYTES_PER_PIXEL if quality >= least)


def _check_unchanged(path: bytes, identity: tuple[int, int]) -> None:
    """Raise DataError unless the file still has the ``file_identity`` that it had."""
    try:
        now = file_identity(path)
    except OSError as error:
        raise not_as_planned(path, error) from error
    if now != identity:
        raise not_as_planned(path)


# ---- estimated bytes


def small_bytes(sampling: Sampling) -> int:
    """Estimated bytes of a stored 16:9 frame whose short side is ``resize_short``."""
    return int((sampling.resize_short or 0) ** 2 * 16 / 9 * _bytes_per_pixel(sampling.quality))


def guess_bytes(root: str, sizes: Mapping[str, int], sampling: Sampling, overhead: int) -> int:
    """Estimated bytes of the stored frames of the videos ``sizes`` (key: bytes of the file).

    Each frame takes ``overhead`` bytes more than its JPEG. A few frames of a few videos are encoded for the estimate.
    """
    chosen = list(sizes)[:: max(1, -(-len(sizes) // _GUESSED_VIDEOS))]
    if not chosen:
        return 0
    need_av()
    guessed = sum(_guess(os.fsencode(os.path.join(root, key)), sizes[key], sampling, overhead) for key in chosen)
    return int(guessed * sum(sizes.values()) / max(1, sum(sizes[key] for key in chosen)))


def _guess(path: bytes, size: int, sampling: Sampling, overhead: int) -> float:
    """The estimate for one video; the ``size`` of the file if it cannot be decoded."""
    import av

    try:
        with opened(path, sampling.stream) as (container, stream), open(path, "rb") as file:
            seconds = (container.duration or 0) / av.time_base
            rate = float(rate_of(stream))
            frames = seconds * (rate if sampling.fps is None else min(rate, sampling.fps))
            encode = _Encoder(stream, crop_of(file, container, stream), sampling)
            stored = []
            for share in _GUESSED_PLACES:
                container.seek(int(share * seconds * av.time_base) + (container.start_time or 0))
                stored.append(encode(next(container.decode(stream))))
            found = [len(one.data) for one in stored if not isinstance(one, InvalidImage)]
    except (InvalidVideo, av.FFmpegError, OSError, StopIteration):
        return size
    return frames * (sum(found) / len(found) + overhead) if found and frames else size


# ---- reading


def read_frames(
    root: bytes, key: bytes, video: bytes, wanted: Sequence[tuple[int, int]], sampling: Sampling
) -> Generator[image.Stored | InvalidImage, None, None]:
    """Frames of the video ``key``, one for each of ``wanted``, in time order.

    ``wanted``: (mark, entry) of each ``SourceFrame``. ``video``: ``SourceClip.video`` as listed, which also names the
    stream. ``sampling`` tells how frames are stored.
    Raises DataError if the file is gone, cannot be read or has changed since it was listed.
    """
    info = json.loads(video)
    path = os.path.join(root, key)
    identity = (info["size"], info["mtime_ns"])
    _check_unchanged(path, identity)
    if info["timing"] not in (PACKETS, DECODED):
        raise DataError(f"the plan of {os.fsdecode(path)!r} is of an older version; make a new one with --overwrite")
    given = 0
    try:
        while given < len(wanted):
            try:
                for one in _decode(path, info, wanted[given:], sampling):
                    yield one
                    given += 1
            except OSError as error:
                if not is_transient(error):
                    raise
                rest = wanted[given:]
                yield retry(path, lambda: next(_decode(path, info, rest, sampling)))  # noqa: B023  # called at once
                given += 1
    except OSError as error:
        raise not_as_planned(path, error) from error
    _check_unchanged(path, identity)


def _decode(
    path: bytes, info: Mapping[str, Any], wanted: Sequence[tuple[int, int]], sampling: Sampling
) -> Iterator[image.Stored | InvalidImage]:
    """As :func:`read_frames`, raising OSError as the system does."""
    from cltt.source.video.frames import VideoReader, Wanted

    given = 0
    try:
        with VideoReader(path, info["timing"], number=info.get("stream"), max_pixels=sampling.max_pixels) as reader:
            encode = _Encoder(reader.stream, reader.crop, sampling)
            for frame in reader.frames([Wanted(*one) for one in wanted]):
                yield InvalidImage(frame) if isinstance(frame, str) else encode(frame)
                given += 1
    except InvalidVideo as error:
        for _ in wanted[given:]:
            yield InvalidImage(str(error))


class _Encoder:
    """Encodes decoded frames as JPEG; a frame that is given twice in a row is encoded once."""

    def __init__(self, stream: av.video.stream.VideoStream, crop: Crop, sampling: Sampling) -> None:
        from cltt.source.video.pixels import Upright

        self._upright = Upright(stream.sample_aspect_ratio, sampling.resize_short, crop)
        self._sampling = sampling
        self._last: tuple[Any, image.Stored | InvalidImage] = (None, InvalidImage(""))

    def __call__(self, frame: Any) -> image.Stored | InvalidImage:
        if self._last[0] is not frame:
            self._last = frame, self._encode(frame)
        return self._last[1]

    def _encode(self, frame: Any) -> image.Stored | InvalidImage:
        import av

        try:
            image.check_pixels(frame.width, frame.height, self._sampling.max_pixels)
            picture, full = self._upright.rgb(frame)
            height, width = picture.shape[:2]
            image.check_stored(data := pixels.encode(picture, self._sampling.quality), width, height)
        except InvalidImage as error:
            return error
        except MemoryError:
            return InvalidImage("cannot be turned into RGB: it takes more memory than there is")
        except av.FFmpegError as error:
            return InvalidImage(f"cannot be turned into RGB: {reason_of(error)}")
        return image.Stored(data, width, height, "", *full)
