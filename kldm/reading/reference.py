"""The structures that samples are compared with: the split of a data set, or a file of structures."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kldm.crystals import CrystalStore
from kldm.data import SPLITS, Data
from kldm.data.arrays import OVERLAP, too_close
from kldm.errors import KldmError
from kldm.interfaces import UNPLACED
from kldm.reading.rows import SampleFile, formulas
from kldm.reading.samples import read_file
from kldm.runtime.paths import expanded

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@attrs.frozen(eq=False)
class Reference:
    """Reference structures by row.

    Attributes:
        name: ``DATASET/SPLIT`` or a path, as it was requested.
        structures: None for a row whose structure cannot be built; the row keeps its number.
        reasons: why a row has no structure; empty if it has one.
        ids: ids of the rows in their data set; by default their numbers.
        whole: whether these are all crystals of a split of a data set.
        doubts: sentences on how the structures were read from a file.
    """

    name: str
    structures: "tuple[Structure | None, ...]"
    reasons: tuple[str, ...]
    ids: tuple[str, ...]
    whole: bool
    doubts: tuple[str, ...] = ()

    @classmethod
    def of_store(cls, name: str, store: CrystalStore, whole: bool) -> "Reference":
        """The crystals of a data set, or a part of them."""
        from kldm.data.convert import to_structure_or_reason

        pairs = to_structure_or_reason(store)
        structures, reasons = (tuple(part) for part in zip(*pairs, strict=True)) if pairs else ((), ())
        return cls(name, structures, reasons, store.ids, whole)

    def __len__(self) -> int:
        return len(self.structures)

    @cached_property
    def formulas(self) -> tuple[str | None, ...]:
        """The reduced formula of each row; None if it has no structure."""
        return formulas(self.structures)

    def notes(self, role: str = "reference") -> tuple[str, ...]:
        """Sentences that a reader of the results must see, which call it the ``role``."""
        failed = [row for row, structure in enumerate(self.structures) if structure is None]
        notes = []
        if failed:
            first = f"the first is row {failed[0]}: {self.reasons[failed[0]]}"
            notes.append(f"{len(failed)} of {len(self)} rows of the {role} {self.name} are no structures ({first}).")
        return (*notes, *self.doubts, *self._overlap_note(role))

    def _overlap_note(self, role: str) -> tuple[str, ...]:
        close = [
            row
            for row, structure in enumerate(self.structures)
            if structure is not None and too_close(structure.lattice.matrix, structure.frac_coords)
        ]
        if not close:
            return ()
        problem = f"{len(close)} of {len(self)} structures of the {role} {self.name} have atoms closer than"
        return (f"{problem} {OVERLAP:g} angstrom (the first is row {close[0]}).",)


def read_reference(source: str | Path, called: str = "reference") -> Reference:
    """The reference called ``DATASET/SPLIT`` (a known data set, or a folder or file that ``[data]`` takes), or a file
    or folder in any format of ``read_file``. An existing path comes first.

    The rows of a file are ordered by their ``target`` if they carry one.

    Args:
        source: the name or the path.
        called: what it is for, for messages.

    Raises:
        KldmError: there is no such reference, it holds no structure, two rows claim one place, or a place is left
            empty.
    """
    if expanded(source).exists():
        return _from_file(str(source), read_file(expanded(source)))
    with _errors_at(source, called):
        data, split = _data(source)
        return Reference.of_store(str(source), data.load(split), whole=True)


def find_reference(source: str | Path) -> None:
    """Check that there is such a reference, without reading or downloading it. Raises ``KldmError`` if not."""
    if not expanded(source).exists():
        with _errors_at(source, "reference"):
            data, split = _data(source)
            data.locate(split)


def _data(source: str | Path) -> tuple[Data, str]:
    name, _, split = str(source).rpartition("/")
    if not name or split not in SPLITS:
        remedy = f"write it like mp_20/test, with one of {', '.join(SPLITS)}"
        raise KldmError("neither a file nor DATASET/SPLIT", place="data.name", remedy=remedy)
    return Data(name=name), split


@contextmanager
def _errors_at(source: str | Path, called: str) -> Iterator[None]:
    """Errors of an unknown data set name what it is for as their place."""
    try:
        yield
    except KldmError as error:
        if error.place != "data.name":
            raise
        raise KldmError(error.problem, place=f"{called} {source}", remedy=error.remedy) from None


def _from_file(source: str, file: SampleFile) -> Reference:
    count, positions = len(file.candidates), dict[int, int]()
    for position, candidate in enumerate(file.candidates):
        target = candidate.target
        if target == UNPLACED:
            continue
        if target in positions:
            first, remedy = file.places[positions[target]], "a reference has one structure for each target"
            raise KldmError(f"target {target} is that of {first} too", place=file.places[position], remedy=remedy)
        positions[target] = position
    missing = [target for target in range(count) if target not in positions]
    unplaced = [position for position, candidate in enumerate(file.candidates) if candidate.target == UNPLACED]
    if len(missing) == len(unplaced):  # they must be these
        positions |= dict(zip(missing, unplaced, strict=True))
    else:
        remedy = "number the rows from 0, with structure null where there is none"
        problem = f"no row has target {missing[0]}, although {max(positions)} is used"
        raise KldmError(problem, place=source, remedy=remedy)
    if all(candidate.structure is None for candidate in file.candidates):
        reason = file.candidates[0].reason
        raise KldmError(f"none of its {count} rows is a structure ({reason})", place=source)
    order = [positions[target] for target in range(count)]
    rows = [file.candidates[position] for position in order]
    return Reference(
        source,
        tuple(row.structure for row in rows),
        tuple("" if row.structure is not None else row.reason for row in rows),
        tuple(file.names[position] or str(target) for target, position in enumerate(order)),
        whole=False,
        doubts=file.notes,
    )
