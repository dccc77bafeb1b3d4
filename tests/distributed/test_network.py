"""Two nodes whose own names resolve to loopback meet all the same: in two network namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cltt.distributed.network import route_interface
from tests.helpers import training

NAMES = ("cltt-a", "cltt-b")
ADDRESSES = ("10.77.41.1", "10.77.41.2")
MEET = """
import sys, torch
from cltt import distributed
info = distributed.rank_info()
distributed.start(info, cuda=False)
assert distributed.all_gather_rows(torch.tensor([info.rank])).tolist() == [0, 1]
distributed.stop()
print("met")
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def make_nodes() -> None:
    for name in NAMES:
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
    ip("link", "add", "eth-a", "netns", NAMES[0], "type", "veth", "peer", "name", "eth-b", "netns", NAMES[1])
    for name, address, link in zip(NAMES, ADDRESSES, ("eth-a", "eth-b"), strict=True):
        ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        ip("-n", name, "link", "set", link, "up")


@pytest.fixture
def nodes() -> Iterator[None]:
    """Namespaces NAMES with ADDRESSES, joined by a cable."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs the commands ip and unshare")
    try:
        make_nodes()
        yield
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start_on_node(rank: int, hosts: Path, **environment: str) -> subprocess.Popen[str]:
    """A rank in its namespace, on a host called nodeN that /etc/hosts calls 127.0.1.1."""
    dress = f'mount --bind {hosts} /etc/hosts && hostname node{rank} && exec "$@"'
    node = ["ip", "netns", "exec", NAMES[rank], "unshare", "--mount", "--uts", "sh", "-c", dress, "sh"]
    meeting = training.rank_environment(rank, 2, 29_417) | {"MASTER_ADDR": ADDRESSES[0], "LOCAL_RANK": "0"}
    return subprocess.Popen(
        [*node, sys.executable, "-c", MEET],
        cwd=training.ROOT,
        env={**os.environ, "PYTHONPATH": str(training.ROOT), "OMP_NUM_THREADS": "1", **meeting, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def meet(folder: Path, seconds: float = 60, **environment: str) -> list[tuple[int | None, str]]:
    """Exit status (None: still not there after ``seconds``) and output of each rank."""
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 node0\n127.0.1.1 node1\n")
    ranks = [start_on_node(rank, hosts, **environment) for rank in range(2)]
    ends: list[tuple[int | None, str]] = []
    for rank in ranks:
        try:
            output, _ = rank.communicate(timeout=seconds)
            ends.append((rank.returncode, output))
        except subprocess.TimeoutExpired:
            ends.append((None, ""))
    for rank in ranks:
        rank.kill()
        rank.wait()
    return ends


@pytest.mark.slow
def test_nodes_meet_whose_names_resolve_to_loopback(nodes: None, tmp_path: Path) -> None:
    for status, output in meet(tmp_path):
        assert status == 0 and output.endswith("met\n"), output  # torch may say that it finds no names


@pytest.mark.slow
def test_the_interface_asked_for_is_left_alone(nodes: None, tmp_path: Path) -> None:
    """And loopback, which gloo would take by itself, does not join the nodes: the test above can fail."""
    assert all(status != 0 for status, _ in meet(tmp_path, 20, GLOO_SOCKET_IFNAME="lo"))


def test_the_interface_of_a_route() -> None:
    assert route_interface("127.0.0.1", beyond=False) == "lo"
    assert route_interface("no such host", beyond=False) is None
    assert route_interface("127.0.1.1", beyond=True) != "lo"  # with other nodes, never loopback
