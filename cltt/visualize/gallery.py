"""Writes a static HTML gallery: filmstrips of the clips and the windows of one batch.

``index.html`` holds the page and the data of every clip, ``strips/`` one picture per clip with its thumbnails,
``batch/`` one picture per window, ``neighbours/`` one script per clip with the nearest frames of other clips. The page
loads a strip when it is scrolled into view, and a script when a frame is clicked, so it stays fast with thousands of
clips.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cltt.config import WindowSettings
from cltt.errors import SettingsError
from cltt.files.atomic import check_writable, writing
from cltt.files.regular import is_regular
from cltt.region import NO_REGION
from cltt.shards.folder import Dataset
from cltt.text import printable
from cltt.visualize.embeddings import Embeddings, neighbours_of_frames
from cltt.visualize.views import Ids, Pixels, WindowView, clip_name, decode_frames

THUMB = 64  # pixels, square
COLUMNS = 30  # thumbs per row of a strip
# Thumbs per clip: all frames of a short clip, else evenly spread ones; about THUMB_BUDGET over all clips.
THUMB_BUDGET, FEWEST, MOST = 150_000, COLUMNS, 6 * COLUMNS
BATCH_SIDE = 112  # pixels, side of a frame on the batch pages
JPEG_QUALITY = 75
FOLDER_SIZE = 1000  # strips per folder
MARKER = "cltt gallery"
NEIGHBOURS = 8  # nearest frames listed per frame
BANK = 20_000  # frames that the search compares with; it takes half a minute for THUMB_BUDGET thumbs
FOLDERS = ("strips", "batch", "neighbours")
THREADS = 4


def write_gallery(
    dataset: Dataset,
    out: Path,
    settings: WindowSettings | None,
    clips: Ids,
    batch: WindowView | None,
    batch_title: str,
    embeddings: Embeddings | None = None,
) -> Path:
    """Write the gallery of ``clips`` and one batch into ``out``, replacing an earlier gallery.

    Returns its index page.

    ``settings``: the windows that the page marks in the clips; None: it marks none. With ``embeddings`` a click on a
    frame shows the nearest frames of other clips.

    Raises SettingsError if ``out`` holds anything else or cannot be written, or the embeddings are of other clips.
    """
    check_gallery_folder(out)
    step = max(1, int(settings.frame_step)) if settings is not None else 1  # windows with drawn steps are not marked
    lengths = dataset.clip_lengths[clips].tolist()
    times = [np.arange(0, length, thumb_spacing(length, len(clips), step)) for length in lengths]
    scripts = [] if embeddings is None else _neighbour_scripts(dataset, clips, times, embeddings)
    contents = {
        "columns": COLUMNS,
        "settings": asdict(settings or WindowSettings()),
        "marked": settings is not None,
        "labels": dataset.label_names,
        "clips": _clip_rows(dataset, clips, times),
        "neighbours": embeddings is not None,
        "batch": None if batch is None else {"title": batch_title, "rows": _batch_rows(batch)},
    }
    with writing(out, "give another --out"):
        _clear(out)
        _write_strips(dataset, clips, times, out)
        if batch is not None:
            _write_batch(batch, out / "batch")
        for number, script in enumerate(scripts):
            path = out / neighbours_path(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script, encoding="utf-8")
        return _write_page(out, contents)


def _write_page(out: Path, contents: dict[str, Any]) -> Path:
    page = files("cltt.visualize").joinpath("gallery.html").read_text(encoding="utf-8")
    # Inside a script element only "<" could end the data early.
    data = json.dumps(contents, separators=(",", ":")).replace("<", "\\u003c")
    index = out / "index.html"
    index.write_text(page.replace("/*CONTENTS*/null", data), encoding="utf-8")
    return index


def check_gallery_folder(out: Path) -> None:
    """Raise SettingsError if no gallery can be written into ``out``."""
    check_writable(out, "give another --out")
    if out.exists() and not out.is_dir():
        raise SettingsError(f"--out {out} is a file; give a folder")
    with writing(out, "give another --out"):
        links = [name for name in (*FOLDERS, "index.html") if (out / name).is_symlink()]
        if links:
            raise SettingsError(f"--out {out} holds a symbolic link named {links[0]}; give a new or empty folder")
        if out.is_dir() and any(out.iterdir()) and not _holds_gallery(out):
            raise SettingsError(f"--out {out} holds other files; give a new or empty folder")


def _holds_gallery(out: Path) -> bool:
    index = out / "index.html"
    if not is_regular(index):
        return False
    with index.open("rb") as file:
        return MARKER.encode() in file.read(300)


def _clear(out: Path) -> None:
    """Create the folder ``out``, or delete an earlier gallery in it."""
    for folder in FOLDERS:
        shutil.rmtree(out / folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def thumb_spacing(length: int, clips: int, step: int = 1) -> int:
    """Distance in frames between thumbs of a clip, if ``clips`` clips share the budget.

    It divides the windows' ``step`` or is a multiple of it, so that the frames of a window are evenly spaced on the
    strip.
    """
    room = min(MOST, max(FEWEST, THUMB_BUDGET // max(1, clips)))
    least = -(-length // room)
    if least >= step:
        return -(-least // step) * step
    return next(spacing for spacing in range(least, step + 1) if step % spacing == 0)


def strip_path(number: int) -> str:
    """Path of the strip of the ``number``-th clip shown, relative to the gallery."""
    return f"strips/{number // FOLDER_SIZE:03d}/{number:06d}.jpg"


def neighbours_path(number: int) -> str:
    """Path of the neighbours script of the ``number``-th clip, relative to the gallery."""
    return f"neighbours/{number // FOLDER_SIZE:03d}/{number:06d}.js"


def _neighbour_scripts(dataset: Dataset, clips: Ids, times: list[Ids], embeddings: Embeddings) -> list[str]:
    """One script per clip: ``neighbours(clip, rows)``, one row per thumb.

    A row lists [clip, thumb, cosine] of each neighbour. They are scripts, as a page opened from disk cannot load data
    files.
    """
    names = [clip_name(dataset, clip) for clip in clips.tolist()]
    spacing = [length / len(chosen) for length, chosen in zip(dataset.clip_lengths[clips].tolist(), times, strict=True)]
    found = neighbours_of_frames(embeddings, names, times, spacing, k=NEIGHBOURS, bank=BANK)
    scripts = []
    for number, (near_clips, places, cosines) in enumerate(found):
        rows = [
            [[clip, place, round(cosine, 3)] for clip, place, cosine in zip(*columns, strict=True) if clip >= 0]
            for columns in zip(near_clips.tolist(), places.tolist(), cosines.tolist(), strict=True)
        ]
        scripts.append(f"neighbours({number}, {json.dumps(rows, separators=(',', ':'))});\n")
    return scripts


def _clip_rows(dataset: Dataset, clips: Ids, times: list[Ids]) -> list[dict[str, Any]]:
    splits = {name: set(dataset.split_clips(name).tolist()) for name in dataset.split_names}
    return [
        {
            "id": clip,
            "name": printable(clip_name(dataset, clip)),
            "length": int(dataset.clip_lengths[clip]),
            "thumbs": len(times[number]),
            "every": int(times[number][1]) if len(times[number]) > 1 else 1,
            **_seconds(dataset, clip, times[number]),
            "label": int(dataset.labels[clip]),
            "split": next((name for name, members in splits.items() if clip in members), ""),
            "strip": strip_path(number),
        }
        for number, clip in enumerate(clips.tolist())
    ]


def _seconds(dataset: Dataset, clip: int, times: Ids) -> dict[str, list[float]]:
    """The times of the thumbs in their video, in seconds; {} for clips without times."""
    seconds = dataset.frame_time(dataset.clip_offsets[clip] + times)
    return {} if seconds is None or np.isnan(seconds).any() else {"seconds": seconds.round(2).tolist()}


def _batch_rows(batch: WindowView) -> list[dict[str, Any]]:
    times = batch.times.tolist()
    if batch.seconds is not None:
        both = zip(batch.seconds.tolist(), times, strict=True)
        times = [[n if s != s else f"{s:.2f} s" for s, n in zip(*row, strict=True)] for row in both]
    rows = zip(batch.window_ids.tolist(), batch.clip_names, times, batch.frame_names, strict=True)
    return [
        {"window": window, "clip": printable(clip), "times": times, "names": [printable(name) for name in names]}
        for window, clip, times, names in rows
    ]


def _write_strips(dataset: Dataset, clips: Ids, times: list[Ids], out: Path) -> None:
    def write(number: int) -> None:
        frames = dataset.clip_offsets[clips[number]] + times[number]
        thumbs, _ = decode_frames(dataset, frames, THUMB, NO_REGION, None)
        path = out / strip_path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_jpeg(path, sheet(thumbs, COLUMNS))

    with ThreadPoolExecutor(THREADS) as pool:
        strips = pool.map(write, range(len(clips)))
        list(tqdm(strips, total=len(clips), desc="filmstrips", delay=2, leave=False, disable=None))


def sheet(pictures: Pixels, columns: int) -> Pixels:
    """Join pictures [n, s, s, 3] to one, [rows*s, columns*s, 3], with at most ``columns``."""
    count, side = pictures.shape[:2]
    columns = min(columns, count)
    rows = -(-count // columns)
    page = np.full((rows * columns, side, side, 3), 255, dtype=np.uint8)
    page[:count] = pictures
    grid = page.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * side, columns * side, 3))


def save_jpeg(path: Path, picture: Pixels) -> None:
    from cltt.source import libjpeg

    path.write_bytes(libjpeg.encode(picture, JPEG_QUALITY))


def _write_batch(batch: WindowView, folder: Path) -> None:
    """Write one picture per window, its frames side by side."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for row, frames in enumerate(batch.frames):
        side = min(BATCH_SIDE, frames.shape[1])
        small: Sequence[Any] = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames]
        save_jpeg(folder / f"{row:06d}.jpg", sheet(np.stack(small), len(small)))
