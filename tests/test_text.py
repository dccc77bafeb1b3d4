"""Words for people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cltt.errors import SettingsError
from cltt.files.atomic import check_writable
from cltt.files.regular import read_text, unexpanded
from cltt.text import changes


def test_changes_name_each_value_that_is_not_as_it_was_saved() -> None:
    saved = {"batch_size": 32, "seed": 7, "only there": 1, "splits": None}
    now = {"batch_size": 16, "seed": 7, "label": "a", "splits": None}
    assert changes(saved, now) == ["batch_size is 16 and was 32", "label is a and was None"]
    assert changes(saved, saved) == []


def test_changes_of_any_length_stay_a_sentence() -> None:
    (change,) = changes({"data": "x" * 10_000}, {"data": "y" * 64})
    assert "y" * 64 in change and len(change) < 250


PRINTS = """
import logging, os, sys, warnings
from tqdm import tqdm
from cltt import cli, text
from cltt.errors import DataError
name = os.fsdecode("日本/é".encode() + b"/\\xff")
def main():
    print(name)
    text.say(name)
    tqdm.write(name)
    warnings.warn(name)
    logging.getLogger("cltt").warning(name)
    if len(sys.argv) > 1:
        raise DataError(name)
cli.run(main, name)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_the_terminal_lacks_end_nothing(encoding: str) -> None:
    """https://github.com/cuckoosandbox/cuckoo/issues/2442 lost its log so, .../tqdm/tqdm/issues/208 the program."""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[1])}
    for arguments, status in ([], 0), (["fail"], 2):
        done = subprocess.run([sys.executable, "-c", PRINTS, *arguments], env=env, capture_output=True, timeout=60)
        output = (done.stdout + done.stderr).decode(encoding)
        assert done.returncode == status and "Error" not in output, output
        shown = (
            "日本/é/\\udcff" if encoding == "utf-8" else "\\u65e5\\u672c/" + ("é" if encoding == "latin-1" else "\\xe9")
        )
        assert output.count(shown) >= 5, output


def test_a_line_that_nobody_can_show_ends_no_program_of_ones_own() -> None:
    code = "from cltt.text import say; say('日本')"
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == 0


# A spreadsheet's "Unicode text" is UTF-16: https://github.com/harelba/q/issues/98
def test_text_of_other_programs_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "table"
    read = {b"\xef\xbb\xbfa b": "a b", b"a\xe9": "a\udce9", "é".encode(): "é", "a é".encode("utf-16"): "a é"}
    for content, text in read.items():
        file.write_bytes(content)
        assert read_text(file, 100) == text
    file.write_bytes("a b".encode("utf-16-le"))  # without the mark that tells it
    with pytest.raises(OSError, match="save it as plain text in UTF-8"):
        read_text(file, 100)


# https://github.com/OPM/opm-simulators/issues/5063: a folder of the name ~
def test_what_a_shell_was_to_replace_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ("~/run", "$SCRATCH/run", "a/$USER", "/tmp/$X/run", "a~/~b")
    assert [unexpanded(path) for path in paths] == ["~", "$", "$", "$", ""]
    with pytest.raises(SettingsError, match=r"no shell has replaced the \$; give another"):
        check_writable(Path("$SCRATCH/run"), "give another folder")
    Path("$SCRATCH").mkdir()
    check_writable(Path("$SCRATCH/run"), "give another folder")
    assert os.listdir() == ["$SCRATCH"]
