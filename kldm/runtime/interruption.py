"""Ctrl-C and SIGTERM as a question that a loop asks, so that it can leave in order; and an end for one that cannot."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class Interruption:
    """While entered, the first SIGINT or SIGTERM only sets ``asked``; a second one acts as it always does."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interruption":
        # Handlers can be set from the main thread alone; elsewhere interruption stays Python's own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class Deadline:
    """While entered, a SIGINT or SIGTERM ends the process after some seconds even if the main thread hangs in compiled
    code, where Python's handlers never run.

    Args:
        seconds: from the signal, for leaving in order.
        leave: called when they have passed, in another thread; then the process ends with status 1.
    """

    def __init__(self, seconds: float, leave: Callable[[], None]) -> None:
        self.seconds, self.leave = seconds, leave
        self._left = threading.Event()

    def __enter__(self) -> "Deadline":
        self._heard, self._told = socket.socketpair()
        self._told.setblocking(False)
        # Written to by the handler in C, whatever the main thread does.
        self._previous = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous)
        self._left.set()
        self._told.close()

    def _watch(self) -> None:
        with self._heard:
            while number := self._heard.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    break
            else:
                return
        if not self._left.wait(self.seconds):
            self.leave()
            os._exit(1)
