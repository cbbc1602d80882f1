"""Applies a function to many structures, in processes or on a cluster, in order and within limits of time and memory.

A limit must hold for compiled code too, and only the end of a process ends that. Items with a limit are therefore
worked on in processes of our own. Each is a Python program that is sent a function and items and answers with results,
so that its state does not depend on that of this process: no fork, no import of the user's ``__main__``.
"""

import atexit
import ctypes
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from itertools import islice
from signal import Signals
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs

from kldm.errors import KldmError, reason_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")

LARGEST_CHUNK = 16
"""Largest number of items in a task: enough to amortise its dispatch (a millisecond), few enough to see progress."""

AGAIN = 1.0
"""Seconds after which a function that has caught the exception of the time limit gets it again."""

GRACE = 1.0
"""Seconds that a process has to notice the end of an item's time by itself, before it is ended."""

MEMORY = 4.0
"""GB that one item may take, as long as nothing else is said."""

LOOK_EVERY = 0.1
"""Seconds between two looks at the memory of a process that works on an item."""

IDLE_SECONDS = 300.0
"""Seconds after which a process without work ends."""

_THREADS = ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR")
"""Libraries whose number of threads is a variable of the environment."""


@attrs.frozen
class Failure:
    """An item without a result. The reason is a limit, or the error in its own words."""

    reason: str


def is_of_a_limit(reason: str) -> bool:
    """Whether a reason is, or quotes, that of a ``Failure`` which says nothing of the item but what it took."""
    return any(words in reason for words in ("time limit of ", "it took more than ", "its process ended "))


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
    memory: float = MEMORY,
    description: str,
    unit: str = "structure",
) -> Iterator[R | Failure]:
    """``function(item)`` for every item, in the order of the items, whatever the number of workers.

    The result is a ``Failure`` if the function raises, exceeds a limit, ends its process, or returns a value that
    cannot be sent between processes; other items are not affected. One worker without a time limit is the calling
    process. Otherwise workers are processes, which are kept for the next call; where there are several, each has one
    BLAS thread. If a surrounding ``joblib.parallel_config`` names a backend, such as dask, that backend does the work,
    even for one worker; its processes are not ours to end, so that the limits hold for Python code only.

    Args:
        function: a function without side effects that other processes can import from its module.
        workers: number of processes; -1 means one for each CPU core.
        time_limit: seconds of wall time per item. It interrupts Python code, and ends the process of compiled code.
        memory: GB that an item may take; beyond, its process is ended.
        description: text of the progress bar, which appears after two seconds.
        unit: name of an item in the progress bar.
    """
    from tqdm import tqdm

    results: Iterable[R | Failure]
    if not items:
        results = ()
    elif _configured():
        results = _by_joblib(function, items, workers, time_limit)
    elif workers == 1 and time_limit is None:
        results = (_outcome(function, item, None) for item in items)
    else:
        results = _by_processes(function, items, workers, time_limit, memory)
    yield from tqdm(results, total=len(items), desc=description, unit=unit, delay=2)


def start_worker(workers: int, modules: Sequence[str]) -> None:
    """Start one of the processes that will be needed, so that it imports ``modules`` while this process does so too."""
    if not any(worker.alone == (workers == 1) for worker in _IDLE):
        _IDLE.append(_Worker(workers == 1, modules))


def _number(workers: int) -> int:
    from joblib import effective_n_jobs

    return int(effective_n_jobs(workers))


def _configured() -> bool:
    """Whether a surrounding ``joblib.parallel_config`` names a backend; otherwise joblib creates one for each call."""
    from joblib.parallel import get_active_backend

    return get_active_backend()[0] is get_active_backend()[0]


def _by_joblib(
    function: Callable[[T], R], items: Sequence[T], workers: int, time_limit: float | None
) -> Iterator[R | Failure]:
    from joblib import Parallel, delayed, effective_n_jobs
    from joblib.parallel import get_active_backend

    jobs = min(int(effective_n_jobs(None if workers == 1 else workers)), len(items))  # None: as the context says
    size = _chunk_size(len(items), jobs)
    tasks = (
        delayed(_chunk)(function, [_packed(item) for item in items[start : start + size]], time_limit)
        for start in range(0, len(items), size)
    )
    # A few backends hand over all results at the end.
    how = "generator" if get_active_backend()[0].supports_return_generator else "list"
    chunks: Iterable[list[bytes | Failure]] = Parallel(n_jobs=jobs, prefer="processes", return_as=how, batch_size=1)(
        tasks
    )
    for chunk in chunks:
        yield from (cast("R | Failure", _unpacked(packed)) for packed in chunk)


