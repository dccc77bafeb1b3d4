"""build_shards: splits, labels, tasks, dry runs, what it refuses; and its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cltt import BuildReport, ShardDataset, build_shards
from cltt.errors import DataError, SettingsError
from cltt.packing import builder
from cltt.shards import layout
from cltt.shards.verify import verify_shards
from tests.helpers import data
from tests.helpers.folders import assert_same

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {f"p{k % 5}/c{k:02d}": 1 + k % 3 for k in range(60)}
    return data.make_clips(tmp_path_factory.mktemp("source") / "root", lengths, height=16, width=16)


def _cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/build_shards.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_report_counts_what_is_there(real_root: Path, tmp_path: Path) -> None:
    report = build_shards(real_root, tmp_path / "out", verify="header", shard_size=8 << 20)
    hidden = [p for p in real_root.rglob("*") if p.is_file() and p.name.startswith(".")]
    files = [p for p in real_root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    frames = [p for p in files if p.read_bytes()[:3] == b"\xff\xd8\xff"]
    shards = sorted((tmp_path / "out").glob("shard-*.tar"))
    assert report == BuildReport(
        path=tmp_path / "out",
        clips=len({p.parent for p in frames}),
        frames=len(frames),
        bytes=sum(shard.stat().st_size for shard in shards),
        shards=len(shards),
        reencoded=0,
        skipped={"hidden file": len(hidden), "not an image": len(files) - len(frames)},
        clip_lengths=np.zeros(0),
    )
    assert report.clip_lengths.sum() == len(frames)
    assert all(shard.stat().st_size <= (8 << 20) + 1024 for shard in shards)
    assert not (tmp_path / "out" / layout.BUILD).exists()


def test_splits_depend_on_key_and_seed_alone(root: Path, tmp_path: Path) -> None:
    def splits(out: str, **options: object) -> dict[str, set[str]]:
        build_shards(root, tmp_path / out, **options)  # type: ignore[arg-type]
        dataset = ShardDataset(tmp_path / out)
        return {name: {dataset.clip_key(c) for c in dataset.split_clips(name)} for name in dataset.split_names}

    shares = {"train": 0.6, "val": 0.2, "test": 0.2}
    first = splits("a", splits=shares)
    assert list(first) == list(shares) and sum(map(len, first.values())) == 60 == len(set.union(*first.values()))
    assert 20 <= len(first["train"]) <= 52 and first["val"] and first["test"]
    assert splits("b", splits="train=0.6,val=0.2,test=0.2", shard_size=1, workers=1) == first
    assert splits("c", splits=shares, split_seed=1) != first
    by_parent = splits("d", splits=shares, split_by="parent", split_seed=3)
    for parent in (f"p{k}/" for k in range(5)):
        assert sum(any(key.startswith(parent) for key in keys) for keys in by_parent.values()) == 1
    assert sum(map(len, by_parent.values())) == 60


def test_no_share_no_clips_and_unknown_splits_name_the_known(root: Path, tmp_path: Path) -> None:
    build_shards(root, tmp_path / "out", splits="train=1,val=0")
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.split_clips("train").tolist() == list(range(60)) and dataset.split_clips("val").tolist() == []
    with pytest.raises(SettingsError, match="no split 'test'; the splits are: train, val"):
        dataset.split_clips("test")
    build_shards(root, tmp_path / "none")
    with pytest.raises(SettingsError, match="build the shards with --splits"):
        ShardDataset(tmp_path / "none").split_clips("train")


def test_labels(root: Path, tmp_path: Path) -> None:
    def labels(out: str, rule: str) -> dict[str, str | None]:
        build_shards(root, tmp_path / out, label_from=rule)
        dataset = ShardDataset(tmp_path / out)
        names = [*dataset.label_names, None]
        return {dataset.clip_key(c): names[label] for c, label in enumerate(dataset.labels.tolist())}

    assert labels("a", "parent")["p3/c03"] == "p3"
    assert labels("b", r"regex:c\d(\d)")["p3/c13"] == "3"
    assert labels("c", "regex:c0[0-4]") | {} == {
        key: key[3:] if key[3:] in {f"c0{k}" for k in range(5)} else None for key in labels("a", "parent")
    }
    table = tmp_path / "table.csv"
    table.write_text('clip,label\np0/c00,"ten, or so"\np1/c01,9\n')
    from_table = labels("d", f"csv:{table}")
    assert {key: label for key, label in from_table.items() if label} == {"p0/c00": "ten, or so", "p1/c01": "9"}
    table.write_text("p0/c00,else\n")
    with pytest.raises(SettingsError, match="label_table_sha256"):
        labels("d", f"csv:{table}")


def test_labels_of_clips_right_under_the_root(labelled_root: Path, tmp_path: Path) -> None:
    build_shards(labelled_root, tmp_path / "out", label_from="parent", workers=1)
    dataset = ShardDataset(tmp_path / "out")
    assert dataset.label_names == [dataset.clip_key(c) for c in range(20)]
    assert dataset.labels.tolist() == list(range(20))


BAD_SETTINGS = [
    ({"verify": "maybe"}, "verify is 'maybe'"),
    ({"splits": "train"}, "must look like"),
    ({"splits": "train=0.5"}, "add up to 1"),
    ({"splits": {"train": 1.5, "val": -0.5}}, "0 or more"),
    ({"split_by": "day"}, "split_by is 'day'"),
    ({"label_from": "name"}, "parent, regex:PATTERN or csv:FILE"),
    ({"label_from": "regex:("}, "not a regular expression"),
    ({"label_from": "regex:nothing"}, "gives no clip a label"),
    ({"label_from": "csv:/nowhere.csv"}, "cannot read '/nowhere.csv'"),
    ({"quality": 0}, "quality is 0"),
    ({"quality": 50}, "give resize_short too"),
    ({"resize_short": 0}, "resize_short is 0"),
    ({"shard_size": 0}, "shard_size is 0"),
    ({"workers": 0}, "workers is 0"),
    ({"task": "2/2"}, "I from 0 to N-1"),
    ({"task": "x"}, "I from 0 to N-1"),
    ({"task": "0/2", "finalize": True}, "exclude each other"),
    ({"task": "0/2", "overwrite": True}, "before the tasks start"),
]


@pytest.mark.parametrize(("options", "message"), BAD_SETTINGS)
def test_settings_that_cannot_work(root: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_shards(root, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == [], "a refused build left something behind"


NO_LABELS = ["regex:nothing(.)", "csv:{}"]


@pytest.mark.parametrize("mode", [{}, {"dry_run": True}, {"task": "0/2"}, {"workers": 2}])
@pytest.mark.parametrize("rule", NO_LABELS)
def test_labels_that_fit_no_clip_are_found_before_packing(
    root: Path, tmp_path: Path, rule: str, mode: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("clip,label\nelsewhere/c00,1\n")
    monkeypatch.setattr(builder, "pack_shards", lambda *_: pytest.fail("it went on to pack"))
    with pytest.raises(SettingsError, match=r"gives no clip a label; it must fit clip keys such as 'p0/c00'"):
        build_shards(root, tmp_path / "out", label_from=rule.format(table), **mode)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def _break_off(root: Path, out: Path, **options: object) -> dict[Path, int]:
    """Leave an unfinished build with all shards packed; their inodes."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder, "merge", _interrupted)
        build_shards(root, out, shard_size=9999, **options)  # type: ignore[arg-type]
    return {shard: shard.stat().st_ino for shard in out.glob("shard-*.tar")}


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_unfinished_build_goes_on_with_other_labels_and_splits(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shards = _break_off(root, out, label_from="parent", splits="train=1")
    other = {"label_from": "regex:c(.)", "splits": "train=0.5,val=0.5", "split_by": "parent", "split_seed": 4}
    for refused in ({"task": "0/2"}, {"finalize": True}):
        with pytest.raises(SettingsError, match="unfinished build with other settings"):
            build_shards(root, out, shard_size=9999, **other, **refused)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="gives no clip a label"):
        build_shards(root, out, shard_size=9999, label_from="regex:nothing")
    build_shards(root, out, shard_size=9999, **other)  # type: ignore[arg-type]
    assert {shard: shard.stat().st_ino for shard in out.glob("shard-*.tar")} == shards and len(shards) > 1
    build_shards(root, tmp_path / "fresh", shard_size=9999, **other)  # type: ignore[arg-type]
    assert_same(out, tmp_path / "fresh")


