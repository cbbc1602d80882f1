"""What the benchmarks of networks, training and sampling share: turns, clocks, tables."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from kldm.execution import bfloat16_unit
from kldm.runtime.files import atomic_write

Work = Callable[[], object]


@attrs.frozen
class Timing:
    """Seconds of a piece of work over several turns.

    Attributes:
        median: of its times.
        ratio: median of the plain form's times over ``median``.
        least, most: smallest and largest ratio of a single turn.
    """

    median: float
    ratio: float
    least: float
    most: float

    @classmethod
    def of(cls, times: Sequence[float], plain: Sequence[float]) -> "Timing":
        """Of times turn by turn, beside those of the plain form in the same turns."""
        ratios = [slow / quick for quick, slow in zip(times, plain, strict=True)]
        median = statistics.median(times)
        return cls(median, statistics.median(plain) / median, min(ratios), max(ratios))


def seconds(work: Work, device: torch.device) -> float:
    """What one run takes: of the process's CPU time, or of the GPU's own clock on a GPU."""
    if device.type == "cuda":
        start, end = torch.Event(device, enable_timing=True), torch.Event(device, enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    begin = time.process_time()
    work()
    return time.process_time() - begin


def interleaved(works: Mapping[str, Work], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each in every turn, all taking turns, so that a busy machine slows all; the first turn warms up."""
    turns = [{name: seconds(work, device) for name, work in works.items()} for _ in range(repeats + 1)][1:]
    return {name: [turn[name] for turn in turns] for name in works}


def write_json(path: Path | None, record: Mapping[str, Any]) -> None:
    """Beside the printed table, where a file is named."""
    if path is not None:
        with atomic_write(path) as part:
            part.write_text(json.dumps(record, indent=2) + "\n")


def peak_memory(device: torch.device) -> int:
    """Bytes at most: of this process so far, or of what torch allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads, unit = torch.get_num_threads(), bfloat16_unit(device) or "no native bfloat16"
    return f"cpu with {unit}, {threads} thread{'s' * (threads > 1)}"