def _chunk_size(items: int, workers: int) -> int:
    return max(1, min(LARGEST_CHUNK, items // (4 * workers)))


def _chunk(
    function: Callable[[Any], Any], items: Sequence[bytes | Failure], time_limit: float | None
) -> list[bytes | Failure]:
    """One task of the pool. Items and values are pickled separately, so that a bad one does not affect the others."""
    return [_packed(_outcome(function, _unpacked(packed), time_limit)) for packed in items]


def _by_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int, time_limit: float | None, memory: float
) -> Iterator[R | Failure]:
    number = min(_number(workers), len(items))
    size = _chunk_size(len(items), number)
    work = _Work(_sendable(function), time_limit, memory)
    hired = [_hired(workers == 1) for _ in range(number)]
    free = deque(hired)

    def chunk(start: int) -> list[bytes | Failure]:
        worker = free.popleft()  # there are as many as threads
        try:
            return worker.results(work, [_packed(item) for item in items[start : start + size]])
        finally:
            free.append(worker)

    threads, starts = ThreadPoolExecutor(number, "kldm-pool"), iter(range(0, len(items), size))
    try:
        chunks: deque[Future[list[bytes | Failure]]] = deque()
        chunks.extend(threads.submit(chunk, start) for start in islice(starts, 4 * number))
        while chunks:
            found = chunks.popleft().result()
            chunks.extend(threads.submit(chunk, start) for start in islice(starts, 1))
            yield from (cast("R | Failure", _unpacked(packed)) for packed in found)
        _IDLE.extend(hired)
        hired = []
    finally:
        for worker in hired:  # after an interruption, or where nobody wants further results
            worker.end()
        threads.shutdown(cancel_futures=True)


def _sendable(function: Callable[[Any], Any]) -> bytes:
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(function))
    except Exception as error:  # pickling can raise errors of any type
        raise _unsendable(reason_of(error)) from error


def _unsendable(reason: str) -> KldmError:
    remedy = "components that work in other processes must be picklable"
    return KldmError(f"a function cannot be sent to another process ({reason})", remedy=remedy)


@attrs.frozen
class _Work:
    """A function, pickled, and the limits of each item; see ``parallel_map``."""

    function: bytes
    time_limit: float | None
    memory: float


class _Worker:
    """A process, seen from this one. It may end at any time, and is started again as long as it is not told to end."""

    def __init__(self, alone: bool, modules: Sequence[str] = ()) -> None:
        """It imports ``modules`` at once. If it is not ``alone``, it has one BLAS thread."""
        self.alone, self._modules, self._ended = alone, list(modules), False
        self._start()

    def _start(self) -> None:
        from multiprocessing import Pipe

        import psutil

        self._pipe, theirs = Pipe()
        code = "import sys; sys.path[:] = sys.argv[2:]; from kldm.runtime.pool import _serve; _serve()"
        threads = {} if self.alone else {f"{name}_NUM_THREADS": "1" for name in _THREADS}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code, str(theirs.fileno()), *sys.path],
                    stdin=subprocess.PIPE,  # by which it notices the end of this process, and nothing else
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, **threads},
                    process_group=0,  # Ctrl-C is meant for this process, which ends the others
                )
        except OSError as error:
            problem = f"a process for the work cannot be started ({error.strerror or error})"
            raise KldmError(problem, remedy="use fewer workers") from error
        self._view = psutil.Process(self._process.pid)
        # What the process before it had imported counts for no item's time.
        self._pipe.send(self._modules)

    def end(self) -> None:
        """End the process for good, whatever it is doing."""
        self._ended = True
        self._kill()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def results(self, work: _Work, items: Sequence[bytes | Failure]) -> list[bytes | Failure]:
        """The results of pickled items."""
        found: list[bytes | Failure] = []
        patient = True
        while len(found) < len(items) and not self._ended:
            self._give(work, items[len(found) :])
            alive = True
            while alive and len(found) < len(items):
                result, imported, alive = self._result(work)
                if imported and work.time_limit is not None and result == _late(work.time_limit):
                    # What was interrupted may have been an import, which leaves libraries in pieces. They take no time
                    # of the next process, so that the item is tried there.
                    self._kill()
                    alive = False
                    if patient:
                        patient = False
                        continue
                found.append(result)
        return found

    def _give(self, work: _Work, items: Sequence[bytes | Failure]) -> None:
        """Send items, and wait until the function has arrived. A process that has ended meanwhile is replaced."""
        for _ in range(3):
            try:
                self._pipe.send((work.function, work.time_limit, items))
                fault = self._pipe.recv()
            except (EOFError, OSError):
                self._kill()
                if not self._ended:
                    self._start()
                if self._ended:  # perhaps while it was started
                    self._kill()
                    return
                continue
            if fault is not None:
                raise _unsendable(fault)
            self._before = self._memory()
            return
        raise KldmError("a process for the work cannot be started", remedy="its error is above")

    def _result(self, work: _Work) -> tuple[bytes | Failure, Sequence[str], bool]:
        """The result of one item, whose time begins now, the modules that it imported, and whether the process is still
        there."""
        end = math.inf if work.time_limit is None else time.monotonic() + work.time_limit + GRACE
        while True:
            try:
                if self._pipe.poll(max(0.0, min(LOOK_EVERY, end - time.monotonic()))):
                    result, imported = cast("tuple[bytes | Failure, list[str]]", self._pipe.recv())
                    self._modules += imported
                    return result, imported, True
            except (EOFError, OSError):
                status = self._process.wait()
                how = f"signal {Signals(-status).name}" if status < 0 else f"exit status {status}"
                return Failure(f"its process ended ({how})"), (), False
            if time.monotonic() >= end:
                self._kill()
                return _late(work.time_limit), (), False
            if self._memory() - self._before > work.memory:
                self._kill()
                return Failure(f"it took more than {work.memory:g} GB of memory"), (), False

    def _memory(self) -> float:
        """GB of memory that the process holds."""
        import psutil

        try:
            return float(self._view.memory_info().rss) / 1e9
        except psutil.Error:  # it has ended
            return 0.0


