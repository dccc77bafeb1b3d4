"""What a control group leaves of memory, told from files like the kernel's; and the line that a run says of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cltt import ShardDataset, WindowIndex, WindowLoader, build_shards
from cltt.loader.control_group import memory_left, ranks_on_node
from cltt.training import overview
from cltt.training.overview import memory_line
from tests.helpers import data

GB = 10**9


def group(folder: Path, limit: str, used: int, files: int, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    word = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{word} {files}\n")


def own(folder: Path, line: str) -> Path:
    (folder / "cgroup").write_text(line)
    return folder / "cgroup"


def test_the_tightest_of_the_groups_above_counts_and_file_pages_are_free(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    group(groups / "slurm/job_3", str(8 * GB), 3 * GB, 1 * GB)
    group(groups / "slurm/job_3/step_0", "max", 3 * GB, 1 * GB)
    group(groups / "slurm", str(100 * GB), 90 * GB, 0)
    assert memory_left(groups, own(tmp_path, "0::/slurm/job_3/step_0/task_0\n")) == 6 * GB
    assert memory_left(groups, own(tmp_path, "0::/slurm\n")) == 10 * GB
    assert memory_left(groups, own(tmp_path, "0::/elsewhere\n")) is None


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "groups", str(4 * GB), 5 * GB, 0)
    assert memory_left(tmp_path / "groups", own(tmp_path, "0::/\n")) == 0  # never less


def test_groups_of_the_first_version(tmp_path: Path) -> None:
    folder = tmp_path / "groups/memory/slurm/uid_0/job_7"
    group(folder, str(4 * GB), 1 * GB, 0, version=1)
    group(folder.parent, str(9223372036854771712), 1 * GB, 0, version=1)  # its word for "no limit"
    assert memory_left(tmp_path / "groups", own(tmp_path, "5:cpu:/x\n4:memory:/slurm/uid_0/job_7/step_0\n")) == 3 * GB


def test_without_groups_nothing_limits(tmp_path: Path) -> None:
    assert memory_left(tmp_path, tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, 2),
        ({"LOCAL_WORLD_SIZE": ""}, 1),
    ],
)
def test_ranks_of_a_node(environment: dict[str, str], ranks: int) -> None:
    assert ranks_on_node(environment) == ranks


def test_the_line_adds_up_and_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_shards(data.make_clips(tmp_path / "clips", {"a": 30}), tmp_path / "shards", workers=1)
    dataset = ShardDataset(tmp_path / "shards")
    loader = WindowLoader(dataset, WindowIndex(dataset.clip_lengths, 3, 2), 4, image_size=64, device="cpu")
    model = nn.Linear(5000, 1000)
    monkeypatch.setattr(overview, "free_memory", lambda: 10 * GB)
    cache, batches = loader.host_bytes()
    assert batches == 2 * 4 * 3 * 3 * 64 * 64 * torch.float32.itemsize
    assert loader._fetcher is None, "it takes the memory that it tells of"
    line = memory_line(model, loader)
    assert line.startswith("main memory: ") and "model 80 MB per rank; decoded frames kept" in line
    assert "(100% of those used); 10 GB are left" in line
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "by 4 ranks here 0.3" in memory_line(model, loader)
    monkeypatch.setattr(overview, "free_memory", lambda: GB // 10)
    assert memory_line(model, loader).startswith("warning: main memory") and "--mem-per-cpu" in memory_line(
        model, loader
    )
    loader.device = torch.device("cuda")
    assert loader.host_bytes() == (cache, 0), "on a GPU without DALI, frame memory is in main memory"
    loader.device = torch.device("cpu")
    next(iter(loader))
    assert loader._fetcher is not None and cache == loader._fetcher.store.slots * 64 * 64 * 3
    loader.close()
