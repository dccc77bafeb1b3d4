"""The on-disk contract: member names, tar headers, arrays in pieces, atomic publication."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cltt.errors import DataError
from cltt.files import atomic, npy
from cltt.shards import checks, layout
from cltt.shards import tar as tar_module

# File names made of the pieces that could confuse the escape.
PIECES = [b"a", b".", b"%", b"%2E", b"%25", b"%00", b"jpg", b".jpg", b".JPG", b".png", b"\xff\xe9", b" ", b"'"]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(b"".join).filter(lambda n: n[:1] != b".")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        (b"frame_1.jpg", b"frame_1"),
        (b"a.b.jpg", b"a%2Eb"),
        (b"50%.jpg", b"50%25"),
        (b"UP.JPG", b"UP%2EJPG"),
        (b"UP.JPG.jpg", b"UP%2EJPG%2Ejpg"),
        (b"shot.png", b"shot%2Epng"),
        (b"IMG", b"IMG%00"),
    ],
)
def test_member_stems(name: bytes, stem: bytes) -> None:
    assert tar_module.member_stem(name) == stem
    assert tar_module.source_name(stem) == name


@given(st.lists(NAMES, unique=True, max_size=40))
@example([b"UP.JPG", b"UP.JPG.jpg", b"a", b"a.jpg", b"a.b", b"a.b.jpg", b"a%2Eb.jpg", b"a%00.jpg"])
def test_no_two_names_give_one_stem_and_each_comes_back(names: list[bytes]) -> None:
    stems = [tar_module.member_stem(name) for name in names]
    assert len(set(stems)) == len(stems)
    assert [tar_module.source_name(stem) for stem in stems] == names
    assert all(b"." not in stem for stem in stems)


@given(NAMES)
def test_source_path_undoes_member_name(name: bytes) -> None:
    assert tar_module.source_path(tar_module.member_name(b"a/b.c", name)) == b"a/b.c/" + name
    assert tar_module.source_path(tar_module.member_name(b".", name)) == name


LENGTHS = [1, 50, 98, 99, 100, 101, 254, 255, 256, 257, 510, 511, 512, 513, 1023, 1024, 3000]


@pytest.mark.parametrize("length", LENGTHS)
def test_headers_are_read_by_tarfile_and_by_us(length: int) -> None:
    names = [(b"k/" * 2000)[: length - 1] + b"n", b"\xff" * length]
    blob, starts = b"", []
    for name in names:
        header = tar_module.tar_header(name, 700)
        starts.append(len(blob) + len(header))
        blob += header + b"x" * 700 + bytes(tar_module.padding(700))
    with tarfile.open(fileobj=io.BytesIO(blob + tar_module.END_OF_ARCHIVE), errors="surrogateescape") as tar:
        members = tar.getmembers()
    assert [member.name.encode(errors="surrogateescape") for member in members] == names
    assert [member.offset_data for member in members] == starts
    assert [(member.size, member.mtime, member.uid, member.mode) for member in members] == [(700, 0, 0, 0o644)] * 2
    for name, start in zip(names, starts, strict=True):
        assert tar_module.read_member(lambda size, at: blob[at : at + size], start).name == name


def test_no_header_is_an_error() -> None:
    with pytest.raises(DataError, match="no tar header"):
        tar_module.read_member(lambda size, at: bytes(size), 512)


def test_npy_in_pieces_is_what_numpy_saves(tmp_path: Path) -> None:
    rows = np.zeros(1000, layout.FRAME_DTYPE)
    rows["offset"] = np.arange(1000) << 34
    with (tmp_path / "a.npy").open("wb") as file:
        writer = npy.NpyWriter(file, layout.FRAME_DTYPE)
        for start in range(0, 1000, 300):
            writer.write(rows[start : start + 300])
        writer.close()
    np.save(tmp_path / "b.npy", rows)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_file_appears_only_when_whole(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic.published(tmp_path / "x") as file:
        file.write(b"new")
        assert (tmp_path / "x").read_text() == "old"
        _ = 1 / 0
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no index.json, so no complete shards"),
        ("{", "cannot be read"),
        ('{"format": "other"}', "not the index of a set of shards"),
        (
            json.dumps({"format": layout.FORMAT, "version": 99}),
            f"version 99, this program reads 1 to {layout.VERSION}; build the shards again with --overwrite",
        ),
    ],
)
def test_what_is_no_index_says_so(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / layout.INDEX).write_text(text)
    with pytest.raises(DataError, match=message):
        checks.read_index(tmp_path)


def test_an_unfinished_build_says_so(tmp_path: Path) -> None:
    (tmp_path / layout.BUILD).mkdir()
    with pytest.raises(DataError, match="unfinished build"):
        checks.read_index(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        checks.read_index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EACCES, "permissions"), (errno.EROFS, "another folder"), (errno.EIO, "again")],
)
def test_a_refusal_to_write_says_what_helps(number: int, remedy: str) -> None:
    with pytest.raises(DataError, match=f"cannot write shards/x: .*{remedy}"), atomic.writing(Path("shards/x")):
        raise OSError(number, os.strerror(number))
