"""What samples are judged against: the split of a data set, or a file of structures."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kldm.crystals import CrystalStore
from kldm.data import SPLITS, Data
from kldm.errors import KldmError
from kldm.reading.rows import SampleFile, formulas
from kldm.reading.samples import read_file

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@attrs.frozen(eq=False)
class Reference:
    """Reference structures by row.

    Attributes:
        name: what was asked for, ``DATASET/SPLIT`` or a path.
        structures: None for a row whose structure cannot be built; the row keeps its number.
        reasons: why there is none, else empty.
        ids: of the rows in their data set; by default their numbers.
        whole: whether these are all crystals of the split of a data set.
    """

    name: str
    structures: "tuple[Structure | None, ...]"
    reasons: tuple[str, ...]
    ids: tuple[str, ...]
    whole: bool

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
        """Reduced, None where there is no structure."""
        return formulas(self.structures)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of results must know of it."""
        failed = [row for row, structure in enumerate(self.structures) if structure is None]
        if not failed:
            return ()
        first = f"the first is row {failed[0]}: {self.reasons[failed[0]]}"
        return (f"{len(failed)} of {len(self)} rows of the reference {self.name} are no structures ({first}).",)


def read_reference(source: str | Path) -> Reference:
    """The reference called ``DATASET/SPLIT`` (a known data set, or a folder or file that ``[data]`` takes), or that
    of a file or folder in any format of ``read_file``; what exists under that name comes first.

    Rows of a file that carry ``target`` are placed by it, others by their order.

    Raises:
        KldmError: there is no such reference, two rows claim one place, or a place is left empty.
    """
    if Path(source).expanduser().exists():
        return _placed(str(source), read_file(Path(source).expanduser()))
    with _told_of(source):
        data, split = _data(source)
        return Reference.of_store(str(source), data.load(split), whole=True)


def find_reference(source: str | Path) -> None:
    """See that there is such a reference, without reading or downloading it. Raises ``KldmError`` where not."""
    if not Path(source).expanduser().exists():
        with _told_of(source):
            data, split = _data(source)
            data.locate(split)


def _data(source: str | Path) -> tuple[Data, str]:
    name, _, split = str(source).rpartition("/")
    if not name or split not in SPLITS:
        remedy = f"write it like mp_20/test, with one of {', '.join(SPLITS)}"
        raise KldmError("neither a file nor DATASET/SPLIT", place=f"reference {source}", remedy=remedy)
    return Data(name=name), split


@contextmanager
def _told_of(source: str | Path) -> Iterator[None]:
    """An unknown name of a data set is one of the reference."""
    try:
        yield
    except KldmError as error:
        if error.place != "data.name":
            raise
        raise KldmError(error.problem, place=f"reference {source}", remedy=error.remedy) from None


def _placed(source: str, file: SampleFile) -> Reference:
    count, taken = len(file.candidates), dict[int, int]()
    for position, one in enumerate(file.candidates):
        if one.target in taken:
            first, remedy = file.places[taken[one.target]], "a reference has one structure for each target"
            raise KldmError(f"target {one.target} is that of {first} too", place=file.places[position], remedy=remedy)
        taken[one.target] = position
    missing = next((target for target in range(count) if target not in taken), None)
    if missing is not None:
        remedy = "number the rows from 0, with structure null where there is none"
        raise KldmError(f"no row has target {missing}, although {max(taken)} is used", place=source, remedy=remedy)
    order = [taken[target] for target in range(count)]
    return Reference(
        source,
        tuple(file.candidates[row].structure for row in order),
        tuple("" if (one := file.candidates[row]).structure is not None else one.reason for row in order),
        tuple(file.names[row] or str(target) for target, row in enumerate(order)),
        whole=False,
    )
