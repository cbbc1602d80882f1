"""Keeps glibc's allocator from returning memory to the system, only to request it again in the next step."""

import ctypes
import os
import sys
from functools import cache

SWITCH = "KLDM_MALLOC"
"""Environment variable; with the value 0 the allocator is left as it is."""

# Parameters of mallopt, from glibc's malloc.h, and their new values.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no array gets a mapping of its own, which would be unmapped when it is freed
    -1: -1,  # M_TRIM_THRESHOLD: the end of the heap is kept when it is free
    -2: 256 * 2**20,  # M_TOP_PAD: the heap grows by at least this many bytes; pages are taken when they are written
}


@cache
def keep_memory() -> bool:
    """Let the allocator keep the memory that a step frees for the next step. Returns whether it does.

    By default glibc maps every array above 32 MB anew, unmaps it when it is freed, and returns the free end of the
    heap. The next step then causes a page fault, and a page of zeros, for every 4 kB of the same memory. The memory
    that is kept counts as memory of this process until it ends: about the most that it ever used.

    The settings are made once. The allocator is left alone if ``KLDM_MALLOC=0`` is set, if the environment has settings
    of glibc itself (``MALLOC_..._``, ``GLIBC_TUNABLES``), and if malloc is not that of glibc: on another system, or
    where another allocator was preloaded.
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
    """Return free memory to the system, so that it counts as available."""
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
    """The C library of this process, if it is glibc and malloc comes from it."""
    try:
        library = ctypes.CDLL(None)
        bases = []
        for name in ("malloc", "free", "gnu_get_libc_version"):
            symbol = _Symbol()
            if not library.dladdr(ctypes.cast(getattr(library, name), ctypes.c_void_p), ctypes.byref(symbol)):
                return None
            bases.append(symbol.base)
    except (OSError, AttributeError):
        return None
    return library if len(set(bases)) == 1 else None
