"""Energy above the convex hull of competing phases, which are entries of files that the user provides."""

import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np
from tqdm import tqdm

from kldm.data.structures import atomic_number
from kldm.errors import KldmError
from kldm.interfaces import EnergyScale, Json
from kldm.reading.layouts import Unparsed, only_record, read_items
from kldm.runtime.files import digest
from kldm.runtime.pool import Failure, parallel_map

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Scheme = Literal["none", "mp2020"]
"""The corrections that the energies of a file contain: none, or those of ``MaterialsProject2020Compatibility``."""

Fractions = tuple[tuple[str, float], ...]
"""Symbols and fractions, sorted by symbol; fractions rounded, so that equal compositions are equal."""

FUNCTIONALS = ("GGA", "GGA+U", "GGA_U", "PBE", "PBE+U", "PBE_U", "GGA_GGA+U", "GGA_GGA_U")
"""What entries with energies of PBE(+U) name as their functional: the potentials whose energies are compared with those
of density functional theory predict these."""

_OTHER_SCALE = re.compile(
    r"r2?scan|(?<![a-z])(?:scan|rpbe|lda|pz|hse\d*|pbe0|b3lyp|optb\w+|vdw[- ]?df\w*)(?![a-z])|pbe_?sol|paw_ps"
    r"|mixing ?scheme|mixing adjustment",
    re.IGNORECASE,
)
"""Names, parameters and corrections by which entries of other functionals, or of a mixture, are told."""

FAR = 1.0
"""eV/atom; an entry that lies further below all others of its composition is doubted."""

DEEPEST = 6.0
"""eV/atom; no known compound lies further from its elements (the fluorides of rare earths: 4.5)."""

LEAST = 1e-6
"""Smallest share of an element in an entry; no cell has a smaller one."""

_FUNCTIONAL_KEYS = ("run_type", "thermo_type", "functional", "xc_functional", "xc")
"""Keys of an entry, its parameters and its data that name the functional."""

_REMEDY = "give pymatgen's ComputedEntry dicts, as a JSON list or one per line, or the entries.json.gz of `kldm relax`"


