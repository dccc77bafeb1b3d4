"""One rank on a lifeline, without torch.

python -m tests.helpers.lifeline_rank RANK SIZE FOLDER SCENARIO PATIENCE
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from cltt.distributed.lifeline import Hub, Lifeline, Spoke

LONG = 1000.0  # seconds: only the lifeline ends such a sleep


def connect(rank: int, size: int, folder: Path, patience: float) -> Lifeline:
    """The port lies in a file; 0 ranks wait for the others."""
    place = folder / "port"
    if rank == 0:
        hub = Hub(size, "token", patience)
        (folder / "port.tmp").write_text(str(hub.port))
        (folder / "port.tmp").rename(place)
        hub.wait_for_ranks()
        return hub
    while not place.exists():
        time.sleep(0.01)
    return Spoke(rank, "127.0.0.1", int(place.read_text()), "token")


def all_done(line: Lifeline, rank: int) -> None:
    """They arrive at different times; none may leave before the last."""
    time.sleep(0.3 * rank)
    print(f"arrived {time.time()}")
    line.close()
    print(f"left {time.time()}")


def rank_1_fails(line: Lifeline, rank: int) -> None:
    if rank == 1:
        time.sleep(0.2)
        line.fail(7, "the sentence")
    time.sleep(LONG)


def rank_0_fails(line: Lifeline, rank: int) -> None:
    if rank == 0:
        time.sleep(0.2)
        line.fail(7, "the sentence")
    time.sleep(LONG)


def all_fail(line: Lifeline, rank: int) -> None:
    line.fail(7, "the sentence")


def rank_0_is_killed(line: Lifeline, rank: int) -> None:
    _killed(rank, 0)


def rank_1_is_killed(line: Lifeline, rank: int) -> None:
    _killed(rank, 1)


def _killed(rank: int, victim: int) -> None:
    import os
    import signal

    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(LONG)


def all_hang(line: Lifeline, rank: int) -> None:
    time.sleep(LONG)


def rank_1_says_it_waits(line: Lifeline, rank: int) -> None:
    """Twice as long as the patience of the test, and two waits at once."""
    if rank == 1:
        with line.waiting():
            with line.waiting():
                time.sleep(1)
            time.sleep(1)
    line.close()


def steps_are_made(line: Lifeline, rank: int) -> None:
    for _ in range(10):
        time.sleep(0.2)
        line.made_progress()
    line.close()


def strangers_call(line: Lifeline, rank: int) -> None:
    """Who does not know the token is hung up on, and changes nothing."""
    if rank == 0:
        assert isinstance(line, Hub)
        for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"token": "wrong", "rank": 1}\n', b'{"failed": 3}\n', b"[1]\n"):
            with socket.create_connection(("127.0.0.1", line.port)) as stranger:
                stranger.sendall(text)
                stranger.settimeout(5)
                assert not text.endswith(b"\n") or stranger.recv(10) == b""
    line.close()


def rank_1_never_comes(line: Lifeline, rank: int) -> None:
    raise AssertionError("rank 0 waits for it")


def main() -> None:
    rank, size, folder, scenario, patience = sys.argv[1:]
    if scenario == "rank_1_never_comes" and rank == "1":
        return
    line = connect(int(rank), int(size), Path(folder), float(patience))
    globals()[scenario](line, int(rank))


if __name__ == "__main__":
    main()
