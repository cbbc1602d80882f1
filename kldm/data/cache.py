"""The store of a parsed file on disk: safetensors, a few megabytes, read in a blink and without pymatgen."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from kldm.crystals import CrystalStore
from kldm.data.parsing import Parsed, Skipped
from kldm.errors import KldmError
from kldm.runtime.files import atomic_write

DATA_VERSION = 1
"""Raised whenever the same file would give other crystals, so that older caches are not used."""

FORMATS = ("kldm.crystals.v1", "kldm.crystals.v2")
"""What is read; the last is what is written. The first has no columns."""

T = TypeVar("T")

log = logging.getLogger("kldm.data")


def folder() -> Path:
    """Where caches and downloads live: ``$KLDM_CACHE``, else ``kldm`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if chosen := os.environ.get("KLDM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kldm"


def key(source: Path) -> str:
    """sha256 of the bytes of the source file and of ``DATA_VERSION``."""
    digest = hashlib.sha256(f"kldm data {DATA_VERSION}\n".encode())
    with source.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def cached(source: Path, parse: Callable[[Path], Parsed]) -> Parsed:
    """What ``parse`` makes of the source, from the cache where it has been parsed before.

    A broken cache file is made anew. Where the cache cannot be written, the crystals are returned all the same.

    Raises:
        KldmError: where the source cannot be read, or from ``parse``.
    """
    try:
        path = folder() / "parsed" / f"{key(source)}.safetensors"
    except OSError as error:
        raise KldmError(f"cannot be read ({error.strerror})", place=str(source)) from None
    return kept(path, "parsed crystals", load, lambda: parse(source), save)


def kept(path: Path, what: str, load: Callable[[Path], T], make: Callable[[], T], save: Callable[[Path, T], None]) -> T:
    """What the file of a cache holds, or what is made and saved there for the next time.

    Args:
        path: of the file.
        what: it holds, in words.
        load: reads it; raises ``KldmError`` for a broken file, which is made anew.
        make: where there is no such file.
        save: writes it; raises ``KldmError`` where it cannot, which costs the next time alone.
    """
    if path.exists():
        try:
            return load(path)
        except KldmError as error:
            log.info("%s; it is made anew", error)
    made = make()
    try:
        save(path, made)
    except KldmError as error:
        log.warning("%s (%s are not kept for the next time)", error, what)
    return made


def save(path: Path, parsed: Parsed) -> None:
    """Write a store and its skipped rows, atomically. Raises ``KldmError`` where the file cannot be written."""
    from safetensors.torch import save as to_bytes

    store = parsed.store.to("cpu")
    tensors = {
        "fractional": store.fractional.contiguous(),
        "species": store.species.to(torch.uint8),
        "lattice": store.lattice.contiguous(),
        "sizes": torch.tensor(store.sizes, dtype=torch.int32),
        **{f"per_crystal.{name}": values.contiguous() for name, values in store.per_crystal.items()},
        **{f"per_atom.{name}": values.contiguous() for name, values in store.per_atom.items()},
    }
    metadata = {
        "format": FORMATS[-1],
        "ids": json.dumps(store.ids),
        "skipped": json.dumps([(one.row, one.id, one.reason) for one in parsed.skipped]),
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata))


def load(path: Path) -> Parsed:
    """Read what ``save`` wrote. Raises ``KldmError`` where the file is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in FORMATS:
                raise ValueError(f"it is not of the format {FORMATS[-1]}")
            fractional, lattice = file.get_tensor("fractional"), file.get_tensor("lattice")
            species, sizes = file.get_tensor("species").to(torch.int64), tuple(file.get_tensor("sizes").tolist())
            ids = tuple(json.loads(metadata["ids"]))
            skipped = tuple(Skipped(*one) for one in json.loads(metadata["skipped"]))
            names = file.keys()
            per_crystal, per_atom = (
                {name.removeprefix(kind): file.get_tensor(name) for name in names if name.startswith(kind)}
                for kind in ("per_crystal.", "per_atom.")
            )
        atoms, crystals = sum(sizes), len(sizes)
        if not atoms == len(species) == len(fractional) or not crystals == len(lattice) == len(ids):
            raise ValueError("its arrays do not belong together")
        store = CrystalStore(fractional, species, lattice, sizes, ids, per_crystal, per_atom)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, KldmError) as error:
        raise KldmError(f"cannot be read as crystals ({error})", place=str(path)) from None
    return Parsed(store, skipped)
