"""Names of files and folders: which are left out, the order of frames, and names that look odd."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cltt.source.image import IMAGE_EXTENSIONS
from cltt.source.odd import Odd

_DIGITS = re.compile(rb"(\d+)")
# ---- left out by name; all in lower case
_FOLDERS = {
    *(b"@eadir", b"#recycle", b"@recycle", b".@__thumb", b"@__thumb"),  # of Synology and QNAP
    *(
        b"#snapshot",
        b"~snapshot",
        b".snapshot",
        b"@recently-snapshot",
        b"@tmp",
        b"@sharebin",
    ),  # of these two and NetApp
    *(b"__macosx", b".appledouble", b"network trash folder", b"temporary items"),
    *(b"$recycle.bin", b"recycler", b"system volume information", b"lost+found", b"lost.dir"),
    *(b".thumbnails", b"thmbnl"),  # of file managers; of Sony's cameras
}
_FOUND_BY_CHKDSK = re.compile(rb"found\.\d{3}")
_FILES = {b"thumbs.db", b"ehthumbs.db", b"photothumb.db", b"desktop.ini"}
_EXIFTOOL = re.compile(rb"\.[a-z0-9]+_original$")
_BACKUPS = (b".bak", b".backup", b".orig", b".old", b"~")
_PREVIEWS = (b".lrv", b".lrf", b".thm")  # of GoPro and Insta360, of DJI, of many cameras
_RAW = {
    *(b".3fr", b".arw", b".cr2", b".cr3", b".crw", b".dcr", b".dng", b".erf", b".gpr", b".iiq", b".kdc", b".mef"),
    *(b".mos", b".nef", b".nrw", b".orf", b".pef", b".raf", b".raw", b".rw2", b".rwl", b".sr2", b".srf", b".srw"),
    b".x3f",
}


def is_system_folder(name: bytes) -> bool:
    """Whether a folder of this name belongs to a system or a program: previews, deleted files, snapshots."""
    return name.lower() in _FOLDERS or _FOUND_BY_CHKDSK.fullmatch(name.lower()) is not None


def why_left_out(name: bytes) -> str:
    """Why a file of this name is no frame and no video; empty if it may be one."""
    lower = name.lower()
    if lower.startswith(b"."):
        return "hidden file"
    if lower.endswith(IMAGE_EXTENSIONS):  # most are
        return ""
    if lower in _FILES:
        return "file of the system"
    if lower.endswith(_BACKUPS) or _EXIFTOOL.search(lower):
        return "backup copy"
    if lower.endswith(_PREVIEWS):
        return "low-resolution copy by a camera"
    return "RAW photograph" if os.path.splitext(lower)[1] in _RAW else ""


@dataclass(frozen=True)
class Choice:
    """Patterns that choose files by their paths below the root.

    ``include`` None: all files; ``exclude`` None: no file is left out.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None

    def takes(self, path: bytes) -> bool:
        """Whether the file is chosen. ``*`` in a pattern also matches ``/``; ``exclude`` overrides ``include``."""
        name = os.fsdecode(path)
        wanted = self.include is None or any(fnmatch.fnmatchcase(name, glob) for glob in self.include)
        return wanted and not any(fnmatch.fnmatchcase(name, glob) for glob in self.exclude or ())


EVERYTHING = Choice()


def choice_of(settings: Mapping[str, Any]) -> Choice:
    """The choice in the settings of a build, which lack it in sets of older versions."""
    return Choice(*(settings.get(name) and tuple(settings[name]) for name in ("include", "exclude")))


# ---- order

_DECIMAL = re.compile(rb"(\d+)(?:\.(\d+))?")


def jumps(names: Sequence[bytes]) -> list[bool]:
    """For each name whether its frame number is neither that of the name before nor one usual step more.

    The frame number is the last number in the stem; a name without one is no jump. The usual step is that of at least
    half of the names (5 if every fifth frame of a video was stored), or 1 if there is none.
    """
    numbers = [_last_number(_stem(name)) for name in names]
    step = _usual_step([number for number in numbers if number is not None]) or 1
    jumped = [
        before is not None and after is not None and after not in (before, before + step)
        for before, after in itertools.pairwise(numbers)
    ]
    return [False, *jumped][: len(names)]


def natural_key(name: bytes) -> tuple[bytes | int, ...]:
    """Sort key that puts ``frame_2`` before ``frame_10``: text and numbers in turn.

    ``1`` and ``01`` have equal keys; sort by the names first.
    """
    parts: list[bytes | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, _DIGITS.findall(name))
    return tuple(parts)


def has_image_name(name: bytes) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def in_order(names: Sequence[bytes]) -> list[bytes]:
    """``names`` in natural order; by value if the stem of each frame is one decimal number and no two are equal."""
    ordered = sorted(sorted(names), key=natural_key)
    frames = list(filter(has_image_name, names))
    if not any(b"." in _stem(name) for name in frames if name.count(b".") > 1):
        return ordered
    values = {name: _value(name) for name in frames}
    if None in values.values() or len(set(values.values())) < len(values):
        return ordered
    return sorted(ordered, key=lambda name: values.get(name) or (0, b""))


def _stem(name: bytes) -> bytes:
    return os.path.splitext(name)[0]


def _value(name: bytes) -> tuple[int, bytes] | None:
    """A sort key for a stem that is one decimal number, such as ``0.16``; None for any other."""
    match = _DECIMAL.fullmatch(_stem(name))
    return (int(match[1]), (match[2] or b"").rstrip(b"0")) if match else None


# ---- what looks odd

