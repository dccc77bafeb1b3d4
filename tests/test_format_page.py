"""docs/format.md: the reader that it shows reads real shards, with nothing but the standard library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cltt import ShardDataset, build_shards
from cltt.shards import layout
from tests.helpers import data

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "format.md").read_text()


def test_the_reader_on_the_page_reads_shards(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "frames", {"ada/one": 5, "ada/two": 3, "ben/one": 4})
    broken = tmp_path / "frames" / "ada" / "one" / "frame_000002.jpg"
    broken.write_bytes(broken.read_bytes()[:100])
    build_shards(tmp_path / "frames", tmp_path / "shards", label_from="parent", shard_size=8_000, workers=1)
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path / "shards")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    dataset = ShardDataset(tmp_path / "shards")
    sizes = [sum(map(len, dataset.read(range(*dataset.clip_offsets[clip : clip + 2])))) for clip in range(4)]
    names = [("ada/one", 0, "ada", 2), ("ada/one", 1, "ada", 2), ("ada/two", 0, "ada", 3), ("ben/one", 0, "ben", 4)]
    assert lines == [
        f"{name} part {part} label {label}: {count} frames, {size} bytes"
        for (name, part, label, count), size in zip(names, sizes, strict=True)
    ]


def test_the_reader_on_the_page_finds_damage(tmp_path: Path) -> None:
    data.make_clips(tmp_path / "frames", {"one": 5})
    build_shards(tmp_path / "frames", tmp_path / "shards", workers=1)
    shard = tmp_path / "shards" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-I", "-S", "-c", program, str(tmp_path / "shards")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "damaged" in done.stderr


def test_the_tables_are_those_of_the_code() -> None:
    fields = re.findall(r"^\| \d+ \| \w+ \| `(\w+)` \|", PAGE, re.MULTILINE)
    assert fields == [name for name, _ in layout.FRAME_FIELDS]
    assert set(re.findall(r"^NAME/(\w+\.\w+)", PAGE, re.MULTILINE)) >= {layout.FRAMES, layout.CLIPS, layout.INDEX}
