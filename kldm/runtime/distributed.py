"""The processes that torchrun starts for one run: who they are, and what they tell each other.

Training and generation share their work among them. All else is the work of one, the writer, for whom the others wait.
Nothing else imports ``torch.distributed``. Without torchrun there is one process, no group is made, and everything
here costs nothing.
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
"""How long a process waits for the others: the writer may evaluate for hours. One that is gone is noticed at once."""

_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process that it starts."""

_joins = itertools.count()


class Lost(KldmError):
    """Another process of the run is gone, so that nothing can be done together any more."""

    def __init__(self) -> None:
        super().__init__("a process of the run was lost", remedy="run the same command again to resume")


@attrs.frozen(eq=False)
class World:
    """The processes of a run, seen from one of them; the default is a process on its own.

    Every method is for all processes together: each must come to it, in the same order. They raise ``Lost`` where
    another process is gone.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        neighbours: how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    neighbours: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this is the process that evaluates, writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank; values are pickled."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        with lost_peers():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # filled

    def by_writer(self, work: Callable[[], T]) -> T:
        """The result of what the writer alone does, for everyone; the others wait, however long it takes.

        If the work raises, the writer raises, and the others are ``Lost`` as soon as its process has ended.
        """
        return self.gather(work() if self.is_writer else None)[0]  # type: ignore[return-value]  # the writer's

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in the place of the values; the same to the last bit for everyone."""
        if self.size > 1:
            with lost_peers():
                dist.all_reduce(values)
        return values

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """For what all do, and what leaves a file or finds a mistake: the others begin when the writer is done."""
        if not self.is_writer:
            self.gather(None)
        yield
        if self.is_writer:
            self.gather(None)


_WORLD: ContextVar[World] = ContextVar("world", default=World())  # noqa: B039 (frozen)


def world() -> World:
    """The processes that this one works with now."""
    return _WORLD.get()


@contextmanager
def lost_peers() -> Iterator[None]:
    """What torch raises where another process is gone, as ``Lost``."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no type of their own, but begin with the path of a file of gloo's.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Lost from error
        raise


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """The processes that torchrun started as the ``world``, as long as this lasts.

    Each gets a device of its own: of ``cuda`` the GPU of its LOCAL_RANK. Where one of them fails, it says why; of the
    others, which are ``Lost`` then, the writer alone says so.

    Args:
        device: what the user asks for.

    Raises:
        KldmError: the GPUs are too few or a single one was asked for; or the processes cannot be connected.
    """
    if not all(name in os.environ for name in _ENVIRONMENT):
        yield device
        return
    rank, size, local, neighbours = (int(os.environ[name]) for name in _ENVIRONMENT[:4])
    own = _own(device, local, neighbours)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    with _connecting():
        # A prefix of its own for each group that this process is ever part of: keys stay in the store.
        store = PrefixStore(f"kldm-{next(_joins)}", next(rendezvous("env://", rank, size))[0])
        store.set_timeout(PATIENCE)
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    here = World(rank, size, neighbours)
    if not here.is_writer:
        logging.getLogger("kldm").setLevel(logging.ERROR)  # one process says it
    token = _WORLD.set(here)
    try:
        yield own
        with suppress(RuntimeError):  # where others, done as well, have gone already
            dist.destroy_process_group()
    except Lost as error:
        if here.is_writer:
            raise
        raise SystemExit(1) from error
    finally:
        _WORLD.reset(token)


@contextmanager
def _connecting() -> Iterator[None]:
    """What torch raises where the processes do not find each other, or a backend is not there, as ``KldmError``."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        problem = f"the processes that torchrun started cannot be connected ({reason})"
        remedy = "if it is for the network, name its interface in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        raise KldmError(problem, remedy=remedy) from error


def _own(device: torch.device, local: int, neighbours: int) -> torch.device:
    """The device of the process ``local`` of those on this machine."""
    if device.type != "cuda":
        return device
    if str(device) != "cuda":
        raise KldmError("every process takes a GPU of its own", place=f"--device {device}", remedy="say cuda or cpu")
    if (gpus := torch.cuda.device_count()) < neighbours:
        problem = f"torchrun started {neighbours} processes on a machine with {gpus} GPUs"
        raise KldmError(problem, remedy=f"say {f'--nproc-per-node {gpus} or ' if gpus else ''}--device cpu")
    return torch.device("cuda", local)