_COPY = re.compile(rb"(?i)(?:(?: - | )(?:copy|copie|kopie|copia)(?: \d+)?)?(?: ?\(\d+\))?(?=/|$)")
HOLES = "folders with holes in the numbering of frames"
_CHOOSE = "--include or --exclude GLOB chooses"
_SAME = {b".jpeg": b".jpg", b".tiff": b".tif"}
_MOST_VIEWS = 16  # different numbers of cameras, as in cam0 and cam1
_DECIMALS = re.compile(rb"\d+[.,](\d+)")
_SIGNED = re.compile(rb"(?:^|[_= /])-\d")
_MONTH = rb"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
# A number in a name: "-5", "0.16", "3Feb"; the name of a month before one; am and pm behind one.
_NUMBER = re.compile(
    rb"(?i)-?\d+(?:[.,]\d+)?(?:[-._ ]?" + _MONTH + rb")?|" + _MONTH + rb"(?=[-._ ]?\d)|(?<=[\d _\xaf])[ap]m(?![a-z])"
)
_DATES = (  # each with one group: names sort by time only if it is the same in all of them
    ("dates that begin with the day", re.compile(rb"\d[-._](\d{1,2}[-._](?:19|20)\d\d)")),
    ("names of months", re.compile(rb"(?i)(?:\d[-._ ]?" + _MONTH + rb"|" + _MONTH + rb"[a-z]{0,6}[-._ ]?\d)")),
    ("am and pm", re.compile(rb"(?i)(\d{1,2})[.:_-]\d{1,2}(?:[.:_-]\d{1,2})?(?: |_|\xe2\x80\xaf)?[ap]m")),
)


def copied_from(path: bytes) -> bytes:
    """The path that a copy was made from, by its name: ``b/a/1`` for ``b/a - Copy (2)/1``."""
    return _COPY.sub(b"", path)


def odd_names(key: bytes, names: list[bytes]) -> list[Odd]:
    """What looks odd about the names of a folder's frames, given in their order."""
    stems, extensions = zip(*map(os.path.splitext, names), strict=True)
    text = b"/".join(stems)  # searching once is faster than once per name
    shapes = zip(_NUMBER.sub(b"#", text).split(b"/"), map(bytes.lower, extensions), strict=True)
    kinds = Counter(shape + _SAME.get(extension, extension) for shape, extension in shapes)
    here = os.fsdecode(key)
    found = []
    if len(kinds) > 1:
        some = ", ".join(sorted(os.fsdecode(kind) for kind, _ in kinds.most_common(2)))
        found.append(Odd("folders with names of several kinds, which make one clip", f"{here}: {some}", _CHOOSE))
    elif _are_views(stems):
        found.append(Odd("folders whose names may be of several cameras, which make one clip", here, _CHOOSE))
    if why := _why_out_of_order(stems, text):
        what = f"folders whose frames may be out of order, as their names hold {why}"
        found.append(Odd(what, here, "rename them so that they sort by time"))
    elif len(kinds) == 1 and not _DECIMALS.search(text) and _has_holes(stems):
        found.append(Odd(HOLES, here, "--split-gaps cuts clips there"))
    if len(names) == 1:
        found.append(Odd("folders of one frame", here))
    if b"\\" in text:
        slashed = [name for name in names if b"\\" in name]
        what, example = "names with backslashes, as of a zip file from Windows", os.fsdecode(min(slashed))
        found.append(Odd(what, f"{here}: {example}", "unpack it so that folders come of them", len(slashed)))
    return found


def _are_views(stems: Sequence[bytes]) -> bool:
    """Whether a number behind a letter seems to number cameras: without it, names are equal."""
    numbers = [_DIGITS.findall(stem) for stem in stems]
    if len(numbers[0]) < 2 or len(stems) < 4:
        return False
    for match in re.finditer(rb"[a-z](\d+)", stems[0].lower()):
        place = len(_DIGITS.findall(stems[0][: match.start(1)]))
        views = {row[place] for row in numbers}
        rest = {(*row[:place], *row[place + 1 :]) for row in numbers}
        if 1 < len(views) <= _MOST_VIEWS and len(rest) <= (len(stems) + 1) // 2:
            return True
    return False


def _why_out_of_order(stems: Sequence[bytes], text: bytes) -> str:
    """Why the names may not sort by time; empty if they do. ``text``: all stems joined."""
    if _SIGNED.search(text):
        return "signs"
    for what, pattern in _DATES:
        if pattern.search(text) and len({match[match.lastindex or 0].lower() for match in pattern.finditer(text)}) > 1:
            return what
    if len(set(map(len, _DECIMALS.findall(text)))) < 2:
        return ""
    values = [_value(stem + b".") for stem in stems]
    return "" if None not in values and len(set(values)) == len(values) else "decimal numbers"


def _has_holes(stems: Sequence[bytes]) -> bool:
    """Whether frame numbers that mostly grow by the same step skip some."""
    numbers = [number for stem in stems if (number := _last_number(stem)) is not None]
    usual = _usual_step(numbers)
    steps = (after - before for before, after in itertools.pairwise(numbers))
    return usual > 0 and any(step > usual and step % usual == 0 for step in steps)


def _usual_step(numbers: Sequence[int]) -> int:
    """The step by which at least half of ``numbers`` grow, of two the smaller; 0 if there is none.

    A step above 1 that comes only once is a hole.
    """
    steps = Counter(after - before for before, after in itertools.pairwise(numbers))
    usual, count = max(steps.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))
    return usual if usual > 0 and 2 * count >= steps.total() and (usual == 1 or count > 1) else 0


def _last_number(stem: bytes) -> int | None:
    numbers = _DIGITS.findall(stem)
    return int(numbers[-1]) if numbers else None
