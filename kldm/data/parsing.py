"""CIF texts to Niggli-reduced crystals, on all cores, with a report of the rows that could not be read.

The workers are joblib's, which do not run the caller's main module again, so that a script needs no main guard.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import attrs

from kldm.crystals import CrystalStore, lattice_matrix
from kldm.data.arrays import LAST_SPECIES, OVERLAP, Arrays, pack, too_close
from kldm.data.cifs import read_text
from kldm.data.convert import structure_arrays
from kldm.errors import KldmError, reason_of

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

MOST_SKIPPED = 0.01
"""The largest fraction of rows that may be unreadable; more is an error."""

CHUNK = 64
"""Texts that a worker takes at a time: half a second of work."""

IDLE = 5
"""Seconds after which idle workers end, so that they hold no memory while a model trains."""

S = TypeVar("S")
T = TypeVar("T")

log = logging.getLogger("kldm.data")


@attrs.frozen
class Skipped:
    """A row that could not be read: its number (from 0), its id and the reason."""

    row: int
    id: str
    reason: str


@attrs.frozen(eq=False)
class Parsed:
    """The content of a source: the crystals that could be read, the rows that could not, and the ids of the crystals
    with atoms closer than ``OVERLAP``, which are kept."""

    store: CrystalStore
    skipped: tuple[Skipped, ...] = ()
    overlapping: tuple[str, ...] = ()

    def report(self, source: str) -> None:
        """Log a warning for every skipped row, one with their number, and one if atoms lie on top of each other."""
        for skipped in self.skipped:
            log.warning("%s: row %d (%s) skipped: %s", source, skipped.row, skipped.id, skipped.reason)
        if self.skipped:
            total = len(self.store) + len(self.skipped)
            log.warning("%s: %d of %d rows skipped", source, len(self.skipped), total)
        if self.overlapping:
            problem = "%s: %d of %d crystals have atoms closer than %g angstrom (the first is %s)"
            log.warning(problem, source, len(self.overlapping), len(self.store), OVERLAP, self.overlapping[0])


def reduced(structure: "Structure") -> Arrays:
    """The Niggli-reduced cell of a structure (I. Krivy and B. Gruber, Acta Cryst. A 32, 297, 1976).

    Raises:
        ValueError: the structure cannot be reduced or has an element beyond ``LAST_SPECIES``.
    """
    result = structure_arrays(structure.get_reduced_structure())
    if result[2].max() > LAST_SPECIES:
        raise ValueError(f"atomic number {result[2].max()} is above {LAST_SPECIES}")
    return result


def reduced_or_reason(read: Callable[[S], "Structure"], source: S) -> Arrays | str:
    """The reduced crystal that ``read`` makes of the source, or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen remarks on elements without an electronegativity
            return reduced(read(source))
    except Exception as error:  # damaged input makes the parser raise anything; the row is skipped and reported
        return reason_of(error)


def parse_cif(text: str) -> Arrays | str:
    """The reduced crystal of a CIF, or of pymatgen's dict as a text, or the reason why there is none."""
    return reduced_or_reason(partial(read_text, rounded=True), text)


def parse_texts(
    parse: Callable[[S], T], texts: Sequence[S], description: str, *, workers: int | None = None, delay: float = 0
) -> list[T]:
    """``parse`` of many texts, in order, with a progress bar on stderr.

    Args:
        parse: a function at the top of a module.
        texts: its arguments, such as CIF texts.
        description: label of the progress bar.
        workers: processes; by default one for each CPU, or only this process if there is little to do.
        delay: seconds before the progress bar appears.
    """
    import joblib
    from tqdm import tqdm

    chunks = [texts[first : first + CHUNK] for first in range(0, len(texts), CHUNK)]
    workers = workers or (joblib.cpu_count() if len(chunks) > 8 else 1)
    parsed: list[T] = []
    with (
        tqdm(total=len(texts), desc=description, unit="crystal", delay=delay, disable=None) as bar,
        joblib.parallel_config("loky", inner_max_num_threads=1, idle_worker_timeout=IDLE),
    ):
        tasks = (joblib.delayed(_parse_chunk)(parse, chunk) for chunk in chunks)
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)
        results: Iterator[list[T]] = parallel(tasks)
        for result in results:
            parsed += result
            bar.update(len(result))
    return parsed


def _parse_chunk(parse: Callable[[S], T], texts: Sequence[S]) -> list[T]:
    return [parse(text) for text in texts]


def collect(results: Sequence[Arrays | str], ids: Sequence[str], source: str) -> Parsed:
    """Separate the crystals from the rows that could not be read.

    Raises:
        KldmError: more than one row in a hundred could not be read, or none could.
    """
    pairs = list(zip(results, ids, strict=True))
    crystals = [(result, name) for result, name in pairs if not isinstance(result, str)]
    skipped = tuple(Skipped(row, name, result) for row, (result, name) in enumerate(pairs) if isinstance(result, str))
    if len(skipped) > MOST_SKIPPED * len(results) or not crystals:
        first = f", the first is row {skipped[0].row} ({skipped[0].id}): {skipped[0].reason}" if skipped else ""
        raise KldmError(f"{len(skipped)} of {len(results)} rows cannot be read{first}", place=source)
    store = pack([arrays for arrays, _ in crystals], [name for _, name in crystals])
    matrices = lattice_matrix(store.lattice.double()).numpy()
    pairs_of = zip(crystals, matrices, strict=True)
    overlapping = tuple(name for (arrays, name), matrix in pairs_of if too_close(matrix, arrays[0].astype(float)))
    return Parsed(store, skipped, overlapping)
