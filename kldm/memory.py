"""How many pairs of atoms one network call may have, given the free memory."""

import os
from pathlib import Path

import torch

from kldm.interfaces import Sizes
from kldm.runtime.allocator import give_back

MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that this process may still take on the device; None if unknown.

    On a GPU it is what the driver has left and what torch has reserved without using it; on Linux it is what the system
    calls available, divided by the number of processes of the run that share the machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        give_back()  # so that memory which the allocator keeps counts as available
        try:
            lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
            return int(lines["MemAvailable"].removesuffix("kB")) * 1024 // processes
        except (OSError, KeyError, ValueError):
            return None
    return None


def machine_memory() -> int | None:
    """Bytes of memory that the machine has; None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def most_pairs(network: object, device: torch.device, *, training: bool, processes: int = 1) -> int | None:
    """The largest power of two of ordered pairs that fits into half of the free memory, as the network estimates; None
    if it gives no estimate (``Sizes``), or the free memory is unknown.

    It is a power of two so that small changes of the free memory do not change it.

    Args:
        network: the network.
        device: where it computes.
        training: whether the gradient is computed too.
        processes: how many processes of the run share the memory of the machine.
    """
    if isinstance(network, Sizes) and (free := free_memory(device, processes)) is not None:
        return 1 << max(free // 2 // network.bytes_per_pair(training), 1).bit_length() - 1
    return None
