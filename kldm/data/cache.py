"""Parsed files on disk, as safetensors: a few megabytes, read at once and without pymatgen."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import attrs
import torch

from kldm.crystals import CrystalStore
from kldm.data.arrays import LAST_SPECIES
from kldm.data.parsing import Parsed, Skipped
from kldm.errors import KldmError
from kldm.runtime.files import atomic_write
from kldm.runtime.locking import check_place
from kldm.runtime.opening import refuse_irregular
from kldm.runtime.paths import expanded

DATA_VERSION = 2
"""A change of parsing that gives other crystals raises this number, so that older caches are not used."""

FORMATS = ("kldm.crystals.v1", "kldm.crystals.v2")
"""Formats that can be read; the last one is written. The first has no columns."""

T = TypeVar("T")

log = logging.getLogger("kldm.data")


def folder() -> Path:
    """The folder of caches and downloads: ``$KLDM_CACHE``, else ``kldm`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Without a home, or with one where nothing can be written, it is a folder of the user in that of temporary files.
    """
    if path := os.environ.get("KLDM_CACHE"):
        return expanded(path)
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kldm"
        if not place.is_dir():
            check_place(place)
    except (RuntimeError, KldmError):
        return folder_without_home() / "kldm"
    return place


def folder_without_home() -> Path:
    """A folder for temporary files that belongs to this user alone."""
    place = Path(tempfile.gettempdir()) / f"kldm-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    if place.is_symlink() or place.stat().st_uid != os.getuid():  # somebody else has made it
        return Path(tempfile.mkdtemp(prefix="kldm-"))
    return place


def key(source: Path) -> str:
    """sha256 of the bytes of the source file and of ``DATA_VERSION``. Raises ``KldmError`` for a pipe or a device."""
    refuse_irregular(source)
    digest = hashlib.sha256(f"kldm data {DATA_VERSION}\n".encode())
    with source.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def cached(source: Path, parse: Callable[[Path], Parsed]) -> Parsed:
    """The result of ``parse`` on the source, taken from the cache if the same file was parsed before.

    A broken cache file is replaced. If the cache cannot be written, the crystals are returned all the same.

    Raises:
        KldmError: the source cannot be read, or ``parse`` raises it.
    """
    try:
        path = folder() / "parsed" / f"{key(source)}.safetensors"
    except OSError as error:
        raise KldmError(f"cannot be read ({error.strerror})", place=str(source)) from None
    return load_or_make(path, "parsed crystals", load_store, lambda: parse(source), save_store)


def load_or_make(
    path: Path, what: str, load: Callable[[Path], T], make: Callable[[], T], save: Callable[[Path, T], None]
) -> T:
    """Load a value from its cache file, or make it and save it there for the next time.

    Args:
        path: the cache file.
        what: what the file holds, for the message that it could not be saved.
        load: reads the file; it raises ``KldmError`` if the file is broken, which is then replaced.
        make: computes the value if there is no usable file.
        save: writes the file; it raises ``KldmError`` if it cannot, which is logged and otherwise ignored.
    """
    if path.exists():
        try:
            return load(path)
        except KldmError as error:
            log.info("%s; it is replaced", error)
    value = make()
    try:
        save(path, value)
    except KldmError as error:
        log.warning("%s (%s are not kept for the next time)", error, what)
    return value


def save_store(path: Path, parsed: Parsed) -> None:
    """Write a store and what is reported of its rows atomically. Raises ``KldmError`` if the file cannot be written."""
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
        "skipped": json.dumps([attrs.astuple(row) for row in parsed.skipped]),
        "overlapping": json.dumps(parsed.overlapping),
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata))


def load_store(path: Path) -> Parsed:
    """Read a file that ``save`` wrote. Raises ``KldmError`` if it is missing, damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in FORMATS:
                raise ValueError(f"it is not of the format {FORMATS[-1]}")
            fractional, lattice = file.get_tensor("fractional"), file.get_tensor("lattice")
            species, sizes = file.get_tensor("species").to(torch.int64), tuple(file.get_tensor("sizes").tolist())
            ids = tuple(json.loads(metadata["ids"]))
            skipped = tuple(Skipped(*row) for row in json.loads(metadata["skipped"]))
            overlapping = tuple(json.loads(metadata.get("overlapping", "[]")))
            names = file.keys()
            per_crystal, per_atom = (
                {name.removeprefix(kind): file.get_tensor(name) for name in names if name.startswith(kind)}
                for kind in ("per_crystal.", "per_atom.")
            )
        atoms, crystals = sum(sizes), len(sizes)
        if not atoms == len(species) == len(fractional) or not crystals == len(lattice) == len(ids):
            raise ValueError("the sizes of its arrays disagree")
        if not crystals or min(sizes) < 1 or not bool(torch.isfinite(fractional).all() & torch.isfinite(lattice).all()):
            raise ValueError("it holds no crystals, or numbers that are not finite")
        if not 1 <= int(species.min()) <= int(species.max()) <= LAST_SPECIES:
            raise ValueError(f"it has an atomic number that is not from 1 to {LAST_SPECIES}")
        store = CrystalStore(fractional, species, lattice, sizes, ids, per_crystal, per_atom)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, KldmError) as error:
        raise KldmError(f"cannot be read as crystals ({error})", place=str(path)) from None
    return Parsed(store, skipped, overlapping)
