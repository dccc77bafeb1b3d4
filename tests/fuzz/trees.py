"""Odd trees of source files and odd folders to build into: a whole set with all left out named, or one sentence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from cltt import build_shards
from cltt.shards import layout
from cltt.shards.verify import verify_shards
from tests.fuzz.contract import Rng, attempt, demand, spoil, untouched
from tests.helpers.hostile import odd_pictures, several_pictures
from tests.helpers.video import write_video

NAMES = [
    b"frame_1",
    b"frame_2",
    b"frame_10",
    b"1",
    b"01",
    b"a.b",
    b"%2E",
    b"\xff\xfe",
    b"new\nline",
    b"-rf",
    b"x" * 120,
]
NAMES += [b"UP.JPG", b"\x1b[31m", b"__x__", b"a b", b"...", b"\xc3\xa9"]
ENDINGS = [b".jpg", b".jpg", b".jpeg", b".png", b".PNG", b".tif", b".bmp", b".webp", b".txt", b""]
FILMS = {
    ".mp4": {},
    ".webm": {"codec": "libvpx"},
    ".avi": {"codec": "mpeg4"},
    ".mkv": {"options": {"x264-params": "interlaced=1"}},
    ".m2ts": {"container": "mpegts"},
    ".mpg": {"codec": "mpeg2video"},
    ".wmv": {"codec": "wmv2", "container": "asf"},
    ".flv": {"codec": "flv"},
    ".ogv": {"codec": "libvpx", "container": "ogg"},
    ".h264": {"container": "h264"},
    ".hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "container": "hevc"},
    ".mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "mjpeg"},
    ".gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
HUGE = 10**11  # bytes of a sparse file


class Trees:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seeds = [*odd_pictures().values(), *several_pictures()]
        self._films = [
            (os.fsencode(end), write_video(folder / f"film{end}", 6, **kind).read_bytes())  # type: ignore[arg-type]
            for end, kind in FILMS.items()
        ]
        self._films.append((b".mp4", 2 * self._films[0][1]))
        self._outside = folder / "outside"
        (self._outside / "clip").mkdir(parents=True)
        (self._outside / "clip" / "1.jpg").write_bytes(odd_pictures()["jpeg"])

    def case(self, rng: Rng) -> str:
        root, out = self._folder / "root", self._folder / "out"
        for path in (root, out):
            _remove(path)
        root.mkdir()
        for _ in range(int(rng.integers(0, 4))):
            self._fill(rng, os.fsencode(root))
        self._prepare(rng, out)
        options = {
            "verify": str(rng.choice(["decode", "header"])),
            "resize_short": int(rng.choice([8, 30])) if rng.random() < 0.2 else None,
            "split_gaps": bool(rng.random() < 0.3),
            "shard_size": int(rng.choice([1, 3000, 1 << 30])),
            "overwrite": bool(rng.random() < 0.3),
            "fps": [None, None, 1.0, 25.0, 1e-3][int(rng.integers(5))],
            "stream": int(rng.integers(2)) if rng.random() < 0.1 else None,
            "max_gap": 0.05 if rng.random() < 0.1 else None,
            "label_from": "parent" if rng.random() < 0.3 else None,
        }
        with untouched(self._outside):
            return self._build(root, out, options)

    def _fill(self, rng: Rng, folder: bytes) -> None:
        names = [NAMES[int(k)] for k in rng.integers(len(NAMES), size=int(rng.integers(1, 3)))]
        clip = os.path.join(folder, *names)
        try:
            os.makedirs(clip, exist_ok=True)
            for _ in range(int(rng.integers(1, 5))):
                name = NAMES[int(rng.integers(len(NAMES)))] + ENDINGS[int(rng.integers(len(ENDINGS)))]
                self._make(rng, os.path.join(clip, name))
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return

    def _make(self, rng: Rng, path: bytes) -> None:
        way = rng.random()
        if os.path.lexists(path):
            return
        if way < 0.2:
            end, film = self._films[int(rng.integers(len(self._films)))]
            with open(path + end, "wb") as file:
                file.write(spoil(rng, film) if rng.random() < 0.7 else film)
        elif way < 0.75:
            picture = self._seeds[int(rng.integers(len(self._seeds)))]
            with open(path, "wb") as file:
                file.write(spoil(rng, picture) if rng.random() < 0.4 else picture)
        elif way < 0.8:
            os.mkfifo(path)
        elif way < 0.85:
            os.symlink(b"nowhere" if rng.random() < 0.5 else path, path)
        elif way < 0.9:
            os.symlink(os.fsencode(self._outside / "clip"), path)
        elif way < 0.95:
            with open(path, "wb") as file:
                file.write(self._seeds[int(rng.integers(len(self._seeds)))] if rng.random() < 0.5 else b"")
                file.truncate(HUGE)
        else:
            open(path, "wb").close()

    def _prepare(self, rng: Rng, out: Path) -> None:
        """What may lie in the folder already."""
        way = rng.random()
        if way < 0.6:
            return
        out.mkdir()
        if way < 0.7:
            (out / layout.BUILD).symlink_to(self._outside)
        elif way < 0.8:
            (out / layout.BUILD).mkdir()
            (out / layout.BUILD / "release.yaml").write_text("someone's")
        elif way < 0.9:
            (out / layout.shard_name(0)).write_text("someone's")
        else:
            (out / f".{layout.INDEX}.tmp").symlink_to(self._outside / "clip" / "1.jpg")

    def _build(self, root: Path, out: Path, options: dict[str, Any]) -> str:
        before = {path.name: path.lstat().st_ino for path in out.iterdir()} if out.is_dir() else {}
        report, refused = attempt(lambda: build_shards(root, out, workers=1, **options))
        if report is None:
            left = {path.name: path.lstat().st_ino for path in out.iterdir()} if out.is_dir() else {}
            gone = set(before) - set(left)
            demand(not gone, f"a refused build removed {gone}")
            return f"refused: {refused}"
        notes = layout.read_report(out)["files"]
        skipped = [note for note in notes if note["what"] == "skipped"]
        demand(sum(report.skipped.values()) == len(skipped), "left out, but not named")
        demand(report.frames > 0 and int(report.clip_lengths.sum()) == report.frames, "counts that do not add up")
        mismatches = verify_shards(out, decode=options["verify"] == "decode", source_dir=root, workers=2)
        demand(not mismatches, f"damaged as built: {[str(mismatch) for mismatch in mismatches[:3]]}")
        return "built, all left out named"


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
