"""Sets of shards built on first use: found again, shared while they are built, kept for the runs that use them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cltt import ShardDataset, build_shards
from cltt.config import DataSettings
from cltt.errors import BusyError, CLTTError, SettingsError
from cltt.files.locks import locked_in
from cltt.packing.settings import BuildSettings
from cltt.sets import locate
from cltt.sets.locate import locate_shards, shards_name
from cltt.sets.prune import list_sets
from cltt.sets.record import describe, to_json
from cltt.sets.use import in_use
from cltt.shards import layout
from tests.helpers import data, video
from tests.helpers.folders import assert_same
from tests.helpers.fork_server import fork_server

ROOT = Path(__file__).parents[2]
LENGTHS = {"a/one": 30, "a/two": 25}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder, with clips in ``frames``."""
    monkeypatch.chdir(tmp_path)
    data.make_clips(tmp_path / "frames", LENGTHS)
    return tmp_path


def located(capsys: pytest.CaptureFixture[str], **options: object) -> tuple[Path, str]:
    """The set that is found or built, and what was said."""
    fingerprint = options.pop("fingerprint", None)
    path = locate_shards(DataSettings(root_dir="frames", **options), fingerprint=fingerprint)  # type: ignore[arg-type]
    return path, capsys.readouterr().out


def fingerprint(shards: Path) -> str:
    return ShardDataset(shards).fingerprint