@attrs.frozen(eq=False)
class Hull:
    """The lowest energy of every composition in files of entries, eV/atom.

    Attributes:
        names: the files.
        sha256: the digest of each file.
        scheme: corrections in the energies; None if a potential predicted them.
        potential: identity of the potential that predicted the energies; None for density functional theory.
        entries: the number of entries.
        lowest: the energies, by the elements of a composition and then by the composition.
        notes: sentences on energies that may be wrong.
    """

    names: tuple[str, ...]
    sha256: tuple[str, ...]
    scheme: Scheme | None
    potential: Mapping[str, Json] | None
    entries: int
    lowest: Mapping[frozenset[str], Mapping[Fractions, float]]
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The files, for messages."""
        return ", ".join(self.names)

    def phases(self, elements: frozenset[str]) -> dict[Fractions, float]:
        """All phases that compete with a composition of these elements."""
        subsets: Iterable[frozenset[str]] = self.lowest
        if 2 ** len(elements) < len(self.lowest):
            sizes = range(1, len(elements) + 1)
            subsets = (frozenset(subset) for size in sizes for subset in combinations(sorted(elements), size))
        groups = (self.lowest.get(subset, {}) for subset in subsets if subset <= elements)
        return {formula: energy for group in groups for formula, energy in group.items()}

    def lacks(self, elements: frozenset[str]) -> frozenset[str]:
        """The elements without an elemental phase: compositions with them have no energy above hull."""
        return frozenset(element for element in elements if frozenset((element,)) not in self.lowest)


def read_hull(paths: Sequence[Path], corrections: Scheme | None) -> Hull:
    """Read the entries of JSON files or JSON lines in the layouts of ``kldm.reading.layouts``, compressed by gzip or
    bzip2 or not.

    Energies are ``energy`` + ``correction`` of each entry, in eV per its composition. Entries of ``kldm relax`` name
    the potential that predicted them; of others the user has to say which corrections they contain.

    Raises:
        KldmError: a file cannot be read, or the energies are of different kinds.
    """
    modified = []
    for path in paths:
        with _readable(path):
            modified.append(path.stat().st_mtime_ns)
    return _read_hull(tuple(paths), corrections, tuple(modified))


@lru_cache(maxsize=1)
def _read_hull(paths: tuple[Path, ...], corrections: Scheme | None, _: tuple[int, ...]) -> Hull:
    """Cached by the times of the last changes, as a metric reads its hull before training and after sampling."""
    count = corrected = oxides = 0
    lowest: dict[frozenset[str], dict[Fractions, float]] = {}
    sources: dict[str, Mapping[str, Json] | None] = {}
    second: dict[Fractions, float] = {}
    for place, record in _entries(paths):
        count += 1
        formula, energy = _entry(record, place)
        if record.get("correction"):
            corrected += 1
            if corrections == "none":
                problem = f"its correction is {float(record['correction']):g} eV, although corrections are none"
                remedy = "set corrections to mp2020 if it is one of that scheme, or give entries without corrections"
                raise KldmError(problem, place=place, remedy=remedy)
        oxides += len(formula) > 1 and any(symbol == "O" for symbol, _ in formula)
        phases = lowest.setdefault(frozenset(symbol for symbol, _ in formula), {})
        if formula in phases:
            second[formula] = min(second.get(formula, math.inf), max(energy, phases[formula]))
        phases[formula] = min(energy, phases.get(formula, math.inf))
        source = _potential(record, place)
        if source is None:
            _check_functional(record, place)
        sources.setdefault(json.dumps(source, sort_keys=True), source)
        if len(sources) > 1:
            remedy = "give entries that all have energies of the same potential, or none of a potential"
            raise KldmError("its energy is of another potential than those before", place=place, remedy=remedy)
    (potential,) = sources.values()
    place = ", ".join(map(str, paths))
    if potential is None and corrections is None:
        remedy = "set corrections to those that the energies contain: none or mp2020"
        raise KldmError("the entries name no potential", place=place, remedy=remedy)
    if potential is not None and corrections not in (None, "none"):
        remedy = "leave the corrections out"
        raise KldmError("the entries are energies of a potential, without corrections", place=place, remedy=remedy)
    notes = _notes(place, lowest, second)
    if potential is None and corrections == "mp2020" and oxides and not corrected:
        doubt = "no entry has a correction, although corrections are mp2020; are they in the energies already?"
        notes = (f"{place}: {doubt}", *notes)
    return Hull(
        tuple(map(str, paths)),
        tuple(map(digest, paths)),
        None if potential is not None else corrections,
        potential,
        count,
        lowest,
        notes,
    )


def _notes(
    place: str, lowest: Mapping[frozenset[str], Mapping[Fractions, float]], second: Mapping[Fractions, float]
) -> tuple[str, ...]:
    """What a reader must know about energies that may be wrong."""
    energies = {formula: energy for phases in lowest.values() for formula, energy in phases.items()}
    doubts: dict[Fractions, str] = {}
    for formula, energy in energies.items():
        elements = [(energies.get(((symbol, 1.0),)), share) for symbol, share in formula]
        of_elements = sum(share * known for known, share in elements if known is not None)
        if second.get(formula, energy) - energy > FAR:
            doubts[formula] = f"lies more than {FAR:g} eV/atom below all others of its composition"
        elif all(known is not None for known, _ in elements) and abs(energy - of_elements) > DEEPEST:
            doubts[formula] = f"lies more than {DEEPEST:g} eV/atom from its elements"
    notes = [
        f"{place}: the lowest entry of {_text(formula)} ({energies[formula]:.4g} eV/atom) {doubt}, so one may be wrong."
        for formula, doubt in list(doubts.items())[:_MOST_NOTES]
    ]
    if len(doubts) > _MOST_NOTES:
        notes.append(f"{place}: {len(doubts) - _MOST_NOTES} more entries are doubted alike.")
    return tuple(notes)


_MOST_NOTES = 5


def _text(formula: Fractions) -> str:
    from pymatgen.core.composition import Composition

    return Composition(dict(formula)).get_integer_formula_and_factor(max_denominator=100)[0]


def check_scales(hull: Hull, scale: EnergyScale, identity: Mapping[str, Json]) -> None:
    """Check that the energies of a potential can be compared with those of a hull.

    Raises:
        KldmError: the hull's energies are of another potential, or corrected in another way.
    """
    if hull.potential is not None:
        theirs, ours = (json.dumps(source, sort_keys=True) for source in (hull.potential, identity))
        if theirs != ours:
            remedy = "relax the reference with the same potential"
            raise KldmError(f"its energies are those of {theirs}, not of {ours}", place=hull.place, remedy=remedy)
        return
    if scale == "own" or (scale == "mp2020" and hull.scheme != "mp2020"):
        others = "its own" if scale == "own" else "MP2020-corrected ones"
        remedy = "relax a reference with this potential (`kldm relax`) and give its entries.json.gz"
        raise KldmError(f"energies of {identity['name']} compare only with {others}", place=hull.place, remedy=remedy)


def above_hull(
    structures: "Sequence[Structure]",
    energies: Sequence[float],
    hull: Hull,
    *,
    workers: int = 1,
    time_limit: float | None = None,
) -> list[float | None]:
    """E - E_hull in eV/atom for each structure. It is negative below the hull, of which the structures are no part, and
    None if the hull has no phase of one of the elements, or if the linear program fails.

        E_hull(x) = min_w sum_i w_i E_i   over mixtures w >= 0 of the phases i with sum_i w_i x_i = x

    Args:
        energies: eV/atom, on the hull's scale.
        time_limit: seconds for the structures of one chemical system.
    """
    groups: dict[frozenset[str], list[int]] = {}
    compositions = [structure.composition.get_el_amt_dict() for structure in structures]
    for row, composition in enumerate(compositions):
        if not hull.lacks(frozenset(composition)):
            groups.setdefault(frozenset(composition), []).append(row)
    items = [(hull.phases(elements), [_fractions(compositions[n]) for n in rows]) for elements, rows in groups.items()]
    results = parallel_map(
        _hull_energies, items, workers=workers, time_limit=time_limit, description="convex hulls", unit="system"
    )
    above: list[float | None] = [None] * len(structures)
    for rows, result in zip(groups.values(), results, strict=True):
        for row, energy in zip(rows, [None] * len(rows) if isinstance(result, Failure) else result, strict=True):
            above[row] = None if energy is None else energies[row] - energy
    return above


def _hull_energies(item: tuple[Mapping[Fractions, float], Sequence[Fractions]]) -> list[float | None]:
    """Energies of the hull at compositions, eV/atom, by linear programs. The hull itself has as many dimensions as
    there are elements, and cannot be computed from ten on."""
    from scipy.optimize import linprog

    phases, compositions = item
    symbols = sorted({symbol for composition in compositions for symbol, _ in composition})
    shares = np.zeros((len(symbols), len(phases)))
    for column, phase in enumerate(phases):
        for symbol, share in phase:
            shares[symbols.index(symbol), column] = share
    energies: list[float | None] = []
    for composition in compositions:
        x = np.array([dict(composition).get(symbol, 0.0) for symbol in symbols])
        best = linprog(list(phases.values()), A_eq=shares, b_eq=x, method="highs-ds")
        energies.append(float(best.fun) if best.status == 0 else None)
    return energies


def _fractions(amounts: Mapping[str, float]) -> Fractions:
    total = sum(amounts.values())
    return tuple(sorted((symbol, round(amount / total, 9)) for symbol, amount in amounts.items()))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KldmError(f"cannot be read ({error.strerror or error})", place=str(path), remedy=_REMEDY) from error
    except KldmError as error:
        raise KldmError(error.problem, place=error.place, remedy=_REMEDY) from error
    except (EOFError, zlib.error) as error:
        raise KldmError("the file is cut short or damaged", place=str(path), remedy=_REMEDY) from error


def _entries(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Every entry with its place, for messages."""
    for path in paths:
        empty = True
        with _readable(path):
            bar = tqdm(read_items(path, _is_entry), desc=f"reading {path.name}", unit="entry", delay=2, disable=None)
            for place, _, value in bar:
                if isinstance(value, Unparsed):
                    raise KldmError(value.problem, place=place, remedy=_REMEDY)
                match = only_record(value, _is_entry)
                yield place, value if match is None else match[0]
                empty = False
        if empty:
            raise KldmError("the file has no list of entries", place=str(path), remedy=_REMEDY)


