"""The process group's start and end, and how ranks end together when one fails.

Collectives have no timeout of their own, so that a rank may wait for a slow disk as long as it likes if it says so
(:func:`waiting`); who is gone, and a run that hangs, is the :mod:`~cltt.distributed.lifeline`'s to notice.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

from cltt.distributed.identity import RankInfo, rank_info
from cltt.distributed.lifeline import FAILED, Hub, Lifeline, Spoke
from cltt.distributed.network import route_interface
from cltt.errors import DataError, SettingsError

Explain = Callable[[BaseException], "tuple[int, str] | None"]

PATIENCE = 1800.0  # seconds without a step, and without a rank that says it waits, until a run is thought to hang
_NEVER = timedelta(days=3650)
_CONNECT = timedelta(seconds=60)  # to a server that has answered
_CONSEQUENCE = 3.0  # seconds in which the failure behind a broken collective becomes known
_INTERFACE = "GLOO_SOCKET_IFNAME"

_lifeline: Lifeline | None = None


def start(info: RankInfo, *, cuda: bool) -> None:
    """Start the lifeline and the default process group if there are several ranks: gloo, beside it nccl with ``cuda``.

    Needs ``MASTER_ADDR``, an address of rank 0's node, and ``MASTER_PORT``; SettingsError if they are missing.
    """
    global _lifeline
    import torch.distributed as dist

    if info.world_size == 1 or dist.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(f"{info.world_size} ranks but {' and '.join(missing)} not set; see slurm/train.sbatch")
    if interface := route_interface(os.environ["MASTER_ADDR"], beyond=_spans_nodes(info)):
        os.environ.setdefault(_INTERFACE, interface)
    store = _meeting_place(info)
    _lifeline = _hub(store, info) if info.is_main else _spoke(store, info)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("default_pg", store),
        rank=info.rank,
        world_size=info.world_size,
        timeout=_NEVER,
    )


def _meeting_place(info: RankInfo) -> Any:
    """The store at MASTER_ADDR, which all ranks reach: rank 0's, or that of torchrun.

    Not by torch's rendezvous, which waits in C++: a rank whose peers are gone would be deaf to every signal.
    """
    import torch.distributed as dist

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = info.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        _wait_for_server(host, port)
    store = dist.TCPStore(host, port, info.world_size, serves, timeout=_CONNECT, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=PATIENCE))
    return store


def _wait_for_server(host: str, port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((host, port), timeout=10).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise DataError(
                    f"nobody answers at MASTER_ADDR={host}, MASTER_PORT={port}, for {PATIENCE:.0f} s ({error}); is "
                    "rank 0 started, and does the address lead to its node?"
                ) from error
        time.sleep(0.1)


def _hub(store: Any, info: RankInfo) -> Lifeline:
    token = secrets.token_hex(8)
    hub = Hub(info.world_size, token, PATIENCE)
    store.set("cltt/lifeline", f"{hub.port} {token}")
    try:
        hub.wait_for_ranks()
    except TimeoutError as error:
        raise DataError(f"{error}; does MASTER_ADDR={os.environ['MASTER_ADDR']} lead to rank 0's node?") from error
    return hub


def _spoke(store: Any, info: RankInfo) -> Lifeline:
    poll(store, ["cltt/lifeline"])
    port, token = store.get("cltt/lifeline").decode().split()
    return Spoke(info.rank, os.environ["MASTER_ADDR"], int(port), token)


def poll(store: Any, keys: list[str]) -> None:
    """Wait for ``keys`` without a limit, in short sleeps: signals are minded between them."""
    pause = 0.005
    while not store.check(keys):
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _spans_nodes(info: RankInfo) -> bool:
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", info.world_size))  # torchrun's
    return on_this_node < info.world_size or int(os.environ.get("SLURM_NNODES", 1)) > 1


def stop() -> None:
    """Wait until all ranks have come here, then leave the process group if there is one."""
    global _lifeline
    import torch.distributed as dist

    if _lifeline is not None:
        _lifeline.close()
        _lifeline = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def ending_together(explain: Explain) -> Iterator[None]:
    """An exception that leaves this block ends all ranks, at once, with its sentence printed once; one rank: raises.

    ``explain`` gives exit status and sentence of an exception, or None for a defect, whose traceback this rank prints.
    """
    try:
        yield
    except BaseException as error:
        if _lifeline is not None:
            _end_all(_lifeline, error, explain)
        raise


def _end_all(line: Lifeline, error: BaseException, explain: Explain) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    explained = explain(error)
    if explained is None:
        if isinstance(error, (RuntimeError, OSError)):  # a collective or the store that broke with another rank's end
            time.sleep(_CONSEQUENCE)  # in which the lifeline ends this process, if so
        traceback.print_exception(error, file=sys.stderr)
        explained = (
            FAILED,
            f"error: {type(error).__name__}: {error}; its traceback stands above or in its rank's output",
        )
    status, sentence = explained
    me = rank_info()
    line.fail(status, f"{sentence} (rank {me.rank} of {me.world_size}, on {socket.gethostname()})" if sentence else "")


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """While this rank waits for something it knows of (a copy, a slow disk); threads may come here too."""
    with contextlib.nullcontext() if _lifeline is None else _lifeline.waiting():
        yield


def made_progress() -> None:
    """A step was made: the run does not hang."""
    if _lifeline is not None:
        _lifeline.made_progress()
