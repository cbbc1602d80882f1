"""CIF texts to Niggli-reduced crystals, on all cores, with an account of what could not be read.

Uses joblib, whose workers do not run the caller's main module again, so that a script needs no main guard.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from kldm.crystals import CrystalStore
from kldm.data.arrays import Arrays, pack
from kldm.data.convert import structure_arrays
from kldm.errors import KldmError

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

LAST_SPECIES = 100
"""The vocabulary of atomic numbers that models are built for is 1 to this."""

MOST_SKIPPED = 0.01
"""A larger part of rows that cannot be read is an error."""

CHUNK = 64
"""Rows that a worker takes at a time: half a second of work."""

IDLE = 5
"""Seconds after which idle workers end, so that none of them sits in memory while a model trains."""

log = logging.getLogger("kldm.data")


@attrs.frozen
class Skipped:
    """A row that could not be read: its number from 0, its id and the reason."""

    row: int
    id: str
    reason: str


@attrs.frozen(eq=False)
class Parsed:
    """What a source holds: the crystals that could be read, and the rows that could not."""

    store: CrystalStore
    skipped: tuple[Skipped, ...] = ()

    def report(self, source: str) -> None:
        """Warn of every skipped row, with a count."""
        for one in self.skipped:
            log.warning("%s: row %d (%s) skipped: %s", source, one.row, one.id, one.reason)
        if self.skipped:
            total = len(self.store) + len(self.skipped)
            log.warning("%s: %d of %d rows skipped", source, len(self.skipped), total)


def reduced(structure: "Structure") -> Arrays:
    """The Niggli-reduced cell of a structure (I. Krivy and B. Gruber, Acta Cryst. A 32, 297, 1976).

    Raises:
        ValueError: with the reason, where the structure is disordered, cannot be reduced or leaves the vocabulary.
    """
    if not structure.is_ordered:
        raise ValueError("it is disordered")
    result = structure_arrays(structure.get_reduced_structure())
    if result[2].max() > LAST_SPECIES:
        raise ValueError(f"atomic number {result[2].max()} is above {LAST_SPECIES}")
    return result


def parse_cif(cif: str) -> Arrays | str:
    """The reduced crystal of one CIF text, or why there is none."""
    from pymatgen.core.structure import Structure

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # rounding of 1/3 and the like, once for every second row
            return reduced(Structure.from_str(cif, fmt="cif"))
    except Exception as error:  # whatever a damaged text makes the parser do, the row is skipped and reported
        return " ".join(str(error).split())[:200] or type(error).__name__


def parse_cifs(cifs: Sequence[str], name: str, workers: int | None = None) -> list[Arrays | str]:
    """``parse_cif`` of many texts, in order, with a progress bar on stderr.

    Args:
        cifs: CIF texts.
        name: what the progress bar calls them.
        workers: processes; by default one for each CPU, or none beside this one where there is little to do.
    """
    import joblib
    from tqdm import tqdm

    chunks = [cifs[first : first + CHUNK] for first in range(0, len(cifs), CHUNK)]
    workers = workers or (joblib.cpu_count() if len(chunks) > 8 else 1)
    done: list[Arrays | str] = []
    with (
        tqdm(total=len(cifs), desc=f"parsing {name}", unit="crystal", disable=None) as bar,
        joblib.parallel_config("loky", inner_max_num_threads=1, idle_worker_timeout=IDLE),
    ):
        tasks: Iterator[tuple[Callable[..., object], tuple[object, ...], dict[str, object]]]
        tasks = (joblib.delayed(_chunk)(chunk) for chunk in chunks)
        for results in joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)(tasks):
            done += results
            bar.update(len(results))
    return done


def collect(results: Sequence[Arrays | str], ids: Sequence[str], source: str) -> Parsed:
    """Crystals and skipped rows, kept apart.

    Raises:
        KldmError: where more than one row in a hundred was skipped, or nothing is left.
    """
    read = [(row, name) for row, name in zip(results, ids, strict=True) if not isinstance(row, str)]
    skipped = tuple(
        Skipped(number, name, row)
        for number, (row, name) in enumerate(zip(results, ids, strict=True))
        if isinstance(row, str)
    )
    if len(skipped) > MOST_SKIPPED * len(results) or not read:
        first = f", the first is row {skipped[0].row} ({skipped[0].id}): {skipped[0].reason}" if skipped else ""
        raise KldmError(f"{len(skipped)} of {len(results)} rows cannot be read{first}", place=source)
    return Parsed(pack([row for row, _ in read], [name for _, name in read]), skipped)


def _chunk(cifs: Sequence[str]) -> list[Arrays | str]:
    return [parse_cif(cif) for cif in cifs]
