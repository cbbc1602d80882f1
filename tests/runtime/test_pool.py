"""The pool: order, failures and limits, in this process, in others and in threads; nothing lost, nothing left over."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import joblib
import pytest

from kldm.errors import KldmError
from kldm.runtime.pool import Failure, parallel_map

LIMIT = Failure("time limit of 0.2 s")
UNSENT = Failure("cannot pickle '_thread.lock' object")
RAISED = Failure("of a kind that cannot be foreseen: 0x7f")


def square(number: int) -> int:
    return number * number


def awkward(number: int) -> object:
    """0, 1, 4, ...; 3 raises, 5 never ends, 7 gives what cannot be sent."""
    if number == 3:
        raise ValueError("of a kind that cannot be foreseen: 0x7f")
    while number == 5:
        pass
    return threading.Lock() if number == 7 else square(number)


def stubborn(number: int) -> int:
    """Swallows the first end of its time."""
    try:
        while number:
            pass
    except BaseException:
        while number:
            pass
    return number


def swallowing(number: int) -> int:
    while number:
        try:
            while True:
                pass
        except Exception:
            pass
    return number


def name_of_process(_: int) -> str:
    import multiprocessing
    import os

    return f"{multiprocessing.current_process().pid} {threading.get_ident()} {os.environ.get('OMP_NUM_THREADS')}"


class Unsendable:
    def __reduce__(self) -> str:
        raise TypeError("stays where it is")


class Unbuildable:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return square_root_of_nothing, (0,)


def square_root_of_nothing(number: int) -> float:
    return 1 / number


def type_of(item: object) -> str:
    return type(item).__name__


def results(items: list[int], **options: int | float) -> list[object]:
    limit = options.pop("time_limit", None)
    return list(
        parallel_map(awkward, items, workers=int(options.get("workers", 1)), time_limit=limit, description="test")
    )


def test_serial() -> None:
    found = results([2, 3, 5, 0, 4], time_limit=0.2)
    assert found == [4, RAISED, LIMIT, 0, 16]


def test_two_workers() -> None:
    found = results([*range(9), 3, 6], workers=2, time_limit=0.2)
    assert found == [0, 1, 4, RAISED, 16, LIMIT, 36, UNSENT, 64, RAISED, 36]


def test_the_number_of_workers_does_not_matter() -> None:
    items = list(range(101))
    expected = [square(item) for item in items]
    for workers in (1, 2, -1):
        assert list(parallel_map(square, items, workers=workers, description="test")) == expected
    assert list(parallel_map(square, [], workers=2, description="test")) == []
    assert list(parallel_map(square, [3], workers=2, description="test")) == [9]


def test_partial_functions_and_items_that_cannot_be_sent() -> None:
    items: list[object] = [1, Unsendable(), "a", Unbuildable(), None]
    sent = list(parallel_map(partial(type_of), items, workers=2, description="test"))
    assert sent == ["int", Failure("stays where it is"), "str", Failure("division by zero"), "NoneType"]


def test_one_worker_is_this_very_thread_and_others_have_one_blas_thread() -> None:
    here = next(parallel_map(name_of_process, [0], description="test"))
    assert here == name_of_process(0)
    away = set(parallel_map(name_of_process, range(40), workers=2, description="test"))
    assert here not in away
    assert all(str(name).endswith(" 1") for name in away)


def test_a_surrounding_backend_does_the_work() -> None:
    """Also for one worker, and in its threads, where signals are not to be had."""
    with joblib.parallel_config(backend="threading", n_jobs=2):
        names = set(parallel_map(name_of_process, range(8), description="test"))
        found = results([0, 5, 2, 3, 5, 4], time_limit=0.2)
    assert name_of_process(0) not in names
    assert found == [0, LIMIT, 4, RAISED, LIMIT, 16]


@pytest.mark.parametrize("backend", ["sequential", "multiprocessing"])
def test_backends_of_other_kinds(backend: str) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert results([0, 3, 2], workers=2) == [0, RAISED, 4]


def test_time_limit_in_a_thread() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(results([1, 5, 2], time_limit=0.2)))
    thread.start()
    thread.join()
    assert found == [1, LIMIT, 4]


@pytest.mark.parametrize("function", [stubborn, swallowing])
def test_time_limit_of_functions_that_swallow_exceptions(function: object) -> None:
    assert callable(function)
    found = list(parallel_map(function, [0, 1, 0], time_limit=0.2, description="test"))
    assert found == [0, LIMIT, 0]


def around(number: int) -> int:
    """Ends about when its time does."""
    end = time.perf_counter() + 0.002 + number * 1e-6
    while time.perf_counter() < end:
        pass
    return number


def test_nothing_is_raised_after_the_end() -> None:
    """An alarm that rings as the function returns must hit this item or nobody."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        items = [*range(-100, 300), 100_000]  # the last by far too long, however late an alarm rings on a busy core
        found = list(parallel_map(around, items, time_limit=0.002, description="test"))
        quiet = sum(1 for _ in range(200_000))
    finally:
        sys.setswitchinterval(interval)
    assert quiet == 200_000
    expected: Iterator[tuple[int, object]] = zip(items, found, strict=True)
    assert all(result in (item, Failure("time limit of 0.002 s")) for item, result in expected)
    assert found[-1] == Failure("time limit of 0.002 s")


