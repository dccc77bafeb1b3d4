"""Videos as clips: which frames a video gives, and these frames as a shard keeps them."""

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
from cltt.source.scan import SourceClip, SourceFrame
from cltt.source.video.file import InvalidVideo, file_identity, opened, rate_of, reason_of
from cltt.source.video.kinds import RAW_FORMATS
from cltt.source.video.streams import Crop, crop_of, moving_streams
from cltt.source.video.timeline import DECODED, PACKETS, Samples, Timeline, sample

if TYPE_CHECKING:
    import av.container
    import av.video.stream

AGAIN = "put it back and start again, or make a new plan with --overwrite"
OTHER_STREAM = "another video stream than the one that is taken"
MAX_STREAM = 1000
_GUESSED_VIDEOS, _GUESSED_PLACES = 12, (0.1, 0.5, 0.9)
READ = "read"  # a note that tells how a video was listed
BY_PACKETS = "by its packets"
NO_FRAMES = "a video without frames"
# Bytes a pixel of a JPEG in 4:2:0 by its quality, roughly (320x256 frames of the street and of rooms).
_BYTES_A_PIXEL = ((100, 0.8), (95, 0.36), (90, 0.25), (75, 0.14), (0, 0.08))


@dataclass(frozen=True)
class Sampling:
    """Which frames a video gives, and how they will be stored (for the size that is planned with).

    fps: frames a second, None: all; max_gap: seconds without a frame that cut the clip, None: by ``fps``; stream: the
    number of the video stream, None: ``streams.main_stream``.
    """

    fps: float | None = None
    max_gap: float | None = None
    resize_short: int | None = None
    quality: int = 90
    stream: int | None = None
    max_pixels: int = image.MAX_PIXELS


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """How frames of videos are chosen and stored by the settings of a build, old ones too."""
    given = {field.name: settings.get(field.name, field.default) for field in fields(Sampling)}
    return Sampling(**given)


def need_av() -> None:
    """SettingsError that names the extra, where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"there are videos, and they need PyAV, which cannot be imported ({error}); pip install 'cltt[video]'"
        ) from error


def member_name(k: int) -> bytes:
    """The name within its clip of the sampled frame ``k``."""
    return b"%08d.jpg" % k


def moment(key: bytes, time: float | None) -> bytes:
    """What names a frame of a video to people: ``talk.mp4#t=12.400``; the video itself without a time."""
    return key if time is None else key + b"#t=%.3f" % time


# ---- listing


class Listing(NamedTuple):
    """The clip of a video with its frames, (path, "skipped", "cut" or READ, reason) of it, and what is odd."""

    clip: SourceClip
    notes: list[tuple[bytes, str, str]]
    odd: list[Odd]


def list_frames(root: bytes, found: SourceClip, sampling: Sampling) -> Listing:
    """The clip of a video that was ``found``. Raises DataError if the file cannot be read, or changes meanwhile."""
    path = os.path.join(root, found.key)
    identity = (found.frames[0].size, found.frames[0].mark)
    try:
        seen = retry(path, lambda: _look(path, sampling))
    except InvalidVideo as error:
        return Listing(found._replace(frames=[]), [(found.key, "skipped", str(error))], [])
    except OSError as error:
        raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
    _check_unchanged(path, identity)
    line, samples = seen.line, seen.samples
    frames = [
        SourceFrame(member_name(k), seen.size, int(line.ids[at]), int(line.entries[at]), float(line.times[at]), begins)
        for k, (at, begins) in enumerate(zip(samples.frames.tolist(), samples.begins.tolist(), strict=True))
    ]
    notes: list[tuple[bytes, str, str]] = [(found.key, "skipped", OTHER_STREAM)] * (seen.streams - 1)
    notes += [(moment(found.key, note.time), note.what, note.reason) for note in [*line.notes, *samples.notes]]
    notes.append((found.key, READ, f"by decoding, as {line.why}" if line.why else BY_PACKETS))
    if not frames:
        notes.append((found.key, "skipped", NO_FRAMES))
    info = {"size": identity[0], "mtime_ns": identity[1], "timing": line.timing}
    info |= {} if sampling.stream is None else {"stream": sampling.stream}
    return Listing(
        SourceClip(found.key, frames, json.dumps(info).encode()), notes, list(_odd(found.key, seen, sampling))
    )


