"""How many pairs of atoms a network call may have, by the memory that is free."""

from pathlib import Path

import torch

from kldm.interfaces import Sizes
from kldm.runtime.allocator import give_back

MEMINFO = Path("/proc/meminfo")


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that this process may still take on the device; None where that is not known.

    Of a GPU what the driver has left and what torch keeps unused; of a machine with Linux what the system calls
    available, divided by the number of processes of the run that share it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        give_back()  # kept memory is free to be taken again
        try:
            lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
            return int(lines["MemAvailable"].removesuffix("kB")) * 1024 // processes
        except (OSError, KeyError, ValueError):
            return None
    return None


def most_pairs(network: object, device: torch.device, *, training: bool, processes: int = 1) -> int | None:
    """The largest number of ordered pairs for which half of the free memory suffices, as the network reckons; None
    where it does not reckon, or nothing is known of the memory.

    A power of two, so that small changes of what is free change nothing.

    Args:
        network: of which ``Sizes`` tells what a pair takes.
        device: where it computes.
        training: whether the gradient is computed too.
        processes: of the run, which share the memory of the machine.
    """
    if isinstance(network, Sizes) and (free := free_memory(device, processes)) is not None:
        return 1 << max(free // 2 // network.bytes_per_pair(training), 1).bit_length() - 1
    return None
