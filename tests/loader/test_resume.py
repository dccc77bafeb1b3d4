"""The state counts what was consumed: save at every step, restore in a fresh process, compare the rest bit by bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.errors import SettingsError
from cltt.loader.loader import Batch
from tests.helpers import data

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    build_shards(data.make_clips(folder / "clips", {"a": 40, "b": 31, "c": 12}), folder / "shards", workers=1)
    return folder / "shards"


def make(shards: str | Path, stride: int = 1, step: Any = 2, **options: Any) -> WindowLoader:
    dataset = ShardDataset(shards)
    defaults = {"image_size": 16, "device": "cpu", "augment": "crop", "depth": 4, "seed": 9, "num_threads": 2}
    return WindowLoader(dataset, WindowIndex(dataset.clip_lengths, 3, step, stride), 8, **{**defaults, **options})


def digest(batches: list[Batch]) -> str:
    """One hash over the batches' ids and pixels, rows of all ranks joined."""
    made = hashlib.sha256()
    for name in ("frames", "window_ids", "clip_ids", "frame_ids"):
        made.update(torch.cat([getattr(batch, name) for batch in batches]).numpy().tobytes())
    return made.hexdigest()


def walk(shards: str, world_size: int, states: list[dict[str, Any]], options: dict[str, Any]) -> list[list[str]]:
    """For each state: the hashes of the batches from it to the end of the next epoch, on ``world_size`` ranks."""
    found = []
    loaders = [make(shards, **options, rank=rank, world_size=world_size) for rank in range(world_size)]
    for state in states:
        hashes = []
        for loader in loaders:
            loader.load_state_dict(state)
        while loaders[0].epoch < 2:
            hashes += [digest(list(batches)) for batches in zip(*loaders, strict=True)]
        found.append(hashes)
    return found


def main() -> None:
    asked = json.loads(sys.stdin.read())
    print(json.dumps(walk(**asked)))


def in_fresh_process(shards: Path, world_size: int, states: list[Any], options: dict[str, Any]) -> list[list[str]]:
    asked = json.dumps({"shards": str(shards), "world_size": world_size, "states": states, "options": options})
    command = [sys.executable, "-m", "tests.loader.test_resume"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=180, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "options"),
    [(1, {}), (2, {}), (4, {}), (2, {"step": "1-4"}), (4, {"step": "1-3", "clips_per_block": 1, "augment": "none"})],
    ids=str,
)
def test_every_state_gives_the_same_rest(shards: Path, world_size: int, options: dict[str, Any]) -> None:
    """States of one process, after every batch of two epochs, also taken with batches made ahead; JSON keeps them."""
    with make(shards, **options) as loader:
        states, hashes = [loader.state_dict()], []
        while loader.epoch < 2:
            for batch in loader:
                states.append(loader.state_dict())
                hashes.append(digest([batch]))
            states.append(loader.state_dict())  # after the epoch's end: the next one's start
    steps = len(loader)
    consumed = [state["plan"]["epoch"] * steps + state["plan"]["step"] for state in states]
    assert sorted(set(consumed)) == list(range(2 * steps + 1)) and steps >= 6
    for rest, done in zip(in_fresh_process(shards, world_size, states, options), consumed, strict=True):
        assert rest == hashes[done:]


@pytest.mark.parametrize("options", [{}, {"stride": 5, "augment": "none"}])
def test_a_broken_off_loop_goes_on_where_it_stopped(shards: Path, options: dict[str, Any]) -> None:
    with make(shards, **options) as whole, make(shards, **options) as loader:
        expected, got = [digest([batch]) for batch in whole], []
        while loader.epoch == 0:
            for batch in loader:
                got.append(digest([batch]))
                if len(got) % 2:
                    break
        assert got == expected


def test_set_epoch_starts_anew_only_where_the_epoch_changes(shards: Path) -> None:
    with make(shards) as loader:
        next(iter(loader))
        loader.set_epoch(0)
        assert loader.state_dict()["plan"]["step"] == 1
        loader.set_epoch(3)
        assert loader.epoch == 3 and loader.state_dict()["plan"]["step"] == 0


def test_the_state_after_the_last_batch_ends_the_epoch(shards: Path) -> None:
    with make(shards) as loader, make(shards) as other:
        batches = iter(loader)
        for _ in range(len(loader)):
            next(batches)
        other.load_state_dict(loader.state_dict())
        assert list(other) == [] and other.epoch == 1


def test_an_iterator_of_a_closed_loader_says_so(shards: Path) -> None:
    with make(shards) as loader:
        batches = iter(loader)
        next(batches)
        loader.close()
        with pytest.raises(RuntimeError, match="closed while it was iterated"):
            list(batches)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"image_size": 17}, "image_size"),
        ({"augment": "none"}, "augment"),
        ({"seed": 1}, "seed"),
        ({"depth": 8}, "depth"),
    ],
)
def test_a_state_of_other_settings_is_refused(shards: Path, options: dict[str, Any], word: str) -> None:
    state = make(shards).state_dict()
    with pytest.raises(SettingsError, match=word):
        make(shards, **options).load_state_dict(state)


def test_a_state_of_other_data_is_refused(shards: Path, tmp_path: Path) -> None:
    build_shards(
        data.make_clips(tmp_path / "clips", {"a": 40, "b": 31, "c": 12}, quality=50), tmp_path / "s", workers=1
    )
    with pytest.raises(SettingsError, match="fingerprint"):
        make(tmp_path / "s").load_state_dict(make(shards).state_dict())
    with pytest.raises(SettingsError, match="version"):
        make(shards).load_state_dict({})


if __name__ == "__main__":
    main()