def _odd(key: bytes, seen: _Look, sampling: Sampling) -> Iterator[Odd]:
    name = os.fsdecode(key)
    if seen.streams > 1 and sampling.stream is None:
        example = f"{name}: number {seen.number} of those from 0 to {seen.streams - 1}"
        yield Odd("videos of several video streams", example, "--stream N takes another")
    if seen.samples.slower:
        what = f"videos of fewer frames per second than --fps {sampling.fps:g}, all of whose frames are taken"
        yield Odd(what, name, "their steps are longer than those of the others; a lower --fps makes them equal")
    if seen.line.fields:
        yield Odd("HEVC videos of single fields, which are taken for frames: each has every other line", name)
    if seen.made_up:
        yield Odd(f"videos without times, whose frames are taken to come at {seen.made_up:g} per second", name)


def list_one(root: bytes, key: bytes, sampling: Sampling) -> SourceClip:
    """The clip of the video ``key`` as it lies there now; DataError if it cannot be read."""
    path = os.path.join(root, key)
    need_av()
    try:
        size, mtime_ns = file_identity(path)
    except OSError as error:
        raise DataError(f"cannot read {os.fsdecode(path)!r}: {error.strerror}") from error
    return list_frames(root, SourceClip(key, [SourceFrame(b"", size, mtime_ns)]), sampling).clip


class _Look(NamedTuple):
    """What a video is: its frames and those taken, the bytes that one will have, video streams and the number of ours.

    made_up: frames per second of a video without times, else 0.
    """

    line: Timeline
    samples: Samples
    size: int
    streams: int
    number: int
    made_up: float


def _look(path: bytes, sampling: Sampling) -> _Look:
    from cltt.source.video.times import NotSure, decode_timeline, packet_timeline

    line: Timeline | None = None
    with opened(path, sampling.stream) as (container, stream):
        size = _stored_size(path, container, stream, sampling)
        streams = moving_streams(container)
        number = [other.index for other in container.streams.video].index(stream.index)
        made_up = float(rate_of(stream)) if container.format.name in RAW_FORMATS else 0.0
        try:
            line = packet_timeline(container, stream)
        except NotSure as reason:
            why = str(reason)
    line = line or decode_timeline(path, sampling.stream, sampling.max_pixels, why)
    return _Look(line, sample(line, sampling.fps, sampling.max_gap), size, len(streams), number, made_up)


def _stored_size(
    path: bytes, container: av.container.InputContainer, stream: av.video.stream.VideoStream, sampling: Sampling
) -> int:
    from cltt.source.video.pixels import shrunk_size, square_size

    with open(path, "rb") as file:
        shown = crop_of(file, container, stream).size(stream.width, stream.height)
    known = max(1, shown[0]), max(1, shown[1])  # a damaged header may say 0
    width, height = shrunk_size(*square_size(*known, stream.sample_aspect_ratio), sampling.resize_short)
    return 1 + int(width * height * _bytes_a_pixel(sampling.quality))


def _bytes_a_pixel(quality: int) -> float:
    return next(share for least, share in _BYTES_A_PIXEL if quality >= least)


def _check_unchanged(path: bytes, identity: tuple[int, int]) -> None:
    try:
        now = file_identity(path)
    except OSError as error:
        raise DataError(
            f"{os.fsdecode(path)!r} has disappeared since the plan was made ({error.strerror}); {AGAIN}"
        ) from error
    if now != identity:
        raise DataError(f"{os.fsdecode(path)!r} has changed since the plan was made; {AGAIN}")


# ---- how much it will be


def small_bytes(sampling: Sampling) -> int:
    """About how many bytes a picture of 16:9 takes that is made as small as ``resize_short``."""
    return int((sampling.resize_short or 0) ** 2 * 16 / 9 * _bytes_a_pixel(sampling.quality))


