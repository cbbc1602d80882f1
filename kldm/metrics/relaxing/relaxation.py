"""Relaxation by a potential. Every relaxed structure is cached on disk, so that nothing is relaxed twice."""

import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from kldm.data.cache import folder
from kldm.data.structures import ImpossibleError, plain_structure, structure_of
from kldm.interfaces import Json, Potential, StatesCutoff
from kldm.metrics.structure import structural_validity, structure_bytes
from kldm.runtime.pool import Failure, parallel_map
from kldm.validators import above, one_of, within

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core.structure import Structure

RELAXATION_SECONDS = 600.0
"""Seconds for one structure: ten times what an ordinary one needs on one core with a graph network."""

RELAXATION_MEMORY = 16.0
"""GB for one structure: several times what a thousand atoms need in a graph network."""

CUTOFF = 6.0
"""Angstrom within which an atom must have another, where the potential states nothing else: no graph network in use
sees farther, and no crystal has its atoms farther apart."""

FAR_OFF = 1.0
"""eV/atom: an energy that lies farther from all others is worth a word."""

_FORMAT = "kldm.relaxations.v1"

log = logging.getLogger("kldm.metrics")


@attrs.frozen(kw_only=True)
class Relaxation:
    """How structures are relaxed: ASE's FIRE on atoms and cell together, without symmetry constraints (MatterGen's
    pipeline, Zeni et al. 2025, with a bound on the steps).

    Args:
        fmax: eV/angstrom; a structure has converged when no row of the forces on atoms and cell is longer.
        max_steps: the largest number of steps; 0 only evaluates the energy. A structure that has not converged by then
            is kept, and counted as such.
        cell: ``frechet`` (ASE's ``FrechetCellFilter``, whose gradient of the cell is exact), ``exp``
            (``ExpCellFilter``, MatterGen's; the same minima), or ``fixed``.
        largest_change: a relaxation fails if the volume grows or shrinks by more than this factor.
    """

    fmax: float = attrs.field(default=0.05, validator=above(0))
    max_steps: int = attrs.field(default=500, validator=within(0, 10**6))
    cell: Literal["frechet", "exp", "fixed"] = attrs.field(default="frechet", validator=one_of())
    largest_change: float = attrs.field(default=5.0, validator=above(1))


@attrs.frozen(eq=False)
class Relaxed:
    """The result of one relaxation.

    Attributes:
        structure: the last one whose energy was evaluated, with its atoms in the original order; None if it failed.
        energy: that of ``structure``, eV per cell.
        before: that of the original structure, eV per cell.
        steps: the number of steps.
        converged: whether the forces fell below ``fmax``.
        reason: why there is no structure; otherwise empty.
    """

    structure: "Structure | None"
    energy: float = math.nan
    before: float = math.nan
    steps: int = 0
    converged: bool = False
    reason: str = ""


def relaxed(
    structures: "Sequence[Structure | None]",
    potential: Potential,
    settings: Relaxation,
    *,
    workers: int = 1,
    time_limit: float | None = RELAXATION_SECONDS,
) -> tuple[Relaxed, ...]:
    """Relax every structure, and return the results in their order. A failure has a reason.

    Structures that were relaxed before by the same potential with the same settings come from the cache, so that
    interrupted work goes on where it stopped. Failures are tried again. A structure has failed, too, if one of its
    atoms is isolated before or after relaxation, because local potentials give such atoms energies without a meaning.

    Args:
        structures: None, and structures without a possible cell, are failures.
        workers: processes, each with a calculator of its own.
        time_limit: seconds per structure; one that takes longer has failed.

    Raises:
        KldmError: the potential cannot be used.
    """
    cache = _Cache.of(potential, settings)
    calculator_of(potential)  # one error now, rather than a failure of every structure
    faults = [impossible(structure) for structure in structures]
    keys = ["" if s is None or fault else _key(s) for s, fault in zip(structures, faults, strict=True)]
    known = cache.read(set(keys))
    missing = {key: s for key, s in zip(keys, structures, strict=True) if s is not None and key and key not in known}
    if missing:
        cache.prepare()
    results = parallel_map(
        partial(_relax_and_save, potential=potential, settings=settings, cache=cache),
        list(missing.values()),
        workers=workers,
        time_limit=time_limit,
        memory=RELAXATION_MEMORY,
        description="relaxations",
    )
    for key, result in zip(missing, results, strict=True):
        known[key] = Relaxed(None, reason=_reason(result.reason)) if isinstance(result, Failure) else result
    for key, relaxation in known.items():
        if relaxation.structure is not None and (fault := _isolated(relaxation.structure, potential)):
            known[key] = Relaxed(None, reason=fault)
    return tuple(known[key] if key else Relaxed(None, reason=fault) for key, fault in zip(keys, faults, strict=True))