_IDLE: list[_Worker] = []
"""Processes without work, kept because they have imported what work needs."""


def _hired(alone: bool) -> _Worker:
    for worker in list(_IDLE):
        if worker.alone == alone:
            with suppress(ValueError):  # another thread was quicker
                _IDLE.remove(worker)
                return worker
    return _Worker(alone)


@atexit.register
def _end_all() -> None:
    while _IDLE:
        _IDLE.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_IDLE.clear)  # they are those of the parent


def _serve() -> None:
    """The program of a process: it answers until it has had no work for long."""
    import fcntl
    from multiprocessing.connection import Connection
    from signal import SIG_DFL, SIGIO, signal

    # The system sends SIGIO when the program that started this one has ended in whatever way, and closed the pipe. It
    # ends this process at once, in compiled code too.
    with suppress(OSError):  # where the system has no such signals for pipes, it ends after the item
        signal(SIGIO, SIG_DFL)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    pipe = Connection(int(sys.argv[1]))
    sys.argv[1:] = []
    with suppress(EOFError, OSError):  # the other program has ended
        for module in pipe.recv():
            with suppress(Exception):  # whoever needs it will say so
                import_module(module)
        _answer(pipe)


def _answer(pipe: "Connection[Any, Any]") -> None:
    known, function, modules = b"", cast("Callable[[Any], Any]", None), set(sys.modules)
    while pipe.poll(IDLE_SECONDS):
        sent, time_limit, items = pipe.recv()
        if sent != known:
            try:
                function, known = pickle.loads(sent), sent
            except Exception as error:  # unpickling can raise errors of any type
                pipe.send(reason_of(error))
                continue
        pipe.send(None)
        for packed in items:
            result = _packed(_outcome(function, _unpacked(packed), time_limit))
            more = len(sys.modules) > len(modules)
            imported = [name for name in list(sys.modules) if name not in modules] if more else []
            modules.update(imported)
            pipe.send((result, imported))


def _packed(value: object) -> bytes | Failure:
    if isinstance(value, Failure):
        return value
    try:
        return pickle.dumps(value)
    except Exception as error:
        return Failure(reason_of(error))


def _unpacked(packed: bytes | Failure) -> Any:
    if isinstance(packed, Failure):
        return packed
    try:
        return pickle.loads(packed)
    except Exception as error:
        return Failure(reason_of(error))


def _outcome(function: Callable[[T], R], item: T, time_limit: float | None) -> R | Failure:
    if isinstance(item, Failure):
        return item
    try:
        return function(item) if time_limit is None else _within(time_limit, function, item)
    except _OutOfTimeError:
        return _late(time_limit)
    except SystemExit as error:
        return Failure(f"it wanted to end the program (exit status {error.code})")
    except Exception as error:  # whatever an item raises is the failure of that item only
        return Failure(reason_of(error))


def _late(time_limit: float | None) -> Failure:
    return Failure(f"time limit of {time_limit:g} s")


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
