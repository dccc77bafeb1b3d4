"""Who this process is among the ranks, their start and end, and what they tell each other.

Three things live here, each in one place:

- who a rank is, from torchrun's variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``) or, under plain ``srun``, from
  Slurm's (``SLURM_PROCID``, ``SLURM_NTASKS``, ``SLURM_LOCALID``);
- what is decided once and heard by all: :func:`from_main`, :func:`wait_for_all`, :func:`agreed`. Waiting there has no
  limit, and Ctrl-C gets through to it: shards may be built or copied for hours;
- how ranks end together when one fails: :func:`ending_together`, over a :mod:`cltt.lifeline`. Collectives have no
  timeout of their own, so that a rank may wait for a slow disk as long as it likes if it says so (:func:`waiting`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import secrets
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cltt.errors import CLTTError, DataError, SettingsError
from cltt.lifeline import FAILED, Hub, Lifeline, Spoke

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Explain = Callable[[BaseException], "tuple[int, str] | None"]

PATIENCE = 1800.0  # seconds without a step, and without a rank that says it waits, until a run is thought to hang
_NEVER = timedelta(days=3650)
_CONSEQUENCE = 3.0  # seconds in which the failure behind a broken collective becomes known
_SOURCES = (("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_ELSEWHERE = "192.0.2.1"  # an address of no one (RFC 5737)

_lifeline: Lifeline | None = None
_turns = itertools.count()  # of what is decided once: the same on all ranks, as they come to each together


# ---- who a rank is


@dataclass(frozen=True)
class RankInfo:
    """Who this process is: ``0 <= rank < world_size``; ``local_rank`` counts within the node."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank_info(environ: Mapping[str, str] | None = None) -> RankInfo:
    """Who this process is, from the environment; a lone process is rank 0 of 1."""
    environ = os.environ if environ is None else environ
    for names in _SOURCES:
        if all(name in environ for name in names):
            # An interactive `salloc` shell or a batch script has SLURM_NTASKS but is no task: only srun sets STEP_ID.
            if names[0].startswith("SLURM") and "SLURM_STEP_ID" not in environ:
                continue
            rank, world_size, local_rank = (int(environ[name]) for name in names)
            if not 0 <= rank < world_size:
                raise SettingsError(f"{names[0]}={rank} does not lie in 0..{names[1]}-1 = {world_size - 1}")
            return RankInfo(rank, world_size, local_rank)
    return RankInfo()


def world() -> RankInfo:
    """Rank and size of the process group that runs now (rank 0 of 1 without one)."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return RankInfo()
    return RankInfo(dist.get_rank(), dist.get_world_size(), rank_info().local_rank)


def pick_device(name: str, info: RankInfo) -> torch.device:
    """The device of a rank: ``auto`` takes CUDA, else Apple's MPS, else the CPU; on CUDA one GPU a local rank.

    Raises SettingsError if the device asked for is not there, or if a node has fewer GPUs than ranks.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(kind for kind in there if there[kind]) if name == "auto" else name
    if not there.get(kind, False):
        found = ", ".join(kind for kind in there if there[kind])
        raise SettingsError(f"device {name} asked for, but torch finds only: {found}; try --device auto")
    if kind == "mps" and info.world_size > 1:
        raise SettingsError("several ranks cannot share Apple's MPS device; start one process, or use --device cpu")
    if kind != "cuda":
        return torch.device(kind)
    if info.local_rank >= torch.cuda.device_count():
        raise SettingsError(
            f"local rank {info.local_rank} has no GPU of its own: torch finds {torch.cuda.device_count()} on this "
            "node; start one process a GPU"
        )
    torch.cuda.set_device(info.local_rank)
    return torch.device("cuda", info.local_rank)


# ---- start and end


def start(info: RankInfo, *, cuda: bool) -> None:
    """Start the lifeline and the default process group if there are several ranks: gloo, beside it nccl with ``cuda``.

    Needs ``MASTER_ADDR``, an address of rank 0's node, and ``MASTER_PORT``; SettingsError if they are missing.
    """
    global _lifeline
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if info.world_size == 1 or dist.is_initialized():
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(f"{info.world_size} ranks but {' and '.join(missing)} not set; see slurm/train.sbatch")
    if interface := route_interface(os.environ["MASTER_ADDR"], beyond=_spans_nodes(info)):
        os.environ.setdefault(_INTERFACE, interface)
    store, _, _ = next(rendezvous("env://", info.rank, info.world_size, timeout=timedelta(seconds=PATIENCE)))
    _lifeline = _hub(store, info) if info.is_main else _spoke(store, info)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("default_pg", store),
        rank=info.rank,
        world_size=info.world_size,
        timeout=_NEVER,
    )


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
    port, token = store.get("cltt/lifeline").decode().split()
    return Spoke(info.rank, os.environ["MASTER_ADDR"], int(port), token)


