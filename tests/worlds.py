"""Processes of a run played by threads of this one, to test what they do together without starting any."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import attrs
import torch
from torch import Tensor

from kldm.runtime.distributed import _WORLD, Lost, World

T = TypeVar("T")


@attrs.frozen(eq=False, kw_only=True)
class Threaded(World):
    """A world whose processes are threads; one that waits for another that is gone, or for too long, has lost it."""

    board: list[Any]
    barrier: threading.Barrier

    def gather(self, value: T) -> list[T]:
        try:
            self.board[self.rank] = value
            self.barrier.wait(10)
            found = list(self.board)
            self.barrier.wait(10)
        except threading.BrokenBarrierError as error:
            raise Lost from error
        return found

    def sum(self, values: Tensor) -> Tensor:
        return values.copy_(torch.stack(self.gather(values.clone())).sum(0))

    def die(self) -> None:
        """To the others this process is gone."""
        self.barrier.abort()


def together(size: int, function: Callable[["Threaded"], T]) -> list[T]:
    """What the function gives in each of ``size`` processes, by rank."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def play(rank: int) -> T:
        here = Threaded(rank=rank, size=size, neighbours=size, board=board, barrier=barrier)
        _WORLD.set(here)  # of this thread
        try:
            return function(here)
        except BaseException:
            here.die()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(play, range(size)))
