"""The process group's start and end, and how ranks end together when one fails."""

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

from cltt.distributed.failures import FAILED, FailureWatch, leave_now, without_a_word
from cltt.distributed.identity import RankInfo, rank_info, said_by
from cltt.distributed.network import route_interface
from cltt.errors import DataError, SettingsError

Explain = Callable[[BaseException], "tuple[int, str] | None"]

TIMEOUT = 1800.0  # seconds that a rank waits for others at the start, and in a collective beside its retries of reads
TELL_AFTER = 10.0  # seconds of waiting at the start until a line says for whom
TEAR_DOWN = 60.0  # seconds that the end may take once all is saved
_CONNECT = timedelta(seconds=60)  # to a server that has answered
_INTERFACE = "GLOO_SOCKET_IFNAME"

_watch: FailureWatch | None = None


def start(info: RankInfo, *, cuda: bool, io_patience: float = 0.0) -> None:
    """Start the default process group if there are several ranks: gloo, beside it nccl with ``cuda``.

    Needs ``MASTER_ADDR``, an address of rank 0's node, and ``MASTER_PORT``; SettingsError if they are missing.
    DataError if ranks do not come. A collective fails after TIMEOUT + ``io_patience`` seconds: a rank may retry reads
    for so long before it comes to one. What may take longer waits in the store (:mod:`~cltt.distributed.decisions`).
    """
    global _watch
    import torch.distributed as dist

    if info.world_size == 1 or dist.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"{said_by()} make this one of {info.world_size} ranks, but {' and '.join(missing)} not set; start ranks "
            f"by slurm/train.sbatch or torchrun, and one process alone after `unset {said_by().partition('=')[0]}`"
        )
    if interface := route_interface(os.environ["MASTER_ADDR"], beyond=_spans_nodes(info)):
        os.environ.setdefault(_INTERFACE, interface)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = info.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun's store
    store = _store(address, info, serves=serves)
    _watch = FailureWatch(_store(address, info), address, info, serves=serves)
    _meet(store, info)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    timeout = timedelta(seconds=TIMEOUT + io_patience)
    _heeding_signals(
        lambda: dist.init_process_group(
            backend, store=store, rank=info.rank, world_size=info.world_size, timeout=timeout
        )
    )


def _store(address: tuple[str, int], info: RankInfo, *, serves: bool = False) -> Any:
    """A client of the store at ``address``, or the store itself.

    Not by torch's rendezvous, which waits in C++: a rank whose peers are gone would be deaf to every signal.
    """
    import torch.distributed as dist

    if not serves:
        _wait_for_server(*address)
    store = dist.TCPStore(*address, info.world_size, serves, timeout=_CONNECT, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=TIMEOUT))
    return dist.PrefixStore(f"cltt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _wait_for_server(host: str, port: int) -> None:
    for _ in _until_timeout(lambda: [f"rank 0 (MASTER_ADDR={host}, MASTER_PORT={port})"]):
        with contextlib.suppress(OSError):
            return socket.create_connection((host, port), timeout=10).close()
    raise DataError(
        f"nobody answers at MASTER_ADDR={host}, MASTER_PORT={port}, for {TIMEOUT:.0f} s; is rank 0 started, and does "
        "the address lead to its node?"
    )


def _meet(store: Any, info: RankInfo) -> None:
    """Return when every rank has come here."""
    store.set(f"came/{info.rank}", "")
    if not info.is_main:
        return poll(store, ["all came"])

    def missing() -> list[int]:
        return [rank for rank in range(info.world_size) if not store.check([f"came/{rank}"])]

    for _ in _until_timeout(lambda: [f"rank {rank}" for rank in missing()]):
        if not missing():
            return store.set("all came", "")
    raise DataError(
        f"ranks {missing()} did not connect to rank 0 within {TIMEOUT:.0f} s; "
        f"does MASTER_ADDR={os.environ['MASTER_ADDR']} lead to rank 0's node?"
    )


def _until_timeout(awaited: Callable[[], list[str]]) -> Iterator[None]:
    """Turns of a loop that waits for others, for TIMEOUT seconds; says once who is awaited."""
    began, told = time.monotonic(), False
    while (waited := time.monotonic() - began) < TIMEOUT:
        if waited > TELL_AFTER and not told:
            told = True
            print(f"waiting for {', '.join(awaited())}: {said_by()} ask for it", file=sys.stderr, flush=True)
        yield
        time.sleep(0.05)


def _heeding_signals(call: Callable[[], None]) -> None:
    """Make a call that waits in C++; in this thread signals are heeded meanwhile."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)
    if errors:
        raise errors[0]


def poll(store: Any, keys: list[str]) -> None:
    """Wait for ``keys`` without a limit, in short sleeps: signals are heeded between them."""
    pause = 0.005
    while not store.check(keys):
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _spans_nodes(info: RankInfo) -> bool:
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", info.world_size))  # torchrun's
    return on_this_node < info.world_size or int(os.environ.get("SLURM_NNODES", 1)) > 1


def stop(status: int = 0) -> None:
    """Wait until all ranks have come here, then leave the process group if there is one.

    What takes longer than TEAR_DOWN seconds then (NCCL's end can block: pytorch/pytorch#141510) is not waited for: all
    is saved, and this process ends with ``status``.
    """
    global _watch
    import torch.distributed as dist

    if _watch is None:
        return
    _watch.wait_for_all()
    timer = _leave_after(TEAR_DOWN, status)
    _watch.close()
    dist.destroy_process_group()
    timer.cancel()
    _watch = None


def _leave_after(seconds: float, status: int) -> threading.Timer:
    timer = threading.Timer(seconds, leave_now, [status])
    timer.daemon = True
    timer.start()
    return timer


@contextlib.contextmanager
def ending_together(explain: Explain) -> Iterator[None]:
    """An exception that leaves this block ends all ranks, at once, with its sentence printed once; one rank: raises.

    ``explain`` gives exit status and sentence of an exception, or None for a defect, whose traceback this rank prints.
    """
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _end_all(_watch, error, explain)
        raise


def _end_all(watch: FailureWatch, error: BaseException, explain: Explain) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _leave_after(TEAR_DOWN, FAILED)  # the store may not answer
    explained = explain(error)
    if explained is None and isinstance(error, (RuntimeError, OSError)):
        explained = _explain_broken_collective(watch, error)
    if explained is None:
        traceback.print_exception(error, file=sys.stderr)
        where = "its traceback stands above or in its rank's output"
        explained = FAILED, f"error: {type(error).__name__}: {error}; {where}"
    status, sentence = explained
    me = rank_info()
    watch.fail(status, f"{sentence} (rank {me.rank} of {me.world_size}, on {socket.gethostname()})" if sentence else "")


def _explain_broken_collective(watch: FailureWatch, error: BaseException) -> tuple[int, str] | None:
    """Exit status and sentence if ``error`` comes from another rank's end, or from waiting for it in vain."""
    if silent := watch.silent_ranks():
        return FAILED, without_a_word(silent)
    if "timed out" in str(error).lower():
        return (
            FAILED,
            f"error: a rank did not come to a collective in time ({str(error).splitlines()[0][:300]}), so the run "
            "hangs: all ranks end here; the same command with --resume goes on from the last checkpoint",
        )
    return None