def test_an_interrupt_of_the_user_is_not_a_failure() -> None:
    def interrupted(_: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(parallel_map(interrupted, [1], description="test"))


def harmful(kind: str) -> str:
    """What no exception in the process itself can stop, or what takes the process with it."""
    if kind == "sleeps":
        time.sleep(60)
    if kind == "hoards":
        hoard = bytearray(600_000_000)
        hoard[::4096] = b"1" * len(hoard[::4096])
        time.sleep(60)
    if kind == "too large":
        bytearray(1 << 60)
    if kind == "leaves":
        sys.exit(3)
    if kind == "ends":
        os._exit(4)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind


HARM = {
    "sleeps": "time limit of 1 s",
    "hoards": "it took more than 0.4 GB of memory",
    "too large": "out of memory",
    "leaves": "it wanted to end the program (exit status 3)",
    "ends": "its process ended (exit status 4)",
    "killed": "its process ended (signal SIGKILL)",
}


@pytest.mark.parametrize(
    ("kinds", "workers"),
    [
        (("sleeps", "ends"), 1),
        pytest.param(HARM, 1, marks=pytest.mark.slow),
        pytest.param(HARM, 2, marks=pytest.mark.slow),
    ],
)
def test_what_only_the_end_of_a_process_stops_fails_alone(kinds: Iterable[str], workers: int) -> None:
    items = [word for kind in kinds for word in (kind, f"after {kind}")]
    started = time.monotonic()
    found = list(parallel_map(harmful, items, workers=workers, time_limit=1.0, memory=0.4, description="test"))
    assert found == [part for kind in kinds for part in (Failure(HARM[kind]), f"after {kind}")]
    assert time.monotonic() - started < 30, "nothing was waited for"


def with_library(folder: Path, number: int) -> int:
    sys.path.insert(0, str(folder))
    __import__("slow_library")
    return number


def test_an_interrupted_import_fails_no_item(tmp_path: Path) -> None:
    """A busy machine imports for longer than the limit, and what stays in pieces would fail all that follow."""
    (tmp_path / "slow_part.py").write_text(
        "from pathlib import Path\nseen = Path(__file__).with_suffix('.seen')\nfirst = not seen.exists()\nseen.touch()"
    )
    (tmp_path / "slow_library.py").write_text("import slow_part, time\nwhile slow_part.first:\n    time.sleep(0.01)\n")
    found = list(parallel_map(partial(with_library, tmp_path), [1, 2], time_limit=0.5, description="test"))
    assert found == [1, 2]


def test_processes_are_kept_for_the_next_call() -> None:
    first, second = (
        list(parallel_map(name_of_process, range(3), time_limit=60.0, description="test")) for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 1


def test_what_cannot_be_sent_is_told() -> None:
    lock = threading.Lock()
    with pytest.raises(KldmError, match=r"a function cannot be sent to another process .*lock"):
        list(parallel_map(lambda _: lock, [1], time_limit=60.0, description="test"))


def test_functions_of_no_module_are_sent() -> None:
    assert list(parallel_map(lambda number: number + 1, [1, 2], time_limit=60.0, description="test")) == [2, 3]


BUSY = """
import ctypes, os, sys
from kldm.errors import KldmError
from kldm.runtime.pool import parallel_map

def busy(_):
    open(f"{sys.argv[-1]}/{os.getpid()}", "w").close()
    ctypes.pythonapi.sleep(60)  # holds the interpreter, so that no Python code runs in this process

list(parallel_map(busy, [1, 2], workers=2, time_limit=50.0, description="test"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_program_is_that_of_its_processes(number: signal.Signals, tmp_path: Path) -> None:
    code = BUSY.replace("sys.argv[-1]", repr(str(tmp_path)))
    program = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    program.send_signal(number)
    assert program.wait(10) != 0
    until(lambda: not any(os.path.exists(f"/proc/{file.name}") for file in tmp_path.iterdir()))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_dask() -> None:
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        names = set(parallel_map(name_of_process, range(8), description="test"))
        found = results([*range(9), 3], time_limit=0.2)
    assert name_of_process(0) not in names
    assert found == [0, 1, 4, RAISED, 16, LIMIT, 36, UNSENT, 64, RAISED]
