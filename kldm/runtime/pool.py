"""Applies a function to many structures, in processes or on a cluster, in order and within a time limit."""

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
"""Largest number of items in a task: enough to amortise its dispatch (a millisecond), few enough to see progress."""

AGAIN = 1.0
"""Seconds after which a function that has caught the exception of the time limit gets it again."""


@attrs.frozen
class Failure:
    """An item without a result. The reason is the time limit or the type of an exception, so that it can be counted."""

    reason: str


def check_work(workers: int, time_limit: float | None) -> None:
    """Raises ``KldmError`` for values that ``parallel_map`` cannot use."""
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
    """``function(item)`` for every item, in the order of the items, whatever the number of workers.

    The result is a ``Failure`` if the function raises, runs longer than ``time_limit``, or returns a value that cannot
    be sent between processes; other items are not affected. One worker is the calling process. Several workers are
    processes of joblib (loky, with one BLAS thread each). If a surrounding ``joblib.parallel_config`` names a backend,
    such as dask, that backend does the work, even for one worker.

    Args:
        function: a function without side effects that other processes can import from its module.
        workers: number of processes; -1 means one for each CPU core.
        time_limit: seconds of wall time per item. It interrupts Python code; a single call into compiled code is
            interrupted only when it returns.
        description: text of the progress bar, which appears after two seconds.
        unit: name of an item in the progress bar.
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
    """Number of joblib workers; 0 if this process does the work itself."""
    from joblib import effective_n_jobs

    jobs = int(effective_n_jobs(None if workers == 1 else workers))  # None: as the surrounding context says
    return 0 if jobs == 1 and not _configured() else min(jobs, items)


def _configured() -> bool:
    """Whether a surrounding ``joblib.parallel_config`` names a backend; otherwise joblib creates one for each call."""
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
    """One task of the pool. Items and values are pickled separately, so that a bad one does not affect the others."""
    return [_packed(_outcome(function, _unpacked(packed), time_limit)) for packed in items]


def _packed(value: object) -> bytes | Failure:
    if isinstance(value, Failure):
        return value
    try:
        return pickle.dumps(value)
    except Exception as error:  # pickling can raise errors of any type
        return Failure(type(error).__name__)


def _unpacked(packed: bytes | Failure) -> Any:
    if isinstance(packed, Failure):
        return packed
    try:
        return pickle.loads(packed)
    except Exception as error:  # and so can unpickling
        return Failure(type(error).__name__)


def _outcome(function: Callable[[T], R], item: T, time_limit: float | None) -> R | Failure:
    if isinstance(item, Failure):
        return item
    try:
        return function(item) if time_limit is None else _within(time_limit, function, item)
    except _OutOfTimeError:
        return Failure(f"time limit of {time_limit:g} s")
    except Exception as error:  # whatever an item raises is the failure of that item only
        return Failure(type(error).__name__)


class _OutOfTimeError(BaseException):
    """Not an ``Exception``, so that ``except Exception`` in a library does not swallow it."""


def _within(seconds: float, function: Callable[[T], R], item: T) -> R:
    """``function(item)``, or ``_OutOfTimeError`` in this thread, which may be a worker thread of dask."""
    alarm = _Alarm()
    try:
        try:
            alarm.on(seconds)
            return function(item)
        finally:
            alarm.off()
    except _OutOfTimeError:
        alarm.off()  # again, because the error may have been raised just before the first call
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