def guess_bytes(root: str, sizes: Mapping[str, int], sampling: Sampling, overhead: int) -> int:
    """About how many bytes the frames of the videos ``sizes`` (key: bytes of the file) take, each with ``overhead``.

    A few frames of a few videos are encoded to tell.
    """
    chosen = list(sizes)[:: max(1, -(-len(sizes) // _GUESSED_VIDEOS))]
    if not chosen:
        return 0
    need_av()
    guessed = sum(_guess(os.fsencode(os.path.join(root, key)), sizes[key], sampling, overhead) for key in chosen)
    return int(guessed * sum(sizes.values()) / max(1, sum(sizes[key] for key in chosen)))


def _guess(path: bytes, size: int, sampling: Sampling, overhead: int) -> float:
    """Of one video; the file's ``size`` where that cannot be told."""
    import av

    try:
        with opened(path, sampling.stream) as (container, stream), open(path, "rb") as file:
            seconds = (container.duration or 0) / av.time_base
            rate = float(rate_of(stream))
            frames = seconds * (rate if sampling.fps is None else min(rate, sampling.fps))
            crop = crop_of(file, container, stream)
            store = _Store(stream, crop, sampling.resize_short, sampling.quality, sampling.max_pixels)
            stored = []
            for share in _GUESSED_PLACES:
                container.seek(int(share * seconds * av.time_base) + (container.start_time or 0))
                stored.append(store(next(container.decode(stream))))
            found = [len(one.data) for one in stored if not isinstance(one, InvalidImage)]
    except (InvalidVideo, av.FFmpegError, OSError, StopIteration):
        return size
    return frames * (sum(found) / len(found) + overhead) if found and frames else size


# ---- reading


def read_frames(
    root: bytes,
    key: bytes,
    video: bytes,
    wanted: Sequence[tuple[int, int]],
    *,
    resize_short: int | None = None,
    quality: int = 90,
    max_pixels: int = image.MAX_PIXELS,
) -> Generator[image.Stored | InvalidImage, None, None]:
    """Frames of the video ``key``, one for each of ``wanted`` ((mark, entry), in the order of time).

    ``video`` is what :func:`list_frames` said of it. Raises DataError if the file is gone, cannot be read or is not the
    one that was listed.
    """
    info = json.loads(video)
    path = os.path.join(root, key)
    identity = (info["size"], info["mtime_ns"])
    _check_unchanged(path, identity)
    if info["timing"] not in (PACKETS, DECODED):
        raise DataError(f"the plan of {os.fsdecode(path)!r} is of an older version; make a new one with --overwrite")

    def decode(rest: Sequence[tuple[int, int]]) -> Iterator[image.Stored | InvalidImage]:
        return _decode(path, info, rest, (resize_short, quality, max_pixels))

    given = 0
    try:
        while given < len(wanted):
            try:
                for one in decode(wanted[given:]):
                    yield one
                    given += 1
            except OSError as error:
                if not is_transient(error):
                    raise
                rest = wanted[given:]
                yield retry(path, lambda: next(decode(rest)))  # noqa: B023  # called at once
                given += 1
    except OSError as error:
        raise DataError(f"{os.fsdecode(path)!r} cannot be read ({error.strerror}); {AGAIN}") from error
    _check_unchanged(path, identity)


def _decode(
    path: bytes, info: Mapping[str, Any], wanted: Sequence[tuple[int, int]], options: tuple[int | None, int, int]
) -> Iterator[image.Stored | InvalidImage]:
    """As :func:`read_frames`, with the system's own errors."""
    from cltt.source.video.frames import VideoReader, Wanted

    given = 0
    try:
        with VideoReader(path, info["timing"], number=info.get("stream"), max_pixels=options[2]) as reader:
            store = _Store(reader.stream, reader.crop, *options)
            for frame in reader.frames([Wanted(*one) for one in wanted]):
                yield InvalidImage(frame) if isinstance(frame, str) else store(frame)
                given += 1
    except InvalidVideo as error:
        for _ in wanted[given:]:
            yield InvalidImage(str(error))


class _Store:
    """Makes the JPEG of a decoded frame; of one that comes twice in a row once."""

    def __init__(
        self,
        stream: av.video.stream.VideoStream,
        crop: Crop,
        resize_short: int | None,
        quality: int,
        max_pixels: int,
    ) -> None:
        from cltt.source.video.pixels import Upright

        self._upright = Upright(stream.sample_aspect_ratio, resize_short, crop)
        self._quality = quality
        self._max_pixels = max_pixels
        self._last: tuple[Any, image.Stored | InvalidImage] = (None, InvalidImage(""))

    def __call__(self, frame: Any) -> image.Stored | InvalidImage:
        if self._last[0] is not frame:
            self._last = frame, self._make(frame)
        return self._last[1]

    def _make(self, frame: Any) -> image.Stored | InvalidImage:
        import av

        try:
            image.check_pixels(frame.width, frame.height, self._max_pixels)
            picture, full = self._upright.rgb(frame)
            height, width = picture.shape[:2]
            image.check_stored(data := pixels.encode(picture, self._quality), width, height)
        except InvalidImage as error:
            return error
        except MemoryError:
            return InvalidImage("cannot be turned into RGB: it takes more memory than there is")
        except av.FFmpegError as error:
            return InvalidImage(f"cannot be turned into RGB: {reason_of(error)}")
        return image.Stored(data, width, height, "", *full)
