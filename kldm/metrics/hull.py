"""Energy above the convex hull of competing phases, and the phases: entries of a file that the user brings."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from tqdm import tqdm

from kldm.errors import KldmError
from kldm.interfaces import EnergyScale, Json
from kldm.metrics.pool import Failure, each

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Scheme = Literal["none", "mp2020"]
"""Corrections in the energies of a file of entries: none, or those of ``MaterialsProject2020Compatibility``."""

Formula = tuple[tuple[str, float], ...]
"""Symbols and fractions, sorted by symbol; fractions rounded, so that equal compositions are equal."""

SPECIES = re.compile(r"([A-Z][a-z]?)(?:\d*\.?\d*[+-])?")
"""An element, perhaps with an oxidation state."""

REMEDY = "give pymatgen's ComputedEntry dicts as a JSON list, or the entries.json.gz of `kldm relax`"


@attrs.frozen(eq=False)
class Hull:
    """The lowest energy of every composition in a file, eV/atom.

    Attributes:
        name: the file.
        scheme: corrections in the energies; None where they are of ``potential``.
        potential: identity of the potential whose energies they are; None for those of density functional theory.
        entries: how many there were.
        lowest: by the elements of a composition, then by the composition.
    """

    name: str
    scheme: Scheme | None
    potential: Mapping[str, Json] | None
    entries: int
    lowest: Mapping[frozenset[str], Mapping[Formula, float]]

    def phases(self, elements: frozenset[str]) -> dict[Formula, float]:
        """All that compete with a composition of these elements."""
        subsets = chain.from_iterable(combinations(sorted(elements), size) for size in range(1, len(elements) + 1))
        return {
            formula: energy for subset in subsets for formula, energy in self.lowest.get(frozenset(subset), {}).items()
        }

    def lacks(self, elements: frozenset[str]) -> frozenset[str]:
        """Those without an elemental phase: compositions with them have no energy above hull."""
        return frozenset(element for element in elements if frozenset((element,)) not in self.lowest)


def read_hull(path: Path, corrections: Scheme | None) -> Hull:
    """The entries of a JSON file (a list) or of JSON lines (which need no memory for the whole), gzipped or not.

    Energies are ``energy`` + ``correction`` of each entry, eV per its composition. Entries of ``kldm relax`` say by
    which potential they were made; of others the user says what corrections are in them.

    Raises:
        KldmError: the file cannot be read, or its energies do not belong together.
    """
    try:
        return _read_hull(path, corrections, path.stat().st_mtime_ns)
    except OSError as error:
        raise KldmError(f"cannot be read ({error.strerror or error})", place=str(path), remedy=REMEDY) from error
    except (EOFError, zlib.error, ValueError, RecursionError) as error:
        raise KldmError("the file is not JSON, or it is cut short", place=str(path), remedy=REMEDY) from error


@lru_cache(maxsize=1)
def _read_hull(path: Path, corrections: Scheme | None, _: int) -> Hull:
    """Of a file at a time of its last change: a metric asks before training and after sampling."""
    count = 0
    lowest: dict[frozenset[str], dict[Formula, float]] = {}
    sources: dict[str, Mapping[str, Json] | None] = {}
    for record in tqdm(_records(path), desc=f"reading {path.name}", unit="entry", delay=2, disable=None):
        place, count = f"{path}, entry {count}", count + 1
        formula, energy = _entry(record, place)
        kept = lowest.setdefault(frozenset(symbol for symbol, _ in formula), {})
        kept[formula] = min(energy, kept.get(formula, math.inf))
        source = _potential(record, place)
        sources.setdefault(json.dumps(source, sort_keys=True), source)
        if len(sources) > 1:
            remedy = "take entries of one potential, or of none"
            raise KldmError("its energy is of another potential than those before", place=place, remedy=remedy)
    if not sources:
        raise KldmError("the file has no list of entries", place=str(path), remedy=REMEDY)
    (potential,) = sources.values()
    if potential is None and corrections is None:
        remedy = "say what corrections are in its energies: none or mp2020"
        raise KldmError("the entries name no potential", place=str(path), remedy=remedy)
    if potential is not None and corrections not in (None, "none"):
        remedy = "leave the corrections out"
        raise KldmError("the entries are energies of a potential, without corrections", place=str(path), remedy=remedy)
    return Hull(str(path), None if potential is not None else corrections, potential, count, lowest)


def check_scales(hull: Hull, scale: EnergyScale, identity: Mapping[str, Json]) -> None:
    """See that energies of a potential may be compared with a hull's.

    Raises:
        KldmError: they are of another potential, or corrected in another way.
    """
    if hull.potential is not None:
        if dict(hull.potential) != dict(identity):
            theirs, ours = (json.dumps(one, sort_keys=True) for one in (hull.potential, identity))
            remedy = "relax the reference with the same potential"
            raise KldmError(f"its energies are of {theirs}, not of {ours}", place=hull.name, remedy=remedy)
        return
    if scale == "own" or (scale == "mp2020" and hull.scheme != "mp2020"):
        what = "with its own alone" if scale == "own" else "with MP2020-corrected ones alone"
        remedy = "relax a reference with this potential (`kldm relax`) and give its entries.json.gz"
        raise KldmError(f"energies of {identity['name']} compare {what}", place=hull.name, remedy=remedy)


def above_hull(
    structures: "Sequence[Structure]", energies: Sequence[float], hull: Hull, *, workers: int = 1
) -> list[float | None]:
    """E - E_hull in eV/atom for each structure: negative below the hull of the reference, whose parts the structures
    are not; None where the reference lacks one of the elements.

    Args:
        energies: eV/atom, on the hull's scale.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for row, structure in enumerate(structures):
        groups.setdefault(frozenset(structure.composition.get_el_amt_dict()), []).append(row)
    found: list[float | None] = [None] * len(structures)
    supported = {elements: rows for elements, rows in groups.items() if not hull.lacks(elements)}
    compositions = [_formula(structure.composition.get_el_amt_dict()) for structure in structures]
    items = [(hull.phases(elements), [compositions[row] for row in rows]) for elements, rows in supported.items()]
    work = each(_heights, items, workers=workers, description="convex hulls", unit="system")
    for rows, heights in zip(supported.values(), work, strict=True):
        if not isinstance(heights, Failure):
            for row, height in zip(rows, heights, strict=True):
                found[row] = energies[row] - height
    return found