def change_without_trace(folder: Path) -> None:
    """Other contents under an old name; the folder's own time stays."""
    times = (folder / "frames/a/one").stat()
    shutil.copy(folder / "frames/a/two/frame_000009.jpg", folder / "frames/a/one/frame_000003.jpg")
    os.utime(folder / "frames/a/one", ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_name_is_that_of_0_1_0() -> None:
    """Shards of an older version are found again, whatever settings have come since."""
    assert shards_name("/data/My Clips", BuildSettings()) == "my-clips-15a2fd2b"


def test_a_set_is_reused_until_the_folder_changes_and_kept_then(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, said = located(capsys)
    assert ShardDataset(first).num_frames == 55 and "building 55 files, about" in said and "B are free)" in said
    assert "using the shards" in located(capsys)[1]
    change_without_trace(folder)
    assert located(capsys)[0] == first  # folders alone are compared
    second, said = located(capsys, rescan=True)
    assert second.name.startswith(f"{first.name}@") and "in a/one files have other sizes or times" in said
    said = f"using the shards in {second}: frames shows no change since they were built\n"
    assert located(capsys, rescan=True) == (second, said)
    (folder / "frames/a/one/frame_000029.jpg").unlink()
    third, said = located(capsys)
    assert ShardDataset(third).num_frames == 54
    assert "1 clip changed (a/one): in a/one frame_000029.jpg went" in said, said
    data.make_clips(folder / "frames", {"b/new": 7})
    fourth, said = located(capsys)
    assert ShardDataset(fourth).num_frames == 61 and "1 clip came (b/new)" in said and f"beside {third}" in said
    shutil.rmtree(folder / "frames/b")
    assert located(capsys)[0] == third  # the same files again
    assert len(list(Path("shards").glob("*/index.json"))) == 4


def test_another_process_may_give_the_record_its_name_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if str(source).endswith(".building.json"):
            replace(source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    shards, _ = located(capsys)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert locate.record_path(shards).is_file() and located(capsys)[0] == shards


def test_a_run_goes_on_with_the_set_that_it_began_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = located(capsys)
    data.make_clips(folder / "frames", {"c/three": 20})
    second, _ = located(capsys)
    again, said = located(capsys, fingerprint=fingerprint(first))
    assert again == first and "which this run began with; since then in" in said and "1 folder came (c/three)" in said
    assert located(capsys, fingerprint=fingerprint(second))[0] == second
    shutil.rmtree(first)
    assert located(capsys, fingerprint="gone")[0] == second


def test_a_record_of_0_1_0_and_none_at_all_will_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    first, _ = located(capsys)
    record = locate.record_path(first)
    known = json.loads(record.read_text())
    record.write_text(json.dumps({"folders": known["folders"], "digest": known["digest"]}))
    assert located(capsys)[0] == first and located(capsys, rescan=True)[0] == first
    record.unlink()  # as if built by hand: the folder as it is becomes theirs
    assert located(capsys)[0] == first and record.is_file()
    data.make_clips(folder / "frames", {"b/new": 7})
    assert located(capsys)[0] != first


def test_a_disk_without_room_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(locate.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(
        SettingsError, match=r"frames-\w+ needs about .* [kM]B, and .*/shards has 10 kB free: make room"
    ):
        located(capsys)
    assert list(Path("shards").iterdir()) == []


def test_a_folder_that_cannot_be_built_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for picture in (folder / "frames").rglob("*.jpg"):
        picture.unlink()
    with pytest.raises(CLTTError):
        located(capsys)
    assert list(Path("shards").iterdir()) == []


def test_a_stale_half_built_set_is_begun_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A build that was killed, of a folder that has changed since, must not end with the clips of then."""
    out = Path("shards") / shards_name(str(folder.resolve() / "frames"), BuildSettings())
    build_shards("frames", out, task="0/2", workers=1)
    data.make_clips(folder / "frames", {"b/new": 7})
    found, _ = located(capsys)
    assert found == out and ShardDataset(out).num_frames == 62


# ---- shared


START = """
import sys, time
from cltt.config import DataSettings
from cltt.sets.locate import locate_shards
print(locate_shards(DataSettings(root_dir="frames", no_wait=len(sys.argv) > 1)), flush=True)
"""


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", START, *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_three_at_once_build_once(folder: Path) -> None:
    processes = [start(folder) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    (built,) = Path("shards").glob("*/index.json")
    build_shards("frames", folder / "alone")
    assert_same(built.parent, folder / "alone")


def test_who_comes_second_waits_and_takes_over(folder: Path) -> None:
    root = str(folder.resolve() / "frames")
    out = Path("shards") / shards_name(root, BuildSettings())
    with locked_in(out / layout.BUILD, "build.lock"):
        out.with_name(f"{out.name}.building.json").write_bytes(to_json(describe(root, files=True)))
        waiting = start(folder)
        assert waiting.stdout is not None
        assert str(out) in waiting.stdout.readline()
        line = waiting.stdout.readline()
        assert f"waiting: {out} is being built by process {os.getpid()} on " in line and "planned" in line
        impatient = start(folder, "no-wait")
        output, _ = impatient.communicate(timeout=60)
        assert impatient.returncode == 1 and "BusyError" in output and "wait for it or build elsewhere" in output
        time.sleep(1.5)
        assert waiting.poll() is None
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0 and "going on with its build" in output, output
    assert output.count("building 55 files") == 1, output
    assert ShardDataset(out).num_frames == 55


def test_no_wait_raises_what_says_who_builds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("shards") / shards_name(str(folder.resolve() / "frames"), BuildSettings())
    with (
        locked_in(out / layout.BUILD, "build.lock"),
        pytest.raises(BusyError, match="is being built by process"),
    ):
        located(capsys, no_wait=True)


# ---- removed


def prune(folder: Path, *arguments: str) -> str:
    done = fork_server().run("cltt", ["prune", *arguments], os.environ, folder=folder)
    assert done.returncode == 0 or "error" in done.stderr, done.stderr
    return done.stdout + done.stderr


def three_sets(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    sets = [located(capsys)[0]]
    for number in range(2):
        data.make_clips(folder / "frames", {f"new/{number}": 7})
        sets.append(located(capsys)[0])
    return sets


def test_pruning_takes_only_what_nothing_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, middle, newest = three_sets(folder, capsys)
    assert "can go: --remove" in prune(folder) and old.is_dir()
    run = folder / "checkpoints/run"
    run.mkdir(parents=True)
    (run / "settings.json").write_text('{"optim": {"epochs": 2}}')
    with in_use(old, run):
        listed = prune(folder, "--remove")
        assert "a run uses it" in listed and "the newest of its folder" in listed and "removed 1 of 3" in listed, listed
        assert "cannot be removed: a run uses it now" in prune(folder, "--remove", old.name)
        assert [path.is_dir() for path in (old, middle, newest)] == [True, False, True]
    assert [kept.needed for kept in list_sets(Path("shards"))] == [f"unfinished: {run}", "the newest of its folder"]
    assert "removed 0 of 2" in prune(folder, "--remove")
    (run / "epoch-0002.pt").touch()  # it has made its last epoch
    assert "removed 1 of 2" in prune(folder, "--remove")
    assert sorted(path.name for path in Path("shards").iterdir()) == [newest.name, f"{newest.name}.source.json"]


def test_a_name_that_is_not_there_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    located(capsys)
    assert "there is no set 'nowhere'" in prune(folder, "--remove", "nowhere")


def test_a_record_by_other_rules_is_compared_by_the_folders_that_both_know(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left out by name today was in the digest, and in the folders, of an older record."""
    shards, _ = located(capsys)
    (folder / "frames/@eaDir").mkdir()
    record = locate.record_path(shards)
    found = json.loads(record.read_text())
    folders = {name: (folder / "frames" / name).stat().st_mtime_ns for name in found["folders"]}
    old = {**found, "folders": {**folders, "@eaDir": 1, "@eaDir/1.jpg": 2}, "digest": "0" * 64}
    del old["rules"]
    record.write_text(json.dumps(old))
    for rescan in (False, True):
        same, said = located(capsys, rescan=rescan)
        assert same == shards and said.count("which skipped fewer files because of their names") == 1
        assert json.loads(record.read_text()) == old
    (folder / "frames/a/one/frame_000003.jpg").unlink()
    assert located(capsys)[0] != shards


def test_what_looks_odd_is_said_with_the_command_that_chooses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "frames/a/one/frame_000003.jpg").rename(folder / "frames/a/one/mask_000003.jpg")
    said = located(capsys)[1]
    assert "odd: folders with names of several kinds" in said
    assert f"cltt build --root-dir {folder / 'frames'} --out " in said and "--include GLOB" in said


def test_the_command_that_chooses_builds_as_train_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "frames/a/one/frame_000003.jpg").rename(folder / "frames/a/one/mask_000003.jpg")
    video.write_video(folder / "frames/walk.mp4", range(5))
    assert "-chosen --fps 2.5 --stream 0 --include" in located(capsys, fps=2.5, stream=0)[1]


def test_fps_holds_for_a_video_whose_name_is_that_of_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video.write_video(folder / "walk.mp4", range(20))
    (folder / "walk.mp4").rename(folder / "frames/walk")
    shards, said = located(capsys, fps=5.0)
    assert "change nothing" not in said
    assert 55 < ShardDataset(folder / shards).num_frames < 55 + 20


def test_a_storage_fault_does_not_turn_a_video_into_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video.write_video(folder / "frames/walk.mp4", range(5))
    now, real, faults = describe(str(folder / "frames"), files=True), os.stat, [OSError(errno.EIO, "transient")]

    def faulty(path: object, *args: object, **options: object) -> os.stat_result:
        if str(path).endswith("walk.mp4") and faults:
            raise faults.pop()
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", faulty)
    assert set(locate._videos(str(folder / "frames"), now)) == {"walk.mp4"} and not faults


def test_fps_of_a_folder_without_videos_makes_no_second_copy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = located(capsys)
    second, said = located(capsys, fps=5.0)
    assert second == first and f"no video is under {folder / 'frames'}: --fps" in said
    assert len(list_sets(Path("shards"))) == 1


def test_a_set_over_the_same_files_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One folder up, or one of several down: the clips have other names there, but the files are the same."""
    first, said = located(capsys)
    assert "note: " not in said
    locate_shards(DataSettings(root_dir="frames/a"))
    said = capsys.readouterr().out
    assert f"note: {first} already holds 2 of 2 clips: --root-dir {folder / 'frames'} would use it" in said
    (folder / "frames/a/one/frame_000029.jpg").unlink()
    locate_shards(DataSettings(root_dir="frames/a/one"))
    assert "note: " not in capsys.readouterr().out


def test_what_is_left_out_and_stored_anew_is_said_with_the_reason(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    data.add_mac_clutter(folder / "frames")
    for number in range(3):
        Image.new("RGB", (16, 16), (90 * number, 0, 0)).save(folder / f"frames/a/one/frame_10000{number}.png")
    path, said = located(capsys)
    hidden = ShardDataset(path).num_frames and layout.read_json(path / layout.INDEX)["counts"]["skipped"]["hidden file"]
    assert f"{hidden} x hidden file" in said and "re-encoded as JPEG: 3 x PNG" in said
    assert f"({path / 'report.json'} names each)" in said


def test_frames_stored_smaller_are_a_set_of_their_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = located(capsys)
    smaller, said = located(capsys, resize_short=24)
    assert smaller != first and "note: " not in said
    assert ShardDataset(smaller).frame_records([0])[["width", "height"]].tolist() == [(32, 24)]
    assert located(capsys, resize_short=24)[0] == smaller and located(capsys)[0] == first
    locate_shards(DataSettings(root_dir="frames/a", resize_short=24))
    assert f"note: {smaller} already holds 2 of 2 clips" in capsys.readouterr().out
    built = shards_name(str(folder.resolve() / "frames"), BuildSettings(resize_short=24))
    assert smaller.name == built, "as `cltt build --resize-short` of the same folder would be named"


def test_smaller_frames_need_room_for_smaller_frames(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data.make_clips(folder / "frames", {"c": 20}, height=480, width=640)
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(locate.shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    with pytest.raises(SettingsError, match="make room"):
        located(capsys)
    assert located(capsys, resize_short=24)[0].is_dir()


def test_what_large_frames_cost_is_said_for_the_size_that_is_trained_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--resize-short" not in located(capsys)[1]
    (folder / "frames/b.txt").touch()
    shutil.rmtree(folder / "frames/a/two")
    assert "frames are large for --image-size 32 (64x48): --resize-short 37 would" in located(capsys, image_size=32)[1]
