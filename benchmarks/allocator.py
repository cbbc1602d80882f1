"""What it saves that glibc's allocator keeps its memory: page faults and seconds of a training step.

    python -m benchmarks.allocator --batch 64 --hidden 512 --repeats 5 --threads 1 --json allocator.json

Two processes take turns at the same step of CSPVNet with AdamW, one with the allocator as it is (KLDM_MALLOC=0), one as
training and sampling set it. Reported are medians of CPU time, page faults and the most memory that a process held.
"""

import multiprocessing
import os
import resource
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import attrs
import torch

from benchmarks.network import batch_for, of_form, training_step
from benchmarks.options import add_network, common, described, parsed
from benchmarks.timing import Timing, Work, device_name, peak_memory, seconds, write_json
from kldm.execution import Precision
from kldm.runtime.allocator import SWITCH, keep_memory

CPU = torch.device("cpu")


@cache
def work(batch: int, hidden: int, threads: int, precision: Precision) -> Work:
    """Made once in each process."""
    torch.set_num_threads(threads)
    keep_memory()
    layout, latent, s = batch_for("cspvnet", batch, CPU)
    return training_step(of_form("cspvnet", "manual", hidden, CPU), latent, s, layout, precision == "bf16")


def step(batch: int, hidden: int, threads: int, precision: Precision) -> tuple[float, int, int]:
    """CPU seconds and page faults of one step, and the bytes that the process held at most so far."""
    one = work(batch, hidden, threads, precision)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    took = seconds(one, CPU)
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, peak_memory(CPU)


def main() -> None:
    parser = common("a training step with and without an allocator that keeps its memory")
    add_network(parser)
    options = parsed(parser)
    print(f"{options.batch} crystals, width {options.hidden}, {device_name(CPU)}, torch {torch.__version__}")
    print(f"{'':6}{'allocator':22}{'seconds':>9}{'ratio':>7}{'range':>14}{'page faults':>13}{'peak (GB)':>11}")
    record: dict[str, Any] = {}
    for precision in options.precision:
        settings = (options.batch, options.hidden, options.threads, precision)
        spawn = multiprocessing.get_context("spawn")
        turns: dict[str, list[tuple[float, int, int]]] = {}
        with ProcessPoolExecutor(1, spawn) as plain, ProcessPoolExecutor(1, spawn) as keeping:
            for process, switch in ((plain, "0"), (keeping, "1")):
                os.environ[SWITCH] = switch  # for the process, which begins with its first work
                process.submit(step, *settings).result()
            for name, process in [("as it is", plain), ("keeps its memory", keeping)] * options.repeats:
                turns.setdefault(name, []).append(process.submit(step, *settings).result())
        times = {name: [took for took, _, _ in each] for name, each in turns.items()}
        record[precision] = {}
        for name, each in turns.items():
            timing = Timing.of(times[name], times["as it is"])
            faults, peak = statistics.median(one for _, one, _ in each), max(one for _, _, one in each)
            spread = f"{timing.least:.2f} - {timing.most:.2f}"
            row = f"{precision:6}{name:22}{timing.median:9.4f}{timing.ratio:7.2f}{spread:>14}"
            print(f"{row}{faults:13.0f}{peak / 1e9:11.2f}", flush=True)
            record[precision][name] = {**attrs.asdict(timing), "faults": faults, "peak": peak}
    write_json(options.json, {**described(options), "precisions": record})


if __name__ == "__main__":
    main()