def _is_entry(value: Any) -> bool:
    return isinstance(value, Mapping) and "composition" in value and "energy" in value


def _potential(record: Mapping[str, Any], place: str) -> Mapping[str, Json] | None:
    """The identity of the potential that an entry names."""
    parameters = record.get("parameters") or {}
    source = parameters.get("potential") if isinstance(parameters, Mapping) else parameters
    if source is not None and not isinstance(source, Mapping):
        raise KldmError("its parameters do not name a potential as `kldm relax` does", place=place, remedy=_REMEDY)
    return source


def _check_functional(record: Mapping[str, Any], place: str) -> None:
    """Raises ``KldmError`` if an entry's metadata name another functional than PBE(+U), or a mixture of several."""
    sources = [part for part in (record, record.get("parameters"), record.get("data")) if isinstance(part, Mapping)]
    named = [(key, part[key]) for part in sources for key in _FUNCTIONAL_KEYS if part.get(key)]
    wrong = next((f"its {key} is {value}" for key, value in named if str(value).upper() not in FUNCTIONALS), "")
    adjustments = record.get("energy_adjustments")
    adjustments = adjustments if isinstance(adjustments, list) else []
    names = [str(part.get("name")) for part in adjustments if isinstance(part, Mapping)]
    names += [str(part.get("cls", {}).get("@class")) for part in adjustments if _has_class(part)]
    ids = [str(part[key]) for part in sources for key in ("entry_id", "thermo_id", "task_id") if part.get(key)]
    parameters = list(_texts(record.get("parameters")))
    for what, texts in (("correction is", names), ("id is", ids), ("parameters say", parameters)):
        wrong = wrong or next((f"its {what} {text!r}" for text in texts if _OTHER_SCALE.search(text)), "")
    if wrong:
        remedy = "give entries of PBE(+U) alone, or relax a reference with the potential (`kldm relax`)"
        raise KldmError(f"{wrong[:200]}, and its energy is not one of PBE(+U)", place=place, remedy=remedy)
    if adjustments and record.get("correction") is None:
        problem = "it has energy_adjustments, but no 'correction' that sums them up"
        raise KldmError(problem, place=place, remedy="write entries by ComputedEntry.as_dict()")


