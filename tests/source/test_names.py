"""What names tell: what is left out, the order of frames, and what looks odd."""

from __future__ import annotations

import random

import pytest

from cltt.source.names import HOLES, Choice, copied_from, in_order, is_system_folder, odd_names, why_left_out

BACKUP, CAMERA, RAW = "backup copy", "low-resolution copy by a camera", "RAW photograph"
LEFT_OUT = {
    "img.jpg_original": BACKUP,  # https://github.com/2mol/pboy/issues/51
    "img.CR2_original": BACKUP,  # https://github.com/photostructure/exiftool-vendored.js/issues/78
    "img.jpg~": BACKUP,
    "img.jpg.bak": BACKUP,
    "img.orig": BACKUP,
    "VID_01.lrv": CAMERA,  # Insta360: https://github.com/mistic100/Photo-Sphere-Viewer/issues/1288
    "GL010001.LRV": CAMERA,  # https://github.com/gopro/labs/issues/89
    "DJI_0001.LRF": CAMERA,
    "MVI_0001.THM": CAMERA,
    "img.CR2": RAW,  # https://github.com/python-pillow/Pillow/issues/5317
    "img.DNG": RAW,  # https://github.com/xyb3rt/sxiv/issues/238
    "img.nef": RAW,
    "img.ARW": RAW,
    "Thumbs.db": "file of the system",  # https://github.com/soft-matter/trackpy/issues/87
    "photothumb.db": "file of the system",  # https://github.com/nextcloud/desktop/issues/2092
    "._1.jpg": "hidden file",  # https://github.com/OpenNeuroOrg/openneuro/issues/2520
}
FOLDERS = ["@eaDir", ".thumbnails", "__MACOSX", ".AppleDouble", "$RECYCLE.BIN", "lost+found", "@Recycle", "#recycle"]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_files_left_out_by_name(name: str) -> None:
    assert why_left_out(name.encode()) == LEFT_OUT[name]


@pytest.mark.parametrize("name", ["original.jpg", "a_original.jpg", "bak", "old.png", "a~b.jpg", "nef.jpg", "lrv.mp4"])
def test_names_that_only_look_alike_stay(name: str) -> None:
    assert why_left_out(name.encode()) == ""


def test_system_folders() -> None:
    """After https://github.com/Difegue/LANraragi/pull/1380 (__MACOSX), https://github.com/arsenetar/dupeguru/issues/690
    (the recycle bin), https://github.com/elementary/photos/issues/483 (.thumbnails).
    """
    assert all(is_system_folder(name.encode()) for name in FOLDERS)
    assert not any(is_system_folder(name) for name in (b"thumbnails", b"recycle", b"found", b".hidden"))


@pytest.mark.parametrize(
    "name",
    ["#snapshot", "~snapshot", ".snapshot", "@Recently-Snapshot", "@tmp", "LOST.DIR", "FOUND.000", "RECYCLER"],
)
def test_folders_of_storage_that_hold_older_copies(name: str) -> None:
    """Synology, NetApp and QNAP show snapshots as folders; a check of a disk puts back what it finds."""
    assert is_system_folder(name.encode()) and not is_system_folder(name.encode() + b"s")


@pytest.mark.parametrize("name", ["a - Copy", "a copy", "a (1)", "a - Copy (2)", "a - Kopie", "a copy 2"])
def test_copies_by_name(name: str) -> None:
    assert copied_from(f"b/{name}/c".encode()) == b"b/a/c" and copied_from(name.encode()) == b"a"
    assert copied_from(b"a_copy/photocopy/2") == b"a_copy/photocopy/2"


# ---- order


def ordered(names: list[str]) -> list[str]:
    shuffled = random.Random(0).sample(names, len(names))
    given = [name.encode() for name in shuffled]
    return [name.decode() for name in in_order(given)]


@pytest.mark.parametrize(
    "names",
    [
        [f"{round(n * 0.04, 2)}.jpg" for n in range(60)],
        ["0.16.jpg", "0.2.jpg", "1.jpg", "1.5.jpg", "10.25.jpg"],
        # After https://github.com/lifelong-robotic-vision/OpenLORIS-Scene/issues/10, zeros at the end not written.
        ["1560000083.949189.png", "1560000083.98.png", "1560000083.982562.png", "1560000084.1.png"],
    ],
)
def test_decimal_numbers_sort_by_value(names: list[str]) -> None:
    assert ordered(names) == names
    assert not odd_names(b"here", [name.encode() for name in names])


@pytest.mark.parametrize(
    "names",
    [
        ["01.jpg", "1.jpg", "2.jpg", "10.jpg"],  # no decimals: as ever
        ["0.2.jpg", "0.16.jpg", "0.160.jpg"],  # two are equal
        ["0.2.jpg", "0.16.jpg", "cover.jpg"],
        ["frame_0.2.jpg", "frame_0.16.jpg"],
        ["5.jpg", "-5.jpg", "-10.jpg"],
    ],
)
def test_others_stay_in_natural_order(names: list[str]) -> None:
    assert ordered(names) == names


# ---- odd

