"""What looks odd is counted by kind and said the same whatever the order in which it was found."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cltt import build_shards
from cltt.commands.build import summary
from cltt.packing import plan_writer
from cltt.shards.dataset import ShardDataset
from cltt.source import clips, scan, videos
from cltt.source.odd import Odd, merge_odd, odd_lines
from cltt.visualize.inspect import main
from tests.helpers import data

FOUND = [Odd("dark clips", "b", "--lamp"), Odd("dark clips", "a", "--lamp", 2), Odd("bright clips", "c")]
LINES = ["bright clips: 1 (c)", "dark clips: 3 (as a); --lamp"]


def test_records_add_up_in_any_order_and_in_parts() -> None:
    for order in itertools.permutations(FOUND):
        assert odd_lines(order) == LINES
        assert odd_lines([*merge_odd(order[:2]), *order[2:]]) == LINES


def test_lines_are_in_the_report_of_a_build_and_in_the_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = clips.list_clips

    def with_odd(found: scan.Scan, pool: ThreadPoolExecutor, sampling: videos.Sampling) -> Iterator[videos.Listed]:
        for number, one in enumerate(listed(found, pool, sampling)):
            yield one._replace(odd=FOUND[number : number + 1])
        found.odd += FOUND[2:]

    data.make_clips(tmp_path / "root", {"a": 3, "b": 3})
    plain = build_shards(tmp_path / "root", tmp_path / "plain", workers=1)
    assert plain.odd == [] and "odd" not in json.loads((tmp_path / "plain" / "report.json").read_text())
    monkeypatch.setattr(plan_writer.clips, "list_clips", with_odd)
    assert build_shards(tmp_path / "root", tmp_path / "dry", dry_run=True).odd == LINES
    report = build_shards(tmp_path / "root", tmp_path / "odd", workers=2, shard_size=1)
    assert report.odd == LINES == ShardDataset(tmp_path / "odd").odd
    assert json.loads((tmp_path / "odd" / "report.json").read_text())["odd"] == LINES
    again = build_shards(tmp_path / "root", tmp_path / "odd", shard_size=1)
    assert again.already_complete and dataclasses.replace(again, already_complete=False) == report
    assert [f"  odd: {line}" for line in LINES] == summary(report, "built", 0).splitlines()[-2:]
    assert main(["--shards", str(tmp_path / "odd"), "--mode", "stats"]) == 0
    assert [f"odd: {line}" for line in LINES] == capsys.readouterr().out.splitlines()[-2:]
