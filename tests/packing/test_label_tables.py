"""Label tables of every editor and spreadsheet: read, or one sentence that says what is wrong in which line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cltt.errors import SettingsError
from cltt.packing.labels import labeller, parse_splits, read_table


def _table(tmp_path: Path, content: bytes) -> dict[str, str]:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    return read_table(str(file), "label_from", "label")


@pytest.mark.parametrize("header", [b"", b"clip,label\n", b"clip,label\r\n"])
def test_a_byte_order_mark_hides_no_label(tmp_path: Path, header: bytes) -> None:
    assert _table(tmp_path, b"\xef\xbb\xbf" + header + b"a,1\nb/c,2\n") == {"a": "1", "b/c": "2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,1\nb," + b"x" * 200_000, r"line 2: field larger than field limit"),
        (b"a,1\nb\n", r"two columns, clip key and label; line 2 has 1"),
        (b"clip,label\n", "it has none"),
        (b"", "it has none"),
        ("a,1\n".encode("utf-16-le"), "NUL bytes"),
        (b"a,1\0\n", "NUL bytes"),
        (b"a,1\nb,2\na,3\n", r"line 3: 'a' has another label above"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        _table(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf_8_is_a_name(tmp_path: Path) -> None:
    assert _table(tmp_path, b"\xff,1\n") == {os.fsdecode(b"\xff"): "1"}


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "pipe", "not a regular file"), (tmp_path, "not a regular file")):
        with pytest.raises(SettingsError, match=message):
            read_table(str(path), "label_from", "label")


@pytest.mark.parametrize("rule", ["regex:" + "(" * 10_000, "regex:a{99999999999}", "regex:(", "csv:", "x" * 10_000])
def test_a_rule_that_is_none(rule: str) -> None:
    with pytest.raises(SettingsError) as caught:
        labeller(rule)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("splits", ["train=nan", "train=inf", "train=1,val=nan", "train=1e999", "train=-1,val=2", "=1"])
def test_shares_that_are_none(splits: str) -> None:
    with pytest.raises(SettingsError, match="splits is"):
        parse_splits(splits)
