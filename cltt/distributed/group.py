"""Start and end of the process group, and the end of all ranks when one fails."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn

from cltt.distributed.failures import FAILED, FailureMonitor, leave_now, lost_ranks
from cltt.distributed.identity import RankInfo, rank_info, said_by
from cltt.distributed.network import route_interface
from cltt.errors import DataError, SettingsError
from cltt.threads import Call

Explain = Callable[[BaseException], "tuple[int, str] | None"]

TIMEOUT = 1800.0  # seconds that a rank waits for others at the start; a collective waits io_patience seconds longer
TELL_AFTER = 10.0  # seconds of waiting at the start after which a line names the missing ranks
TEAR_DOWN = 60.0  # seconds that closing the process group may take
_CONNECT = timedelta(seconds=60)  # timeout of a connection to a server that has answered before
_INTERFACE = "GLOO_SOCKET_IFNAME"

_monitor: FailureMonitor | None = None


def start(info: RankInfo, *, cuda: bool, io_patience: float = 0.0) -> None:
    """Start the default process group if there are several ranks: gloo, with ``cuda`` also nccl.

    It needs ``MASTER_ADDR``, an address of rank 0's node, and ``MASTER_PORT``. A collective fails after TIMEOUT +
    ``io_patience`` seconds, since a rank may retry reads for ``io_patience`` seconds before it joins. For longer work
    there is :mod:`cltt.distributed.decisions`.

    Raises SettingsError if a variable is missing, DataError if a rank does not connect.
    """
    global _monitor
    import torch.distributed as dist

    if info.world_size == 1 or dist.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"{said_by()} make this one of {info.world_size} ranks, but {' and '.join(missing)} not set; start several "
            f"ranks with slurm/train.sbatch or torchrun, or `unset {said_by().partition('=')[0]}` to start one process"
        )
    if interface := route_interface(os.environ["MASTER_ADDR"], beyond=_spans_nodes(info)):
        os.environ.setdefault(_INTERFACE, interface)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = info.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun's store
    store = _store(address, info, serves=serves)
    _monitor = FailureMonitor(_store(address, info), address, info, serves=serves)
    _meet(store, info)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    timeout = timedelta(seconds=TIMEOUT + io_patience)
    ranks: dict[str, Any] = {"rank": info.rank, "world_size": info.world_size}
    _interruptible(lambda: dist.init_process_group(backend, store=store, timeout=timeout, **ranks))


def _store(address: tuple[str, int], info: RankInfo, *, serves: bool = False) -> Any:
    """A client of the store at ``address``, or with ``serves`` the store itself.

    torch's own rendezvous waits in C++, where a rank that waits for a missing peer would not react to signals.
    """
    import torch.distributed as dist

    if not serves:
        _wait_for_server(*address)
    store = _interruptible(
        lambda: dist.TCPStore(*address, info.world_size, serves, timeout=_CONNECT, wait_for_workers=False)
    )
    store.set_timeout(timedelta(seconds=TIMEOUT))
    return dist.PrefixStore(f"cltt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _wait_for_server(host: str, port: int) -> None:
    for _ in _until_timeout(lambda: [f"rank 0 (MASTER_ADDR={host}, MASTER_PORT={port})"]):
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout=10).close()
    raise DataError(
        f"rank 0 did not answer at MASTER_ADDR={host}, MASTER_PORT={port} for {TIMEOUT:.0f} s; check that it was "
        "started, and that this is an address of its node"
    )


def _meet(store: Any, info: RankInfo) -> None:
    """Return when all ranks have called this. After TIMEOUT s, DataError names those missing."""
    store.set(f"came/{info.rank}", "")
    if not info.is_main:
        return poll(store, ["all came"])

    def missing() -> list[int]:
        return [rank for rank in range(info.world_size) if not store.check([f"came/{rank}"])]

    for _ in _until_timeout(lambda: [f"rank {rank}" for rank in missing()]):
        if not missing():
            return store.set("all came", "")
    raise DataError(
        f"ranks {missing()} did not connect to rank 0 within {TIMEOUT:.0f} s; check that they were started, and that "
        f"MASTER_ADDR={os.environ['MASTER_ADDR']} is an address of rank 0's node"
    )


def _until_timeout(awaited: Callable[[], list[str]]) -> Iterator[None]:
    """Yield every 50 ms for TIMEOUT seconds; prints once, after TELL_AFTER, what is awaited."""
    began, told = time.monotonic(), False
    while (waited := time.monotonic() - began) < TIMEOUT:
        if waited > TELL_AFTER and not told:
            told = True
            print(f"waiting for {', '.join(awaited())}, because of {said_by()}", file=sys.stderr, flush=True)
        yield
        time.sleep(0.05)


def _interruptible(function: Callable[[], Any]) -> Any:
    """The result of ``function``, which waits in C++: called in a thread, so that signals still work."""
    call = Call(function)
    threading.Thread(target=call.run, daemon=True).start()
    return call.result()


def poll(store: Any, keys: list[str]) -> None:
    """Wait for ``keys`` without a timeout; short sleeps let the process react to signals."""
    pause = 0.005
    while not store.check(keys):
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _spans_nodes(info: RankInfo) -> bool:
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", info.world_size))  # torchrun's
    return on_this_node < info.world_size or int(os.environ.get("SLURM_NNODES", 1)) > 1


def stop(status: int = 0) -> None:
    """Wait until all ranks have called this, then close the process group, if there is one.

    Closing NCCL can block (pytorch/pytorch#141510). After TEAR_DOWN seconds this process therefore ends with
    ``status``: everything is saved by then.
    """
    global _monitor
    import torch.distributed as dist

    if _monitor is None:
        return
    _monitor.wait_for_all()
    timer = _leave_after(TEAR_DOWN, status)
    _monitor.close()
    dist.destroy_process_group()
    timer.cancel()
    _monitor = None


def _leave_after(seconds: float, status: int) -> threading.Timer:
    timer = threading.Timer(seconds, leave_now, [status])
    timer.daemon = True
    timer.start()
    return timer


@contextlib.contextmanager
def ending_together(explain: Explain) -> Iterator[None]:
    """End all ranks if an exception leaves this block; its sentence is printed once.

    Without a process group, the exception is raised. ``explain`` returns an exception's exit status and sentence, or
    None for a defect, whose traceback is printed.
    """
    try:
        yield
    except BaseException as error:
        if _monitor is not None:
            _end_all(_monitor, error, explain)
        raise


def _end_all(monitor: FailureMonitor, error: BaseException, explain: Explain) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _leave_after(TEAR_DOWN, FAILED)  # the store may not answer
    explained = explain(error)
    if explained is None and isinstance(error, (RuntimeError, OSError)):
        explained = _explain_broken_collective(monitor, error)
    if explained is None:
        traceback.print_exception(error, file=sys.stderr)
        explained = FAILED, f"error: {type(error).__name__}: {error}; see the traceback in the output of its rank"
    status, sentence = explained
    me = rank_info()
    where = f" (rank {me.rank} of {me.world_size}, on {socket.gethostname()})" if sentence else ""
    monitor.fail(status, sentence + where)


def _explain_broken_collective(monitor: FailureMonitor, error: BaseException) -> tuple[int, str] | None:
    """Exit status and sentence if another rank's end or a collective's timeout caused ``error``."""
    if silent := monitor.silent_ranks():
        return FAILED, lost_ranks(silent)
    if "timed out" in str(error).lower():
        return (
            FAILED,
            f"error: a collective timed out ({str(error).splitlines()[0][:300]}), so a rank hangs, and all ranks end; "
            "the same command with --resume goes on from the last checkpoint",
        )
    return None
