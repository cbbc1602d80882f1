"""How many pairs of atoms a network call may have, by the memory that is free."""

from pathlib import Path

import torch

from kldm.interfaces import Sizes
from kldm.runtime.allocator import give_back
from kldm.runtime.distributed import world

SAMPLING_PAIRS = 64_000
"""Ordered pairs of atoms in a batch of samples where memory suffices: enough to keep a GPU busy."""

MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on the device; None where that is not known.

    Of a GPU what the driver has left and what torch keeps unused; of a machine with Linux an equal part, for every
    process of the run there, of what the system calls available.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        give_back()  # kept memory is free to be taken again
        try:
            lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
            return int(lines["MemAvailable"].removesuffix("kB")) * 1024 // world().neighbours
        except (OSError, KeyError, ValueError):
            return None
    return None


def most_pairs(network: object, device: torch.device, *, training: bool) -> int | None:
    """The largest number of ordered pairs for which half of the free memory suffices, as the network reckons; None
    where it does not reckon, or nothing is known of the memory.

    A power of two, so that small changes of what is free change nothing, and the same for all processes of a run.
    """
    found = None
    if isinstance(network, Sizes) and (free := free_memory(device)) is not None:
        found = 1 << max(free // 2 // network.bytes_per_pair(training), 1).bit_length() - 1
    known = [one for one in world().gather(found) if one is not None]
    return min(known, default=None)


def sampling_pairs(asked: int | None, network: object, device: torch.device) -> int:
    """Ordered pairs of atoms in a batch of samples: what was asked for, or else 64,000 or as many as fit."""
    if asked is not None:
        return asked
    fitting = most_pairs(network, device, training=False)
    return SAMPLING_PAIRS if fitting is None else min(SAMPLING_PAIRS, fitting)
