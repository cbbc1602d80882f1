"""CUDA graphs: the kernels of one step are recorded once and then launched together, without Python, for every other.

A step of a small batch launches hundreds of kernels that are shorter than their launches; replayed, they follow each
other without a gap. A recorded step is the same kernels on the same memory: latents and times lie in buffers, and draws
go through a generator that the graph advances, so that the random numbers are those of plain steps.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import attrs
import torch
from torch import Tensor

from kldm.interfaces import Latent

Latents = Mapping[str, Latent]
"""Latents by modality."""

Advance = Callable[[Latents, Tensor, Tensor, torch.Generator], Latents]
"""Latents, the times s and r of a step (no dimensions), and the source of randomness, to the latents at r."""

Record = Callable[[Callable[[], None], torch.Generator], Callable[[], None]]
"""Records the work of a call that draws from a generator, and returns a function that repeats it. It may call it any
number of times, and raises if the work cannot be recorded."""

_log = logging.getLogger("kldm.samplers")


@attrs.define
class _Switch:
    refused: bool = False


_SWITCH: ContextVar[_Switch | None] = ContextVar("replaying", default=None)


@contextmanager
def replaying(enabled: bool = True) -> Iterator[None]:
    """Inside, samplers on an NVIDIA GPU replay their steps as a CUDA graph; on other devices nothing changes.

    Where a component cannot be recorded (it looks at values, or copies from the host), a warning is logged and all
    further steps are made plainly. No component may keep state of its own between the steps of a sampler, or choose in
    Python by anything but the latents' shapes: a graph repeats what the recorded step did.
    """
    token = _SWITCH.set(_Switch() if enabled else None)
    try:
        yield
    finally:
        _SWITCH.reset(token)


@contextmanager
def stepping(
    advance: Advance, rng: torch.Generator, device: torch.device
) -> Iterator[Callable[[Latents, Tensor, Tensor], Latents]]:
    """The function that makes the steps of one sampler run: ``advance``, or its recording if ``replaying`` is on."""
    switch, record = _SWITCH.get(), recorder(device)
    if switch is None or record is None:
        yield lambda latents, start, end: advance(latents, start, end, rng)
        return
    steps = _Steps(advance, rng, record, switch)
    yield steps
    steps.finish()


def recorder(device: torch.device) -> Record | None:
    """The function that records on this device; None if there is none."""
    return capture if device.type == "cuda" else None


class _Steps:
    """The first step is made plainly, the second is recorded, and all from then on are replayed.

    The first step makes whatever is made once: index tensors of the layout, tables, compiled kernels. If they were made
    while recording, their memory would belong to the graph.
    """

    def __init__(self, advance: Advance, rng: torch.Generator, record: Record, switch: _Switch) -> None:
        self._advance, self._rng, self._record, self._switch = advance, rng, record, switch
        self._recording: Recording | None = None
        self._warm = False

    def __call__(self, latents: Latents, start: Tensor, end: Tensor) -> Latents:
        if self._warm and self._recording is None and not self._switch.refused:
            self._record_step(latents, start, end)
        self._warm = True
        if self._recording is None:
            return self._advance(latents, start, end, self._rng)
        return self._recording(latents, start, end)

    def finish(self) -> None:
        """Leave the generator where plain steps would have left it."""
        if self._recording is not None:
            self._rng.set_state(self._recording.rng.get_state())

    def _record_step(self, latents: Latents, start: Tensor, end: Tensor) -> None:
        try:
            self._recording = Recording(self._advance, latents, start, end, self._rng, self._record)
        # The same step has just been made plainly: whatever fails now, fails by being recorded.
        except Exception as error:
            self._switch.refused = True
            _log.warning("steps are made one by one, as they cannot be replayed as a CUDA graph: %s", _reason(error))


class Recording:
    """A recorded step.

    Args:
        advance: the step.
        latents, start, end: examples of its arguments, which are not written to.
        rng: the generator that the draws begin with; they come from a copy.
        record: how it is recorded.

    Attributes:
        rng: the generator that the replayed steps draw from.

    Raises:
        ValueError: the step gives latents of other names, shapes or types than it takes.
        Exception: what ``record`` raises.
    """

    def __init__(
        self, advance: Advance, latents: Latents, start: Tensor, end: Tensor, rng: torch.Generator, record: Record
    ) -> None:
        self._advance = advance
        self._latents = {
            name: {channel: value.clone() for channel, value in latent.items()} for name, latent in latents.items()
        }
        self._start, self._end = start.clone(), end.clone()
        self.rng = torch.Generator(rng.device)
        self.rng.set_state(rng.get_state())
        with _no_autocast_cache(rng.device.type):
            self._replay = record(self._run, self.rng)
        # Recording may have drawn from it; the buffers are filled anew by every call.
        self.rng.set_state(rng.get_state())

    def __call__(self, latents: Latents, start: Tensor, end: Tensor) -> Latents:
        """The latents at ``end``: the same tensors every time, overwritten by the next call."""
        for buffer, value in _matched(self._latents, latents):
            if value is not buffer:
                buffer.copy_(value)
        self._start.copy_(start)
        self._end.copy_(end)
        self._replay()
        return self._latents

    def _run(self) -> None:
        pairs = _matched(self._latents, self._advance(self._latents, self._start, self._end, self.rng))
        buffers = {buffer.untyped_storage().data_ptr() for buffer, _ in pairs}
        # A view of a buffer is copied before any buffer is written.
        values = [
            value.clone() if value is not buffer and value.untyped_storage().data_ptr() in buffers else value
            for buffer, value in pairs
        ]
        for (buffer, _), value in zip(pairs, values, strict=True):
            if value is not buffer:
                buffer.copy_(value)


def capture(run: Callable[[], None], rng: torch.Generator) -> Callable[[], None]:
    """Record the work of ``run`` on a GPU, in a memory pool of its own, and return its launch on the current stream.

    Raises:
        Exception: the work cannot be captured. All generators but ``rng`` are then as they were.
    """
    device = rng.device
    # A capture that fails leaves its stream current; the outer contexts restore the previous one.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(rng)  # with memory on the current device
        # Every capture registers the device's default generator, from which a component may draw. ``device`` need not
        # have an index.
        default = torch.cuda.default_generators[torch.cuda.current_device()]
        state = default.get_state()
        side = _side_stream(device)
        try:
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                run()  # makes what each stream has for itself, such as the workspace of matrix products
            torch.cuda.current_stream(device).wait_stream(side)
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                run()
        except BaseException:
            # A generator that a failed capture has registered refuses all draws.
            fresh = torch.Generator(device)
            fresh.set_state(state)
            default.graphsafe_set_state(fresh)
            raise
    default.set_state(state)
    return graph.replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of all captures on a device, so that workspaces are made once."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _matched(buffers: Latents, latents: Latents) -> list[tuple[Tensor, Tensor]]:
    """Every buffer with the tensor of the same modality and channel."""
    expected, actual = (
        {
            (name, channel): (value.shape, value.dtype, value.device)
            for name, latent in tensors.items()
            for channel, value in latent.items()
        }
        for tensors in (buffers, latents)
    )
    if expected != actual:
        differing = sorted({".".join(key) for key, _ in expected.items() ^ actual.items()})
        raise ValueError(f"a step changes the shape or the type of {', '.join(differing)}")
    return [(buffer, latents[name][channel]) for name, latent in buffers.items() for channel, buffer in latent.items()]


def _reason(error: BaseException) -> str:
    """The first line of the first error: a capture that was interrupted fails again at its end."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _no_autocast_cache(kind: str) -> Iterator[None]:
    """Autocast caches rounded weights while it is on; those made while recording would belong to the graph.

    Where autocast is off, a step drops what it rounds, and the setting of the cache stays as it is: compiled functions
    are compiled anew when it changes.
    """
    was_enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(was_enabled and not torch.is_autocast_enabled(kind))
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was_enabled)