def _texts(value: Any, depth: int = 4) -> Iterator[str]:
    """The texts in nested lists and dicts."""
    if isinstance(value, str):
        yield value[:200]
    elif isinstance(value, Mapping | list) and depth:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part, depth - 1)


def _has_class(adjustment: Any) -> bool:
    return isinstance(adjustment, Mapping) and isinstance(adjustment.get("cls"), Mapping)


def _entry(record: Any, place: str) -> tuple[Fractions, float]:
    """Composition and energy in eV/atom. Only numbers and symbols of the record are read."""
    from pymatgen.core.periodic_table import Element

    try:
        amounts: dict[str, float] = {}
        for name, amount in record["composition"].items():
            if amount:
                symbol = Element.from_Z(atomic_number(name)).symbol
                amounts[symbol] = amounts.get(symbol, 0.0) + float(amount)
        least, total = min(amounts.values()), sum(amounts.values())
        if isinstance(record["energy"], bool):
            raise ValueError
        energy = (float(record["energy"]) + float(record.get("correction") or 0.0)) / total
        if not (total > 0 and least / total > LEAST and math.isfinite(energy)):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = "it is not an entry with a composition and a finite energy"
        raise KldmError(problem, place=place, remedy=_REMEDY) from error
    return _fractions(amounts), energy