def _heights(item: tuple[Mapping[Formula, float], Sequence[Formula]]) -> list[float]:
    """Energies of the hull at compositions, eV/atom."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core.composition import Composition

    phases, wanted = item
    diagram = PhaseDiagram([PDEntry(Composition(dict(formula)), energy) for formula, energy in phases.items()])
    return [float(diagram.get_hull_energy_per_atom(Composition(dict(formula)))) for formula in wanted]


def _formula(amounts: Mapping[str, float]) -> Formula:
    total = sum(amounts.values())
    return tuple(sorted((symbol, round(amount / total, 9)) for symbol, amount in amounts.items()))


def _records(path: Path) -> Iterator[Any]:
    packed = path.suffix == ".gz"
    with path.open("rb") as file, gzip.open(file) if packed else nullcontext(file) as lines:
        if Path(path.name.removesuffix(".gz")).suffix == ".jsonl":
            yield from (json.loads(line) for line in lines if line.strip())
            return
        content = json.load(lines)
    if isinstance(content, Mapping):
        content = content.get("entries")
    if isinstance(content, list):
        yield from content


def _potential(record: Mapping[str, Any], place: str) -> Mapping[str, Json] | None:
    """The identity of the potential that an entry names."""
    parameters = record.get("parameters") or {}
    source = parameters.get("potential") if isinstance(parameters, Mapping) else parameters
    if source is not None and not isinstance(source, Mapping):
        raise KldmError("its parameters name no potential as `kldm relax` does", place=place, remedy=REMEDY)
    return source


def _entry(record: Any, place: str) -> tuple[Formula, float]:
    """Composition and eV/atom. Nothing in the record but numbers and symbols is looked at."""
    from pymatgen.core.periodic_table import Element

    try:
        amounts: dict[str, float] = {}
        for name, amount in record["composition"].items():
            if amount and (species := SPECIES.fullmatch(name)):
                amounts[species[1]] = amounts.get(species[1], 0.0) + float(amount)
            elif amount:
                raise ValueError
        energy = (float(record["energy"]) + float(record.get("correction") or 0.0)) / sum(amounts.values())
        if not math.isfinite(energy) or min(amounts.values()) <= 0 or not all(map(Element.is_valid_symbol, amounts)):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        problem = "is no entry with a composition and a finite energy"
        raise KldmError(problem, place=place, remedy=REMEDY) from error
    return _formula(amounts), energy
