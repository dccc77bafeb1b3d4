"""train.py on a folder of videos, and on the clips that a list picks; inspect_windows.py on both."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cltt import ShardDataset, build_shards
from tests.helpers import data, video
from tests.helpers.fork_server import fork_server
from tests.helpers.inspecting import info, refusal

TINY = ["--window-size", "3", "--frame-step", "2", "--batch-size", "8", "--image-size", "32"]
RUN = [*TINY, "--epochs", "1", "--max-batches-per-epoch", "2", "--num-workers", "1", "--device", "cpu"]


def train(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run train.py with the tiny model, in ``cwd``."""
    env = {**os.environ, "LOSSES": str(cwd / "losses")}
    return fork_server().run("tests.helpers.tiny_run", arguments, env, folder=cwd)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av")
    root = tmp_path_factory.mktemp("source") / "videos"
    video.write_video(root / "ada" / "one.mp4", 90)
    video.write_video(root / "ben" / "two.webm", 60, codec="libvpx-vp9", options={"deadline": "realtime"})
    return root


def test_a_folder_of_videos_trains(videos: Path, tmp_path: Path) -> None:
    arguments = ["--root-dir", str(videos), "--fps", "10", *RUN]
    done = train(arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    (shards,) = [path for path in (tmp_path / "shards").iterdir() if path.is_dir()]
    assert ShardDataset(shards).clip_lengths.tolist() == [30, 20]
    again = train([*arguments, "--checkpoint-dir", "other"], tmp_path)
    assert "using the shards in" in again.stdout
    before = sorted(path.name for path in (tmp_path / "shards").iterdir())
    refused = train(["--root-dir", str(videos), "--fps", "5", *RUN, "--resume"], tmp_path)
    assert refused.returncode == 2 and "fps is 5.0 and was 10.0" in refused.stderr, refused.stderr
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == before, "refused before a build"
    (tmp_path / "others").mkdir()
    elsewhere = train(["--root-dir", "others", *RUN], tmp_path)
    assert elsewhere.returncode == 2 and f"holds a run on {videos} already; give another" in elsewhere.stderr
    by_its_shards = train(["--shards", str(shards), *RUN], tmp_path)
    assert by_its_shards.returncode == 2 and "give --resume to go on with it" in by_its_shards.stderr
    other = train(["--root-dir", str(videos), "--fps", "5", *RUN, "--checkpoint-dir", "third"], tmp_path)
    assert other.returncode == 0 and len(list((tmp_path / "shards").glob("*.source.json"))) == 2


def test_inspecting_videos_shows_their_times(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--root-dir", videos, "--fps", "10", *TINY, "--sample-idx", "3", "--save-path", tmp_path / "w.png"]
    found = info(capsys, *flags)
    assert found["frame_names"] == [[f"ada/one.mp4#t={time}" for time in ("0.300", "0.500", "0.700")]]
    assert found["seconds"] == [[pytest.approx(0.3), pytest.approx(0.5), pytest.approx(0.7)]]
    assert found["clips"] == 2 and found["frames"] == 50 and (tmp_path / "w.png").stat().st_size > 1000


def test_windows_of_videos_are_those_of_their_shards(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_shards(videos, tmp_path / "shards", fps=10)
    batch = [*TINY, "--mode", "batch", "--batch-sampling", "plan", "--step", "1", "--save-path", tmp_path / "w.png"]
    plain = info(capsys, "--root-dir", videos, "--fps", "10", *batch)
    built = info(capsys, "--shards", tmp_path / "shards", *batch)
    assert plain["frame_names"] == built["frame_names"] and plain["seconds"] == built["seconds"]


def test_a_gallery_of_videos_opens_with_times(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info(capsys, "--root-dir", videos, "--fps", "10", *TINY, "--mode", "html", "--out", tmp_path / "gallery")
    page = (tmp_path / "gallery" / "index.html").read_text()
    assert "ada/one.mp4#t=" in page and ' s"' in page


# ---- the clips of a list


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    data.make_clips(folder / "frames", {"a/one": 40, "a/two": 33, "b/one": 51, "b/two": 28})
    build_shards(folder / "frames", folder / "out", label_from="parent")
    return folder / "out"


def test_a_list_of_clips_is_what_is_trained_on(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b  # the second child\n")
    flags = ["--shards", str(shards), "--clips", "b.txt", *TINY, "--epochs", "1", "--num-workers", "1"]
    done = train([*flags, "--device", "cpu", "--checkpoint-dir", "run"], tmp_path)
    assert done.returncode == 0, done.stderr
    steps = len((tmp_path / "losses").read_text().split())
    assert steps == (51 - 4 + 28 - 4) // 8


def test_a_resumed_run_must_have_the_same_clips_whatever_the_file(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b\n")
    (tmp_path / "same.txt").write_text("# both of b\nb/one\nb/two\n")
    (tmp_path / "other.txt").write_text("b/one\na\n")

    def run(clips: str | None, *more: str) -> subprocess.CompletedProcess[str]:
        listed = [] if clips is None else ["--clips", clips]
        return train(["--shards", str(shards), *RUN, "--checkpoint-dir", "run", *listed, *more], tmp_path)

    assert run("b.txt").returncode == 0
    assert run("same.txt", "--resume").returncode == 0
    for refused in (run("other.txt", "--resume"), run(None, "--resume")):
        assert refused.returncode == 2 and "--clips chooses other clips" in refused.stderr
    (tmp_path / "b.txt").write_text("a\n")
    assert run("b.txt", "--resume").returncode == 2, "the contents count"


def test_inspecting_a_list_of_clips(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("a/two\n")
    flags = ["--shards", shards, "--clips", tmp_path / "list.txt", *TINY]
    found = info(capsys, *flags, "--sample-idx", "0", "--save-path", tmp_path / "w.png")
    assert (found["clips"], found["windows"], found["clips_shown"]) == (1, 29, ["a/two"])
    (tmp_path / "list.txt").write_text("c\n")
    assert "no clip or folder of clips" in refusal(capsys, *flags, "--sample-idx", "0", "--save-path", "w.png")


def test_evaluation_takes_the_clips_of_a_list(shards: Path, tmp_path: Path) -> None:
    from cltt.errors import SettingsError
    from cltt.evaluation.datasets import LabelledSettings, open_labelled

    (tmp_path / "list.txt").write_text("a\nb/two\n")
    listed = LabelledSettings(clips=str(tmp_path / "list.txt"))
    everything = sum(len(part.labels) for part in open_labelled(shards).parts.values())
    picked = sum(len(part.labels) for part in open_labelled(shards, listed).parts.values())
    assert everything == 152 and picked == 101
    with pytest.raises(SettingsError, match="--clips picks clips of shards"):
        open_labelled(tmp_path, listed)
