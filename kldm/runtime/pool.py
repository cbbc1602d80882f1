"""One function on many structures: in processes or on a cluster, in order, within a time limit, losing nothing."""

import ctypes
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import attrs

from kldm.errors import KldmError

T = TypeVar("T")
R = TypeVar("R")

LARGEST_CHUNK = 16
"""Items of one task: enough to amortise its dispatch (a millisecond), few enough to see progress."""

AGAIN = 1.0
"""Seconds after which a function that swallowed the end of its time is told again."""


@attrs.frozen
class Failure:
    """An item without a result, and why: the time limit or the type of an exception, so that reasons can be counted."""

    reason: str


def check_work(workers: int, time_limit: float | None) -> None:
    """Raises ``KldmError`` for numbers that ``each`` can do nothing with."""
    if workers < 1 and workers != -1:
        raise KldmError(f"must be a number of processes, or -1 for all cores, got {workers}", place="workers")
    if time_limit is not None and not 0 < time_limit <= threading.TIMEOUT_MAX:
        raise KldmError(f"must be a positive number of seconds, got {time_limit}", place="time_limit")


def parallel_map(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int = 1,
    time_limit: float | None = None,
    description: str,
    unit: str = "structure",
) -> Iterator[R | Failure]:
    """``function(item)`` of every item, in their order, whatever the number of workers.

    An item that raises, runs longer than ``time_limit``, or whose value cannot be sent between processes is a
    ``Failure``; the others are not touched by it. One worker means this very process. Several are joblib's (loky
    processes with one BLAS thread each), unless a surrounding ``joblib.parallel_config`` names a backend, such as
    dask: then that one does the work, also for one worker.

    Args:
        function: of a module, so that other processes can import it; without side effects.
        workers: processes; -1: as many as there are CPU cores.
        time_limit: seconds of wall time per item. It interrupts Python code; a single call into compiled code is
            interrupted when it returns.
        description: of the progress bar, which appears after two seconds.
        unit: what an item is called there.
    """
    from tqdm import tqdm

    jobs = _jobs(workers, len(items)) if items else 0
    results: Iterable[R | Failure]
    if jobs == 0:
        results = (_outcome(function, item, time_limit) for item in items)
    else:
        results = _parallel(function, items, jobs, time_limit)
    yield from tqdm(results, total=len(items), desc=description, unit=unit, delay=2)


def _jobs(workers: int, items: int) -> int:
    """How many joblib workers share the items; 0: none, the work is done here."""
    from joblib import effective_n_jobs

    jobs = int(effective_n_jobs(None if workers == 1 else workers))  # None: what the surrounding context says
    return 0 if jobs == 1 and not _configured() else min(jobs, items)


def _configured() -> bool:
    """Whether a surrounding ``joblib.parallel_config`` names a backend; else joblib makes a new one each time."""
    from joblib.parallel import get_active_backend

    return get_active_backend()[0] is get_active_backend()[0]


def _parallel(
    function: Callable[[T], R], items: Sequence[T], jobs: int, time_limit: float | None
) -> Iterator[R | Failure]:
    from contextlib import nullcontext

    from joblib import Parallel, delayed, parallel_config
    from joblib.parallel import get_active_backend

    size = max(1, min(LARGEST_CHUNK, len(items) // (4 * jobs)))
    tasks = (
        delayed(_chunk)(function, [_packed(item) for item in items[start : start + size]], time_limit)
        for start in range(0, len(items), size)
    )
    # Only loky can limit the threads of its processes; a backend chosen outside has its own settings.
    with nullcontext() if _configured() else parallel_config(backend="loky", inner_max_num_threads=1):
        # A few backends hand over all results at the end.
        how = "generator" if get_active_backend()[0].supports_return_generator else "list"
        pool = Parallel(n_jobs=jobs, prefer="processes", return_as=how, batch_size=1)
    chunks: Iterable[list[bytes | Failure]] = pool(tasks)
    for chunk in chunks:
        yield from (cast("R | Failure", _unpacked(packed)) for packed in chunk)


def _chunk(
    function: Callable[[Any], Any], items: Sequence[bytes | Failure], time_limit: float | None
) -> list[bytes | Failure]:
    """One task of the pool. Items and values travel packed one by one, so that a bad one spoils no other."""
    return [_packed(_outcome(function, _unpacked(packed), time_limit)) for packed in items]


def _packed(value: object) -> bytes | Failure:
    if isinstance(value, Failure):
        return value
    try:
        return pickle.dumps(value)
    except Exception as error:  # objects refuse to be pickled in many ways
        return Failure(type(error).__name__)


def _unpacked(packed: bytes | Failure) -> Any:
    if isinstance(packed, Failure):
        return packed
    try:
        return pickle.loads(packed)
    except Exception as error:  # or to come back
        return Failure(type(error).__name__)


def _outcome(function: Callable[[T], R], item: T, time_limit: float | None) -> R | Failure:
    if isinstance(item, Failure):
        return item
    try:
        return function(item) if time_limit is None else _within(time_limit, function, item)
    except _OutOfTimeError:
        return Failure(f"time limit of {time_limit:g} s")
    except Exception as error:  # whatever one item raises concerns that item alone
        return Failure(type(error).__name__)


class _OutOfTimeError(BaseException):
    """Not an ``Exception``, so that ``except Exception`` in a library does not swallow it."""


def _within(seconds: float, function: Callable[[T], R], item: T) -> R:
    """``function(item)``, or ``_OutOfTimeError`` in this thread, be it the main one or a worker's of dask."""
    alarm = _Alarm()
    try:
        try:
            alarm.on(seconds)
            return function(item)
        finally:
            alarm.off()
    except _OutOfTimeError:
        alarm.off()  # again, as it may have come just before the alarm was off
        raise


class _Alarm:
    """Raises ``_OutOfTimeError`` in the thread that made it, from a second thread, until it is turned off.

    CPython keeps one pending exception per thread. ``off`` stops the second thread under the lock under which it
    raises and then takes back what is pending, so that nothing is raised after it.
    """

    def __init__(self) -> None:
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._lock, self._wake = threading.RLock(), threading.Event()
        self._ended = self._raised = False

    def on(self, seconds: float) -> None:
        threading.Thread(target=self._watch, args=(seconds,), daemon=True).start()

    def off(self) -> None:
        with self._lock:
            self._ended = True
            if self._raised:  # on Python 3.11 the call itself slows the thread down and stops profilers for good
                _raise_in(self._thread, None)
        self._wake.set()

    def _watch(self, seconds: float) -> None:
        wait = seconds
        while not self._wake.wait(wait):
            with self._lock:
                if self._ended:
                    return
                self._raised = True
                _raise_in(self._thread, ctypes.py_object(_OutOfTimeError))
            wait = AGAIN


def _raise_in(thread: ctypes.c_ulong, exception: "ctypes.py_object[type[BaseException]] | None") -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, exception)
