"""Keeping glibc's allocator from giving memory back to the system, to fetch it anew at the next step."""

import ctypes
import os
import sys
from functools import cache

SWITCH = "KLDM_MALLOC"
"""Environment variable; 0 leaves the allocator as it is."""

# Parameters of mallopt, from glibc's malloc.h, and what they are set to.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: nothing is mapped on its own, to be unmapped when it is freed
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap stays when it is free
    -2: 256 * 2**20,  # M_TOP_PAD: the heap grows by so many bytes at least; pages are taken when they are written
}


@cache
def keep_memory() -> bool:
    """Let the allocator keep what a step frees for the next one; done once. Returns whether it does.

    By default glibc maps every array above 32 MB anew, unmaps it when it is freed, and gives back a free end of the
    heap; the next step takes a page fault, and zeros to be written, for every 4 kB of the same memory. What is kept
    counts as this process's memory as long as it lives: about the most that it ever had in use.

    The allocator is left alone where ``KLDM_MALLOC=0`` says so, where glibc's own settings are in the environment
    (``MALLOC_..._``, ``GLIBC_TUNABLES``), and where malloc is not glibc's: another system, or another allocator that
    was preloaded.
    """
    if os.environ.get(SWITCH) == "0" or not sys.platform.startswith("linux"):
        return False
    set_by_user = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    if set_by_user or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    library = _glibc()
    if library is None:
        return False
    done = [library.mallopt(name, value) for name, value in _SETTINGS.items()]
    return all(done)


def give_back() -> None:
    """Return free memory to the system after all, before it is asked how much there is."""
    if keep_memory.cache_info().currsize and keep_memory() and (library := _glibc()) is not None:
        library.malloc_trim(0)


class _Symbol(ctypes.Structure):
    """glibc's Dl_info."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _glibc() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc and malloc is its own."""
    try:
        library = ctypes.CDLL(None)
        homes = []
        for name in ("malloc", "free", "gnu_get_libc_version"):
            symbol = _Symbol()
            if not library.dladdr(ctypes.cast(getattr(library, name), ctypes.c_void_p), ctypes.byref(symbol)):
                return None
            homes.append(symbol.base)
    except (OSError, AttributeError):
        return None
    return library if len(set(homes)) == 1 else None