def test_a_task_reports_its_share(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = [build_shards(root, out, shard_size=9999, task=f"{task}/3") for task in range(3)]
    whole = build_shards(root, out, shard_size=9999, finalize=True)
    assert [task.shards for task in tasks] == [len(range(whole.shards)[k::3]) for k in range(3)]
    for name in ("frames", "bytes", "shards", "reencoded"):
        assert sum(getattr(task, name) for task in tasks) == getattr(whole, name), name
    assert all(task.clip_lengths.sum() == task.frames and len(task.clip_lengths) == task.clips for task in tasks)


def test_clips_are_counted_by_split_and_label(root: Path, tmp_path: Path) -> None:
    options = {"splits": "train=0.7,val=0.3,none=0", "label_from": "regex:c0[0-6]"}
    report = build_shards(root, tmp_path / "out", **options)  # type: ignore[arg-type]
    dataset = ShardDataset(tmp_path / "out")
    assert report.splits == {name: len(dataset.split_clips(name)) for name in ("train", "val", "none")}
    assert report.splits["none"] == 0 and report.labels == {f"c0{k}": 1 for k in range(7)}
    planned = build_shards(root, tmp_path / "plan", dry_run=True, **options)  # type: ignore[arg-type]
    assert (planned.splits, planned.labels) == (report.splits, report.labels)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    said = _cli("--root-dir", str(root), "--out", str(tmp_path / "out"), *flags).stdout
    assert "warning: split 'none' has no clips" in said and "53 clips without" in said
    assert "largest of 1; " in said


def test_a_complete_set_is_left_alone_and_others_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = build_shards(root, out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert not report.already_complete
    again = build_shards(root, out, workers=1)
    assert again == report and again.already_complete
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    with pytest.raises(SettingsError, match=r"shard_size is 9999 and was 1073741824.*--overwrite"):
        build_shards(root, out, shard_size=9999)
    with pytest.raises(SettingsError, match="root_dir"):
        build_shards(root / "p0", out)
    build_shards(root, out, shard_size=9999, overwrite=True)
    build_shards(root, tmp_path / "fresh", shard_size=9999)
    assert_same(out, tmp_path / "fresh")


def test_an_unfinished_build_of_other_settings_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_shards(root, out, task="0/2", shard_size=9999)
    with pytest.raises(SettingsError, match="unfinished build with other settings"):
        build_shards(root, out, shard_size=5000)
    build_shards(root, out, shard_size=5000, overwrite=True)
    assert verify_shards(out, decode=True, source_dir=root) == []


def test_overwriting_an_unfinished_build_from_a_refused_source_leaves_no_shards(root: Path, tmp_path: Path) -> None:
    """Shards without plan or index belong to no build: every later one would refuse the folder."""
    out = tmp_path / "out"
    build_shards(root, out, task="0/2", shard_size=9999)
    with pytest.raises(SettingsError, match="gives no clip a label"):
        build_shards(root, out, overwrite=True, label_from="regex:nothing")
    assert list(out.glob("*")) == []
    build_shards(root, out)


def test_finalize_wants_every_shard(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="nothing to finalize"):
        build_shards(root, out, finalize=True, shard_size=9999)
    build_shards(root, out, task="1/2", shard_size=9999)
    with pytest.raises(DataError, match=r"shards are missing \(shard-000000.tar"):
        build_shards(root, out, finalize=True, shard_size=9999)
    build_shards(root, out, task="0/2", shard_size=9999)
    build_shards(root, out, finalize=True, shard_size=9999)
    build_shards(root, tmp_path / "whole", shard_size=9999)
    assert_same(out, tmp_path / "whole")


def test_a_dry_run_writes_nothing_and_counts(root: Path, tmp_path: Path) -> None:
    report = build_shards(root, tmp_path / "out", dry_run=True, shard_size=9999)
    assert not (tmp_path / "out").exists()
    real = build_shards(root, tmp_path / "out", shard_size=9999)
    assert (report.clips, report.frames, report.shards) == (real.clips, real.frames, real.shards)
    assert report.clip_lengths.tolist() == real.clip_lengths.tolist()
    assert report.bytes == sum(path.stat().st_size for path in root.rglob("*.jpg"))


def test_the_fingerprint_is_that_of_the_contents(root: Path, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    build_shards(root, tmp_path / "a")
    build_shards(moved, tmp_path / "b")
    (moved / "p0/c00/frame_000000.jpg").write_bytes((moved / "p1/c01/frame_000001.jpg").read_bytes())
    build_shards(moved, tmp_path / "c")
    prints = [ShardDataset(tmp_path / name).fingerprint for name in "abc"]
    assert prints[0] == prints[1] != prints[2]


def test_command_line(root: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    plan = _cli("--root-dir", str(root), "--out", out, "--dry-run", "--window-size", "2", "--frame-step", "1")
    assert plan.returncode == 0, plan.stderr
    assert "60 clips, 120 frames, 0.1 MB in 1 shard (" in plan.stdout
    assert "60 windows (span 2 frames); too short for one: 20 clips" in plan.stdout
    assert "invalid frames, which are found when they are packed, lower these counts" in plan.stdout
    built = _cli("--root-dir", str(root), "--out", out, "--splits", "train=0.8,val=0.2", "--label-from", "parent")
    assert built.returncode == 0 and f"built {out}: 60 clips, 120 frames" in built.stdout, built.stderr
    assert "labels: 5 (p0, p1, p2, p3, p4), the smallest of 12 clips, the largest of 12\n" in built.stdout
    dataset = ShardDataset(out)
    train, val = (len(dataset.split_clips(name)) for name in ("train", "val"))
    assert f"splits: train {train} clips, val {val} clips" in built.stdout
    same = _cli("--root-dir", str(root), "--out", out, "--splits", "train=0.8,val=0.2", "--label-from", "parent")
    assert f"{out}: already complete (60 clips" in same.stdout and "source was not compared" in same.stdout
    again = _cli("--root-dir", str(root), "--out", out)
    assert again.returncode == 2 and "Traceback" not in again.stderr and again.stderr.count("\n") == 1
    assert _cli("verify", out, "--decode", "--source", str(root)).returncode == 0
    shard = tmp_path / "out" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    record = ShardDataset(out).frame_records([77])[0]
    content[int(record["offset"]) + 40] ^= 1
    shard.write_bytes(content)
    damaged = _cli("verify", out)
    assert damaged.returncode == 1
    assert f"{ShardDataset(out).frame_name(77)}: {shard}: CRC mismatch; copy this shard again" in damaged.stdout
    assert _cli("verify", str(tmp_path)).returncode == 2
