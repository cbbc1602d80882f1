"""Processes of a run played by threads of this one, to test what they do together without starting any."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs

from kldm.distributed import _WORLD, World

T = TypeVar("T")


@attrs.frozen(eq=False, kw_only=True)
class Threaded(World):
    """A world whose processes are threads; a process that waits alone fails after some seconds."""

    board: list[Any]
    barrier: threading.Barrier

    def gather(self, value: T) -> list[T]:
        self.board[self.rank] = value
        self.barrier.wait(10)
        found = list(self.board)
        self.barrier.wait(10)
        return found


def together(size: int, function: Callable[[World], T]) -> list[T]:
    """What the function gives in each of ``size`` processes, by rank."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def play(rank: int) -> T:
        here = Threaded(rank=rank, size=size, neighbours=size, board=board, barrier=barrier)
        _WORLD.set(here)  # of this thread
        return function(here)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(play, range(size)))