def _spans_nodes(info: RankInfo) -> bool:
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", info.world_size))  # torchrun's
    return on_this_node < info.world_size or int(os.environ.get("SLURM_NNODES", 1)) > 1


def route_interface(address: str, *, beyond: bool) -> str | None:
    """The network interface through which this node reaches ``address``, or that holds it; None if it cannot be told.

    Gloo would bind to what the host's own name resolves to, which on many nodes is 127.0.1.1. ``beyond``: there are
    other nodes, so if ``address`` leads to this node alone, the interface of the default route. Linux and IPv4 only.
    """
    source = _source_address(address)
    if beyond and source is not None and source.startswith("127."):
        source = _source_address(_ELSEWHERE)
    for _, name in socket.if_nameindex():
        if source is not None and _address_of(name) == source:
            return name
    return None


def _source_address(destination: str) -> str | None:
    """This node's own address on the way to ``destination``."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))  # sends nothing: the kernel looks up the route
        return str(probe.getsockname()[0])
    return None


def _address_of(interface: str) -> str | None:
    import fcntl

    request = interface.encode()[:15].ljust(256, b"\0")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    return None  # it has none, or this is not Linux


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
    me = world()
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


# ---- decided once, heard by all


def from_main(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0 (picklable), on every rank; its CLTTError, too, is raised on every rank."""
    if world().world_size == 1:
        return make()
    store, key = _store(), f"from_main/{next(_turns)}"
    if world().is_main:
        outcome = _outcome(make)
        store.set(key, pickle.dumps(outcome))
    else:
        _poll(store, [key])
        outcome = pickle.loads(store.get(key))
    value, error = outcome
    if error is not None:
        raise error
    return value


def _outcome(make: Callable[[], Any]) -> tuple[Any, CLTTError | None]:
    try:
        with waiting():
            return make(), None
    except CLTTError as error:
        return None, error


def wait_for_all() -> None:
    """Return when every rank has come here, however long that takes."""
    me = world()
    if me.world_size == 1:
        return
    store, turn = _store(), next(_turns)
    store.set(f"wait/{turn}/{me.rank}", "")
    _poll(store, [f"wait/{turn}/{rank}" for rank in range(me.world_size)])


def agreed(value: T, what: str) -> T:
    """``value`` (picklable) if it is the same on every rank; else DataError on all, with what each has of ``what``."""
    values = all_gather_objects(value)
    if any(other != values[0] for other in values):
        each = ", ".join(f"rank {rank} {other}" for rank, other in enumerate(values))
        raise DataError(f"the ranks do not agree on {what}: {each}; do all nodes see the same files and devices?")
    return value


def _store() -> Any:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    return dist.PrefixStore("cltt", _get_default_store())


def _poll(store: Any, keys: list[str]) -> None:
    """Wait for ``keys`` without a limit, in short sleeps: signals are minded between them."""
    pause = 0.005
    while not store.check(keys):
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


# ---- collectives


def all_gather_rows(x: torch.Tensor) -> torch.Tensor:
    """Concatenate ``x`` [n, ...] of all ranks in rank order -> [world_size * n, ...]; no gradient; n equal on all."""
    import torch
    import torch.distributed as dist

    size = world().world_size
    if size == 1:
        return x
    x = x.contiguous()
    if x.is_cuda:
        rows = x.new_empty(size * len(x), *x.shape[1:])
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name until torch 2.13
        gather(rows, x)
        return rows
    parts = [torch.empty_like(x) for _ in range(size)]  # gloo knows lists alone
    dist.all_gather(parts, x)
    return torch.cat(parts)


def all_gather_integers(values: Sequence[int]) -> list[tuple[int, ...]]:
    """The integers of every rank, in rank order; the same number of them on all ranks.

    They go through gloo where it runs beside nccl, so that the device need not be waited for.
    """
    import torch
    import torch.distributed as dist

    if world().world_size == 1:
        return [tuple(values)]
    device = "cpu" if "cpu" in dist.get_backend_config() else "cuda"
    row = torch.tensor([list(values)], dtype=torch.int64, device=device)
    return [tuple(numbers) for numbers in all_gather_rows(row).tolist()]


def all_gather_objects(value: Any) -> list[Any]:
    """The picklable ``value`` of every rank, in rank order."""
    import torch.distributed as dist

    size = world().world_size
    if size == 1:
        return [value]
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, value)
    return parts


def all_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of ``x`` over all ranks, in place; no gradient."""
    import torch.distributed as dist

    if world().world_size > 1:
        dist.all_reduce(x)
    return x
