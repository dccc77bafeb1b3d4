"""A build deletes and replaces what it can prove to be its own, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cltt import ShardDataset, build_shards
from cltt.errors import CLTTError, SettingsError
from cltt.files import owned
from cltt.shards import layout
from tests.helpers import data

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return data.make_clips(tmp_path / "root", {"a": 4, "b": 4})


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / "deep").mkdir(parents=True)
    (folder / "thesis.tex").write_text("dear")
    (folder / "deep" / "data.bin").write_bytes(b"years of work")
    return folder


def _listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"task": "0/2"}])
@pytest.mark.parametrize("there", ["nothing", "a complete set"])
def test_a_link_named_build_is_not_followed(
    root: Path, tmp_path: Path, precious: Path, options: dict[str, object], there: str
) -> None:
    out, before = tmp_path / "out", _listing(precious)
    if there != "nothing":
        build_shards(root, out, workers=1)
    out.mkdir(exist_ok=True)
    (out / layout.BUILD).symlink_to(precious)
    if there == "nothing" or "overwrite" in options:
        with pytest.raises(SettingsError, match="is a symbolic link, so it is left alone"):
            build_shards(root, out, workers=1, **options)  # type: ignore[arg-type]
    else:
        assert build_shards(root, out, workers=1).already_complete
    assert _listing(precious) == before and (out / layout.BUILD).is_symlink()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"label_from": "regex:nothing"}])
def test_a_folder_named_build_of_someone_else_stays(root: Path, tmp_path: Path, options: dict[str, object]) -> None:
    out = tmp_path / "out"
    (out / layout.BUILD / "debug").mkdir(parents=True)
    (out / layout.BUILD / "debug" / "release.yaml").write_text("swift")
    before = _listing(out)
    with pytest.raises(SettingsError, match="not a folder that a build of this version made"):
        build_shards(root, out, workers=1, **options)  # type: ignore[arg-type]
    assert _listing(out) == before


def test_other_files_are_seen_beside_an_unfinished_build(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_shards(root, out, task="0/2", shard_size=5000, workers=1)
    (out / "thesis.tex").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"thesis\.tex"):
            build_shards(root, out, shard_size=5000, workers=1, overwrite=overwrite)
    assert (out / "thesis.tex").read_text() == "dear"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["shard-000000.tar", "report.json", "index.json"])
def test_files_of_others_with_our_names_stay(root: Path, tmp_path: Path, name: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(CLTTError):
        build_shards(root, out, workers=1, overwrite=overwrite)
    assert _listing(out) == {name: b"{}"}


def test_a_damaged_set_of_ours_can_be_built_anew(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_shards(root, out, workers=1)
    (out / layout.INDEX).write_text("{cut off")
    build_shards(root, out, workers=1, overwrite=True)
    assert ShardDataset(out).num_frames == 8


@pytest.mark.parametrize("options", [{"label_from": "regex:nothing"}, {"include": ["nothing/*"]}])
def test_a_set_stays_where_the_one_to_replace_it_is_refused(
    root: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    out = tmp_path / "out"
    build_shards(root, out, workers=1)
    before = _listing(out)
    with pytest.raises(CLTTError):
        build_shards(root, out, workers=1, overwrite=True, **options)  # type: ignore[arg-type]
    assert _listing(out) == before


def test_a_set_of_another_version_can_be_built_anew(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_shards(root, out, workers=1)
    index = json.loads((out / layout.INDEX).read_text())
    (out / layout.INDEX).write_text(json.dumps({**index, "version": 99}))
    build_shards(root, out, workers=1, overwrite=True)
    assert ShardDataset(out).num_frames == 8


@pytest.mark.parametrize("name", [".index.json.tmp", ".frames.npy.tmp", ".report.json.tmp"])
def test_a_link_where_a_file_is_written_first_is_not_written_through(
    root: Path, tmp_path: Path, precious: Path, name: str
) -> None:
    out, before = tmp_path / "out", _listing(precious)
    build_shards(root, out, workers=1)
    (out / name).symlink_to(precious / "thesis.tex")
    with pytest.raises(SettingsError, match="other files"):
        build_shards(root, out, workers=1, overwrite=True)
    assert _listing(precious) == before


def test_a_link_in_the_place_of_a_lock_is_not_written_through(root: Path, tmp_path: Path, precious: Path) -> None:
    out, before = tmp_path / "out", _listing(precious)
    build_shards(root, out, task="0/2", shard_size=5000, workers=1)
    lock = out / layout.BUILD / "plan.lock"
    lock.unlink()
    lock.symlink_to(precious / "thesis.tex")
    with pytest.raises(CLTTError):
        build_shards(root, out, shard_size=5000, workers=1)
    assert _listing(precious) == before


def test_an_owned_folder_is_told_by_its_marker(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "work"
    owned.claim(folder)
    owned.claim(folder)
    assert owned.is_owned(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_text("ours")
    owned.remove(folder)
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    owned.claim(folder)  # an empty folder is nobody's
    (folder / owned.MARKER).unlink()
    (folder / "file").write_text("someone's")
    for call in (owned.claim, owned.remove):
        with pytest.raises(SettingsError, match="is left alone"):
            call(folder)
    (folder / owned.MARKER).symlink_to(folder / "file")
    assert not owned.is_owned(folder)


def test_links_within_an_owned_folder_are_removed_not_followed(tmp_path: Path, precious: Path) -> None:
    folder, before = tmp_path / "work", _listing(precious)
    owned.claim(folder)
    (folder / "link").symlink_to(precious)
    (folder / "deep").mkdir()
    (folder / "deep" / "link").symlink_to(precious)
    owned.remove(folder)
    assert _listing(precious) == before and not folder.exists()


@pytest.mark.parametrize("complete", [False, True])
def test_what_a_killed_removal_left_is_removed_by_the_next_build(root: Path, tmp_path: Path, complete: bool) -> None:
    out = tmp_path / "out"
    if complete:
        build_shards(root, out, workers=1)
    left, bare, theirs = (out / f"{layout.BUILD}.old-{name}.tmp" for name in ("123", "bare", "theirs"))
    for folder in (left, bare, theirs):
        owned.claim(folder)
    (left / "part-000000").write_text("x")
    (bare / owned.MARKER).unlink()  # killed between the marker and the folder
    (theirs / owned.MARKER).rename(theirs / "file")
    build_shards(root, out, workers=1)
    assert not left.exists() and not bare.exists() and (theirs / "file").exists()


def test_an_empty_working_folder_beside_a_complete_set_is_removed(root: Path, tmp_path: Path) -> None:
    """As a build with overwrite=True leaves it that is killed before it marks its working folder."""
    out = tmp_path / "out"
    build_shards(root, out, workers=1)
    (out / layout.BUILD).mkdir()
    build_shards(root, out, workers=1)
    assert not (out / layout.BUILD).exists()


@pytest.mark.parametrize("flag", ["--root-dir", "--out"])
def test_an_empty_path_is_not_the_current_folder(root: Path, tmp_path: Path, flag: str) -> None:
    paths = {"--root-dir": str(root), "--out": str(tmp_path / "out"), flag: ""}
    command = [
        sys.executable,
        str(REPOSITORY / "tools/build_shards.py"),
        *(word for pair in paths.items() for word in pair),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 2 and "is empty; give a path" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "a/" + "y" * 300, "n\0ul"])
def test_a_path_that_no_folder_can_have(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"out_dir .* cannot be used: (File name too long|embedded null)"):
        build_shards(root, f"{tmp_path}/{name}")
    with pytest.raises(SettingsError, match=r"root_dir .* cannot be used"):
        build_shards(f"{tmp_path}/{name}", tmp_path / "out")
