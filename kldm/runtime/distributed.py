"""The processes that torchrun starts for one run: who they are, what they tell each other, and how they end together.

Nothing else imports ``torch.distributed``. Without torchrun there is one process, no group is made, and everything
here costs nothing.
"""

import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kldm.errors import KldmError
from kldm.runtime.interruption import Deadline

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a process waits for the others, who may be busy for hours; one that is gone is noticed at once."""

LAST_WORDS = 25.0
"""Seconds after a signal that a process has for leaving in order. torchrun kills it after 30."""

_ENDED = "ended by a signal, as the processes of a run are when one of them is lost"

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

    Every method but ``claims`` is for all processes together: each must come to it, in the same order. They raise
    ``Lost`` where another process is gone.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        neighbours: how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    neighbours: int = 1
    _store: Store | None = attrs.field(default=None, repr=False)

    @property
    def is_writer(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank; values are pickled."""
        if self.size == 1:
            return [value]
        found: list[T | None] = [None] * self.size
        with lost_peers():
            dist.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # filled

    def writers(self, value: T) -> T:
        """The writer's value, for everyone."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """For the others to come here too."""
        self.gather(None)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in the place of the values; the same to the last bit for everyone."""
        if self.size > 1:
            with lost_peers():
                dist.all_reduce(values)
        return values

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """For what leaves a file that the others shall read: they begin when the writer is done."""
        if not self.is_writer:
            self.wait()
        yield
        if self.is_writer:
            self.wait()

    def claims(self, task: str) -> bool:
        """Whether a task of which one of the processes left is enough falls to this one: to the first that asks."""
        if self._store is None:
            return True
        try:
            return bool(self._store.add(task, 1) == 1)
        except RuntimeError:  # the store was kept by rank 0, which is gone
            return self.rank == 1


_ALONE = World()
_WORLD: ContextVar[World] = ContextVar("world", default=_ALONE)


def world() -> World:
    """The processes that this one works with now."""
    return _WORLD.get()


@contextmanager
def alone() -> Iterator[None]:
    """This process on its own, for work of which the others have a share of their own."""
    token = _WORLD.set(_ALONE)
    try:
        yield
    finally:
        _WORLD.reset(token)


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

    Each gets a device of its own: of ``cuda`` the GPU of its LOCAL_RANK. If one fails, one of them says why, and the
    others end silently, with exit status 1.

    Args:
        device: what the user asks for.

    Raises:
        KldmError: the GPUs are too few or a single one was asked for; the processes cannot be connected; or a signal
            ended the run.
    """
    if not all(name in os.environ for name in _ENVIRONMENT):
        yield device
        return
    rank, size, local, neighbours = (int(os.environ[name]) for name in _ENVIRONMENT[:4])
    with _connecting():
        common: Store = next(rendezvous("env://", rank, size))[0]
    # A prefix of its own for each group that this process is ever part of: keys stay in the store.
    store = PrefixStore(f"kldm-{next(_joins)}", common)
    store.set_timeout(PATIENCE)
    here = World(rank, size, neighbours, PrefixStore("claims", store))
    if not here.is_writer:
        logging.getLogger("kldm").setLevel(logging.ERROR)  # one process says it
    before = {number: signal.signal(number, _ended) for number in (signal.SIGTERM, signal.SIGINT)}
    token = _WORLD.set(here)
    try:
        with Deadline(LAST_WORDS, lambda: _last_words(here)):
            own = _own(device, local, neighbours)
            if own.type == "cuda":
                torch.cuda.set_device(own)
            backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
            with _connecting():
                dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
            yield own
            with suppress(RuntimeError):  # where others, done as well, have gone already
                dist.destroy_process_group()
    except (Exception, _Ended) as error:
        # The group is left as it is: NCCL might wait for members that are gone.
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # torchrun ends all as soon as one has ended; there is more to say
        if not here.claims("message"):
            raise SystemExit(1) from error
        if not here.is_writer:
            sys.stderr.write("\n")  # after a progress bar of the writer's
        if isinstance(error, _Ended):
            raise KldmError(_ENDED, remedy="run the same command again to resume") from error
        raise
    else:
        for number, handler in before.items():
            signal.signal(number, handler)
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


class _Ended(BaseException):
    """A signal came. Not an ``Exception``, lest the failure of a single structure be made of it."""


def _ended(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _last_words(here: World) -> None:
    """For the case that the main thread hangs in a computation or in waiting for a process that is gone."""
    if here.claims("message"):
        sys.stderr.write(f"\nError: {_ENDED}; run the same command again to resume\n")
        sys.stderr.flush()


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
