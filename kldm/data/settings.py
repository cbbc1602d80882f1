"""The section [data] of a recipe, and the splits that it describes."""

import logging
from pathlib import Path

import attrs

from kldm.crystals import CrystalStore
from kldm.data import cache, prototypes
from kldm.data.parsing import Parsed
from kldm.data.published import no_column, read_columns, read_csv
from kldm.data.sources import SOURCES, SPLITS, SUFFIXES, find, in_folder, local_file
from kldm.data.splits import split_rows
from kldm.errors import KldmError, nearest
from kldm.runtime.paths import expanded
from kldm.validators import at_least

KNOWN = (*SOURCES, prototypes.NAME)

_SMALL = 200_000  # bytes of a CSV, some hundred crystals

log = logging.getLogger("kldm.data")


@attrs.frozen(kw_only=True)
class Data:
    """A data set of Niggli-reduced crystals in the splits train, val and test.

    Args:
        name: a known data set (mp_20, mpts_52, perov_5, carbon_24, aflow_prototypes); or the path of a folder with
            ``<split>.csv``, ``.csv.gz`` or ``.safetensors``; or the path of one such file, which is split 80/10/10
            by composition, the same on every machine.
        root: folder of a known data set's files, instead of ``$KLDM_DATA``, the cache and the download.
        max_atoms: leave out larger crystals; None keeps all (of aflow_prototypes, those with at most 20 atoms).
        columns: further columns of the files that the crystals keep, such as ``formation_energy_per_atom``. In a CSV
            they are numbers per crystal; an empty cell is NaN.
    """

    name: str
    root: str | None = None
    max_atoms: int | None = attrs.field(default=None, validator=attrs.validators.optional(at_least(1)))
    columns: tuple[str, ...] = ()

    def load(self, split: str) -> CrystalStore:
        """The crystals of ``train``, ``val`` or ``test``, in the order of their file.

        Raises:
            KldmError: the name is unknown (with the nearest known one); the split is missing (with the file that was
                looked for); the download fails; more than 1 % of a file cannot be read; or a column is missing or
                holds text.
        """
        file = self._local_file(split)
        if file is None:
            return self._read(find(SOURCES[self.name], split))
        if self.name == prototypes.NAME:
            parsed = self._with_columns(cache.cached(file, prototypes.read_prototypes), file)
            store = self._within_max_atoms(parsed, file, prototypes.MAX_ATOMS)
        else:
            store = self._read(file)
        one_file = self.name == prototypes.NAME or expanded(self.name) == file
        return store.subset(split_rows(store)[split]) if one_file else store

    def loads_at_once(self, split: str) -> bool:
        """Whether ``load`` takes seconds at most: the file is small and on this machine."""
        file = self._local_file(split)
        return file is not None and (file.suffix == ".safetensors" or file.stat().st_size < _SMALL)

    def locate(self, split: str) -> str:
        """The file or address from which ``load`` would take the split, in words; nothing is read or downloaded.

        Raises:
            KldmError: the name or the split is unknown, or the folder lacks the split.
        """
        return str(self._local_file(split) or f"to be downloaded from {SOURCES[self.name].url(split)}")

    def _local_file(self, split: str) -> Path | None:
        """The file that holds the split, alone or with others; None if it would be downloaded."""
        if split not in SPLITS:
            raise KldmError("no such split", place=f"split {split}", remedy=f"take one of {', '.join(SPLITS)}")
        if self.name == prototypes.NAME:
            return prototypes.prototypes_file()
        if self.name in SOURCES:
            root = None if self.root is None else expanded(self.root)
            return local_file(SOURCES[self.name], split, root)
        path = expanded(self.name)
        if path.is_dir():
            return in_folder(path, split)
        if path.is_file() and path.name.endswith(SUFFIXES):
            return path
        raise KldmError(
            f"{self.name!r} is neither a known data set nor a folder nor a {', '.join(SUFFIXES)} file",
            place="data.name",
            remedy=nearest(self.name, KNOWN) or f"known are {', '.join(KNOWN)}",
        )

    def _read(self, path: Path) -> CrystalStore:
        parsed = cache.load_store(path) if path.suffix == ".safetensors" else cache.cached(path, read_csv)
        return self._within_max_atoms(self._with_columns(parsed, path), path)

    def _with_columns(self, parsed: Parsed, path: Path) -> Parsed:
        """The crystals with the requested columns alone. Columns of a CSV are read from it each time, so that one cache
        file of its crystals serves every choice of columns."""
        store = parsed.store
        if self.columns and path.name.endswith((".csv", ".csv.gz")):
            unread = {skipped.row for skipped in parsed.skipped}
            rows = [row for row in range(len(store) + len(unread)) if row not in unread]
            columns = read_columns(path, self.columns)
            store = attrs.evolve(store, per_crystal={name: values[rows] for name, values in columns.items()})
        known = {**store.per_crystal, **store.per_atom}
        for name in self.columns:
            if name not in known:
                raise no_column(name, known, path)
        per_crystal = {name: values for name, values in store.per_crystal.items() if name in self.columns}
        per_atom = {name: values for name, values in store.per_atom.items() if name in self.columns}
        return attrs.evolve(parsed, store=attrs.evolve(store, per_crystal=per_crystal, per_atom=per_atom))

    def _within_max_atoms(self, parsed: Parsed, path: Path, default: int | None = None) -> CrystalStore:
        """The crystals that are small enough, after a report of the rows that could not be read."""
        parsed.report(str(path))
        largest = self.max_atoms if self.max_atoms is not None else default
        rows = [row for row, size in enumerate(parsed.store.sizes) if largest is None or size <= largest]
        if len(rows) == len(parsed.store):
            return parsed.store
        log.info("%s: %d crystals of more than %s atoms left out", path, len(parsed.store) - len(rows), largest)
        if not rows:
            raise KldmError(f"no crystal has at most {largest} atoms", place=str(path), remedy="raise max_atoms")
        return parsed.store.subset(rows)