def impossible(structure: "Structure | None") -> str:
    """Why no potential has an energy for it, or ``""``: the structural rule without its smallest distance."""
    return structural_validity(structure, cutoff=0)


def has_isolated_atoms(structure: "Structure", cutoff: float) -> bool:
    """Whether an atom has no other, nor an image of itself, within the cutoff (angstrom)."""
    if min(structure.lattice.abc) <= cutoff:  # every atom has its own images
        return False
    from ase.neighborlist import neighbor_list

    found: Any = neighbor_list("i", structure.to_ase_atoms(), cutoff)  # type: ignore[no-untyped-call]
    seen = set(found.tolist())
    return len(seen) < len(structure)


def _isolated(structure: "Structure", potential: Potential) -> str:
    """Why local potentials have no energy for it, or ``""``."""
    cutoff = potential.cutoff if isinstance(potential, StatesCutoff) else CUTOFF
    return f"an atom has no other within {cutoff:g} angstrom" if has_isolated_atoms(structure, cutoff) else ""


def far_off(energies: Sequence[float]) -> list[int]:
    """The places of the energies (eV/atom) that lie more than ``FAR_OFF`` above or below all others, one after the
    other from the outside; none if those are not the few."""
    order = sorted(range(len(energies)), key=lambda place: energies[place])
    below = above = 0
    for step in range(1, (len(order) + 1) // 2):
        if energies[order[step]] - energies[order[step - 1]] > FAR_OFF:
            below = step
        if energies[order[-step]] - energies[order[-step - 1]] > FAR_OFF:
            above = step
    places = order[:below] + order[len(order) - above :]
    return sorted(places) if len(places) < len(order) / 2 else []


def relaxation_versions() -> dict[str, str]:
    """Versions of the libraries that relaxations depend on, without those of the potential."""
    return {name: version(name) for name in ("ase", "pymatgen", "numpy")}


_CALCULATORS: "dict[tuple[Potential, str], Calculator]" = {}
"""At most one in each process, so that weights are loaded once."""


def calculator_of(potential: Potential) -> "Calculator":
    """The calculator of a potential. It is built anew only if something changes that its energies depend on.

    Raises:
        KldmError: the potential cannot be used.
    """
    key = potential, _text(potential.identity)
    if key not in _CALCULATORS:
        _CALCULATORS.clear()
        _CALCULATORS[key] = potential.calculator()
    return _CALCULATORS[key]


def _text(identity: Mapping[str, Json]) -> str:
    return json.dumps(identity, sort_keys=True)


def _key(structure: "Structure") -> str:
    return hashlib.sha256(structure_bytes(structure)).hexdigest()


def _relax_and_save(structure: "Structure", *, potential: Potential, settings: Relaxation, cache: "_Cache") -> Relaxed:
    """Save each result at once in the process that has it, so that interrupted work loses no finished structure."""
    try:
        result = _relax(structure, potential=potential, settings=settings)
    except BaseException:  # also the end of the time limit
        _CALCULATORS.clear()  # its state may be that of an unfinished structure
        raise
    if result.structure is not None:
        cache.add(_key(structure), result)
    return result


def _reason(failure: str) -> str:
    return failure if failure.startswith("time limit") else f"the potential failed: {failure}"


def _relax(structure: "Structure", *, potential: Potential, settings: Relaxation) -> Relaxed:
    import warnings

    import ase
    from ase.filters import ExpCellFilter, FrechetCellFilter
    from ase.optimize import FIRE

    if not structure.is_ordered:
        return Relaxed(None, reason="it is disordered")
    if fault := _isolated(structure, potential):
        return Relaxed(None, reason=fault)
    numbers = [site.specie.Z for site in structure]
    cell = structure.lattice.matrix
    atoms: Any = ase.Atoms(numbers, scaled_positions=structure.frac_coords, cell=cell, pbc=True)
    atoms.calc = calculator_of(potential)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cell that ASE finds too large, and of the potentials' libraries
        before = float(atoms.get_potential_energy())
        if not math.isfinite(before):
            return Relaxed(None, reason="energy not finite")
        if settings.max_steps == 0:
            return Relaxed(plain_structure(cell, numbers, structure.frac_coords), before, before)
        filtered = {"frechet": FrechetCellFilter, "exp": ExpCellFilter, "fixed": lambda it: it}[settings.cell](atoms)
        optimizer = FIRE(filtered, logfile=None)
        converged = bool(optimizer.run(fmax=settings.fmax, steps=settings.max_steps))
        energy = float(atoms.get_potential_energy())
    matrix, positions = np.array(atoms.cell), atoms.get_scaled_positions(wrap=False)
    if not (math.isfinite(energy) and np.isfinite(matrix).all() and np.isfinite(positions).all()):
        return Relaxed(None, before=before, reason="energy or structure not finite after relaxation")
    change = atoms.cell.volume / structure.lattice.volume
    if not 1 / settings.largest_change <= change <= settings.largest_change:
        return Relaxed(None, before=before, reason=f"the volume changed more than {settings.largest_change:g}-fold")
    try:
        result = plain_structure(matrix, numbers, positions)
    except ImpossibleError as error:
        return Relaxed(None, before=before, reason=f"after relaxation {error}")
    return Relaxed(result, energy, before, int(optimizer.nsteps), converged)


@attrs.frozen
class _Cache:
    """Relaxations by one potential with the same settings, one per line of a file. Lines are written whole, so that
    several programs may add to one file; a line that was cut short is ignored."""

    path: Path

    @classmethod
    def of(cls, potential: Potential, settings: Relaxation) -> "_Cache":
        content: Mapping[str, Json] = {
            "format": _FORMAT,
            "potential": potential.identity,
            "settings": attrs.asdict(settings),
            "ase": version("ase"),
        }
        digest = hashlib.sha256(_text(content).encode()).hexdigest()
        return cls(folder() / "relaxations" / f"{digest}.jsonl")

    def read(self, keys: Collection[str]) -> dict[str, Relaxed]:
        """The relaxations with these keys, as far as the file has them."""
        relaxations: dict[str, Relaxed] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return relaxations
        for line in lines:
            try:
                row = json.loads(line)
                if row["key"] in keys:
                    relaxations[row["key"]] = _from_row(row)
            except (ValueError, KeyError, TypeError, AttributeError):  # a line cut short
                continue
        return relaxations

    def prepare(self) -> None:
        """Make the folder of the file, and warn if the file cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
        except OSError as error:
            log.warning("%s: %s (relaxations are not kept for the next time)", self.path, error.strerror or error)

    def add(self, key: str, result: Relaxed) -> None:
        assert result.structure is not None
        row = {"key": key, **attrs.asdict(result, recurse=False), "structure": result.structure.as_dict()}
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(b"\n" + json.dumps(row).encode() + b"\n")
        except OSError:  # the process that asked for it has warned, if it is not a disk that is full only now
            pass


def _from_row(row: Mapping[str, Any]) -> Relaxed:
    energy, before = float(row["energy"]), float(row["before"])
    return Relaxed(structure_of(row["structure"]), energy, before, int(row["steps"]), bool(row["converged"]))