KINDS, VIEWS = "names of several kinds", "may be of several cameras"
DECIMAL, SIGNS, DAYS, MONTHS, CLOCK = "decimal numbers", "signs", "begin with the day", "names of months", "am and pm"
ODD = {
    # After https://github.com/pmorerio/admd/issues/17 and https://github.com/MatteoCappe/Matteo_thesis_workbook/issues/4
    KINDS: [
        ["1_depth.png", "1_depth_vis.jpg", "1_maprgbd.png"],
        ["000001.png", "000001._ec.png", "000001.depth.mm.16.png"],
        ["rgb_1.png", "rgb_2.png", "depth_1.png", "depth_2.png"],
        ["1.jpg", "1.png"],
        ["L1.jpg", "R1.jpg"],
    ],
    VIEWS: [
        [f"cam{cam}_{n:03d}.jpg" for cam in (0, 1) for n in range(5)],
        [f"{n}_v{v}.jpg" for n in range(5) for v in (1, 2)],
    ],
    DECIMAL: [["0.2.jpg", "0.16.jpg", "0.160.jpg"], ["t_0.16.jpg", "t_0.2.jpg"], ["0,16.jpg", "0,2.jpg"]],
    # After https://github.com/nwoltman/string-natural-compare/issues/1 and, for a hyphen,
    # https://github.com/litejs/natural-compare-lite/issues/3
    SIGNS: [["-5.jpg", "-10.jpg", "5.jpg"], ["x_-1.jpg", "x_-2.jpg"]],
    # After https://github.com/fribbels/hsr-optimizer/issues/1449
    DAYS: [["01-02-2024.jpg", "02-01-2024.jpg"], ["A_1-1-2026_0-0.png", "A_10-2-2025_0-0.png"]],
    # After https://github.com/afollestad/mnml/issues/87 and https://github.com/mikavilpas/squanmate/issues/51
    MONTHS: [["cam_3Feb.jpg", "cam_1Mar.jpg"], ["alg-Wed Mar 21 2018.png", "alg-Wed Apr 4 2018.png"]],
    # After https://github.com/fribbels/hsr-optimizer/issues/1449 and https://github.com/afollestad/mnml/issues/87
    CLOCK: [
        ["Shot at 1.05.30 PM.png", "Shot at 12.59.01 PM.png"],
        ["A_1-1-2025_9-0-0_PM.png", "A_1-1-2025_10-0-0_AM.png"],
    ],
    # After https://github.com/NevermindNilas/TheAnimeScripter/issues/376 and
    # https://github.com/RuYangNU/Deep-Dic-deep-learning-based-digital-image-correlation/issues/4
    HOLES: [["f_001.png", "f_002.png", "f_004.png"], [f"{n}.jpg" for n in range(0, 100, 5) if n != 50]],
    # After https://github.com/python/cpython/issues/91036 and https://github.com/icsharpcode/SharpZipLib/issues/617
    "backslashes": [["clip\\1.jpg", "clip\\2.jpg"], ["folder\\sub\\1.jpg", "folder\\sub\\2.jpg"]],
    # After https://github.com/henghuiding/MOSE-api/issues/4 and issues/8 there
    "one frame": [["1.jpg"]],
    "": [
        ["file-1.jpg", "file-2.jpg"],
        ["2024-01-31_12-59-58.jpg", "2024-01-31_12-59-59.jpg", "2024-02-01_13-00-00.jpg"],
        [f"C_01_05_{n:03d}.png" for n in range(4)],
        ["a_1.jpg", "a_2.JPG", "a_3.jpeg"],
        ["31-01-2024_1.jpg", "31-01-2024_2.jpg"],
        ["101.jpg", "141.jpg", "180.jpg", "221.jpg"],  # times, not numbers
        ["market_1.jpg", "market_2.jpg"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("what", "names"), [(what, names) for what, several in ODD.items() for names in several])
def test_what_looks_odd_is_said_and_nothing_else(what: str, names: list[str]) -> None:
    found = odd_names(b"some/clip", in_order([n.encode() for n in names]))
    assert [what in odd.what for odd in found] == ([True] if what else [])
    assert all(odd.example.startswith("some/clip") for odd in found)


# ---- choice


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        (None, None, "a/l_1.jpg a/r_1.jpg b.mp4 b/c/l_1.jpg"),
        (("*l_*",), None, "a/l_1.jpg b/c/l_1.jpg"),
        (("a/*", "*.mp4"), None, "a/l_1.jpg a/r_1.jpg b.mp4"),
        (None, ("b/*", "*r_?.jpg"), "a/l_1.jpg b.mp4"),
        (("*.jpg",), ("*/c/*",), "a/l_1.jpg a/r_1.jpg"),
        (("*.JPG",), None, ""),
    ],
)
def test_patterns_are_of_whole_paths_and_exclude_wins(
    include: tuple[str, ...] | None, exclude: tuple[str, ...] | None, taken: str
) -> None:
    paths = [b"a/l_1.jpg", b"a/r_1.jpg", b"b.mp4", b"b/c/l_1.jpg"]
    assert b" ".join(filter(Choice(include, exclude).takes, paths)).decode() == taken
