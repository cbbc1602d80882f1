"""The processes that torchrun starts for one run, and the communication between them.

Training and generation are shared among the processes. One of them, the writer, does all other work while the others
wait. Only this module imports ``torch.distributed``. Without torchrun there is a single process,
no group is created, and nothing here costs time.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from kldm.errors import KldmError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a process waits for the others: the writer may evaluate for hours. A lost process is noticed at once."""

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets for each process that it starts."""

_joins = itertools.count()


class Lost(KldmError):
    """Another process of the run has ended, so that the processes can no longer work together."""

    def __init__(self) -> None:
        super().__init__("a process of the run was lost", remedy="run the same command again to resume")


@attrs.frozen(eq=False)
class World:
    """The processes of a run, seen from one of them; the default is a single process.

    All processes must call every method, in the same order. The methods raise ``Lost`` if another process has ended.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        neighbours: number of processes on this machine, this one included.
    """

    rank: int = 0
    size: int = 1
    neighbours: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this is the process that evaluates, writes files and prints."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; they are pickled."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with lost_peers():
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # filled

    def by_writer(self, work: Callable[[], T]) -> T:
        """Let the writer alone do some work, and return its result in all processes; the others wait for it.

        If the work raises, the writer raises its error, and the others raise ``Lost`` once the writer's process has
        ended.
        """
        return self.gather(work() if self.is_writer else None)[0]  # type: ignore[return-value]  # the writer's

    def sum(self, values: Tensor) -> Tensor:
        """Replace the values by their sum over all processes, which is bitwise the same in each, and return it."""
        if self.size > 1:
            with lost_peers():
                dist.all_reduce(values)
        return values

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """Run the block in the writer, then in the others; for work that writes files or finds errors of the user."""
        if not self.is_writer:
            self.gather(None)
        yield
        if self.is_writer:
            self.gather(None)


_WORLD: ContextVar[World] = ContextVar("world", default=World())  # noqa: B039 (frozen)


def world() -> World:
    """The processes that this one works with at present."""
    return _WORLD.get()


@contextmanager
def lost_peers() -> Iterator[None]:
    """Raises ``Lost`` in place of the errors that torch raises if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        # Errors of gloo have no type of their own, but they name one of its source files.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Lost from error
        raise


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Connect the processes that torchrun started, which are the ``world`` within this block, and yield the device.

    With ``cuda`` each process gets the GPU of its LOCAL_RANK. A process that fails reports its error; of the others,
    which then raise ``Lost``, only the writer reports that.

    Args:
        device: the device that the user asks for.

    Raises:
        KldmError: there are too few GPUs, or a single one was asked for, or the processes cannot be connected.
    """
    if not all(name in os.environ for name in _ENVIRONMENT):
        yield device
        return
    rank, size, local, neighbours = (int(os.environ[name]) for name in _ENVIRONMENT[:4])
    own = _own(device, local, neighbours)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    with _connecting():
        # Keys stay in the store, so each group that this process joins gets a prefix of its own.
        store = PrefixStore(f"kldm-{next(_joins)}", next(rendezvous("env://", rank, size))[0])
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    here = World(rank, size, neighbours)
    if not here.is_writer:
        logging.getLogger("kldm").setLevel(logging.ERROR)  # only the writer logs
    token = _WORLD.set(here)
    try:
        yield own
        with suppress(RuntimeError):  # the others may have ended already
            dist.destroy_process_group()
    except Lost as error:
        if here.is_writer:
            raise
        raise SystemExit(1) from error
    finally:
        _WORLD.reset(token)


@contextmanager
def _connecting() -> Iterator[None]:
    """Raises ``KldmError`` in place of the errors that torch raises if the processes cannot be connected."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"the processes that torchrun started cannot be connected ({reason})"
        remedy = "if the network is the reason, name its interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        raise KldmError(problem, remedy=remedy) from error


def _own(device: torch.device, local: int, neighbours: int) -> torch.device:
    """The device of process number ``local`` on this machine."""
    if device.type != "cuda":
        return device
    if str(device) != "cuda":
        raise KldmError("every process takes a GPU of its own", place=f"--device {device}", remedy="say cuda or cpu")
    if (gpus := torch.cuda.device_count()) < neighbours:
        problem = f"torchrun started {neighbours} processes on a machine with {gpus} GPUs"
        raise KldmError(problem, remedy=f"say {f'--nproc-per-node {gpus} or ' if gpus else ''}--device cpu")
    return torch.device("cuda", local)
