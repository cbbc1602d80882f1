"""Structures relaxed by a potential, each kept on disk, so that nothing is relaxed twice."""

import hashlib
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from kldm.data.cache import folder
from kldm.interfaces import Json, Potential
from kldm.metrics.structure import structural_validity, structure_bytes
from kldm.runtime.pool import Failure, parallel_map
from kldm.validators import above, one_of, within

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core.structure import Structure

RELAXATION_SECONDS = 600.0
"""Seconds for one structure: ten times what an ordinary one takes on one core with a graph network."""

_FORMAT = "kldm.relaxations.v1"

log = logging.getLogger("kldm.metrics")


@attrs.frozen(kw_only=True)
class Relaxation:
    """How structures are relaxed: ASE's FIRE on atoms and cell together, without symmetry constraints (MatterGen's
    pipeline, Zeni et al. 2025, with a bound on the steps).

    Args:
        fmax: eV/angstrom; a structure has converged when no row of the forces on atoms and cell is longer.
        max_steps: at most so many steps; 0 evaluates the energy alone. What has not converged then is kept, and
            counted.
        cell: ``frechet`` (ASE's ``FrechetCellFilter``, whose gradient of the cell is exact), ``exp``
            (``ExpCellFilter``, MatterGen's; the same minima), or ``fixed``.
        largest_change: a structure whose volume has grown or shrunk by more than this factor has failed.
    """

    fmax: float = attrs.field(default=0.05, validator=above(0))
    max_steps: int = attrs.field(default=500, validator=within(0, 10**6))
    cell: Literal["frechet", "exp", "fixed"] = attrs.field(default="frechet", validator=one_of())
    largest_change: float = attrs.field(default=5.0, validator=above(1))


@attrs.frozen(eq=False)
class Relaxed:
    """What became of one structure.

    Attributes:
        structure: the last one of which the energy was evaluated, its atoms in their order; None if it failed.
        energy: eV per cell, of ``structure``.
        before: eV per cell, of the structure that was given.
        steps: that were taken.
        converged: whether the forces fell below ``fmax``.
        reason: why there is no structure, else empty.
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
    """Every structure relaxed, in their order. A structure that cannot be is a failure with its reason.

    What was relaxed before by the same potential with the same settings comes from the cache, whatever became of the
    program since: interrupted work goes on where it was. Failures are tried again.

    Args:
        structures: None, and what is no structure at all, has failed already.
        workers: processes, each with a calculator of its own.
        time_limit: seconds per structure; what takes longer has failed.

    Raises:
        KldmError: the potential cannot be used.
    """
    kept = _Kept.of(potential, settings)
    calculator_of(potential)  # one sentence now, rather than a failure of every structure
    faults = [impossible(one) for one in structures]
    keys = ["" if one is None or fault else _key(one) for one, fault in zip(structures, faults, strict=True)]
    known = kept.read(set(keys))
    missing = {
        key: one for key, one in zip(keys, structures, strict=True) if one is not None and key and key not in known
    }
    work = parallel_map(
        partial(_relax_and_keep, potential=potential, settings=settings, kept=kept),
        list(missing.values()),
        workers=workers,
        time_limit=time_limit,
        description="relaxations",
    )
    for key, done in zip(missing, work, strict=True):
        known[key] = Relaxed(None, reason=_reason(done.reason)) if isinstance(done, Failure) else done
    return tuple(known[key] if key else Relaxed(None, reason=fault) for key, fault in zip(keys, faults, strict=True))


def impossible(structure: "Structure | None") -> str:
    """Why nothing has an energy for it, or ``""``: the structural rule without its smallest distance."""
    return structural_validity(structure, cutoff=0)


def relaxation_versions() -> dict[str, str]:
    """The libraries that relaxations depend on, beside the potential's own."""
    return {name: version(name) for name in ("ase", "pymatgen", "numpy")}


_CALCULATORS: "dict[tuple[Potential, str], Calculator]" = {}
"""At most one in each process: weights are loaded once."""


def calculator_of(potential: Potential) -> "Calculator":
    """The calculator of a potential, by all that its energies depend on.

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


def _relax_and_keep(structure: "Structure", *, potential: Potential, settings: Relaxation, kept: "_Kept") -> Relaxed:
    """Kept at once and where it was done, so that work that is interrupted loses no finished structure."""
    try:
        done = _relax(structure, potential=potential, settings=settings)
    except BaseException:  # out of time too
        _CALCULATORS.clear()  # it may be left in the middle of a structure
        raise
    if done.structure is not None:
        kept.add(_key(structure), done)
    return done


def _reason(failure: str) -> str:
    return failure if failure.startswith("time limit") else f"the potential failed ({failure})"


def _relax(structure: "Structure", *, potential: Potential, settings: Relaxation) -> Relaxed:
    import warnings

    import ase
    from ase.filters import ExpCellFilter, FrechetCellFilter
    from ase.optimize import FIRE
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    if not structure.is_ordered:
        return Relaxed(None, reason="it is disordered")
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
            return Relaxed(Structure(structure.lattice, numbers, structure.frac_coords), before, before)
        moved = {"frechet": FrechetCellFilter, "exp": ExpCellFilter, "fixed": lambda it: it}[settings.cell](atoms)
        optimizer = FIRE(moved, logfile=None)
        converged = bool(optimizer.run(fmax=settings.fmax, steps=settings.max_steps))
        energy = float(atoms.get_potential_energy())
    matrix, positions = np.array(atoms.cell), atoms.get_scaled_positions(wrap=False)
    if not (math.isfinite(energy) and np.isfinite(matrix).all() and np.isfinite(positions).all()):
        return Relaxed(None, before=before, reason="the relaxation left the finite numbers")
    change = atoms.cell.volume / structure.lattice.volume
    if not 1 / settings.largest_change <= change <= settings.largest_change:
        return Relaxed(None, before=before, reason=f"the volume changed more than {settings.largest_change:g}-fold")
    result = Structure(Lattice(matrix), numbers, positions)
    return Relaxed(result, energy, before, int(optimizer.nsteps), converged)


@cache
def _warn(text: str) -> None:
    """Once, not for every structure."""
    log.warning("%s", text)


@attrs.frozen
class _Kept:
    """Relaxations by one potential with the same settings, a line each. Lines are added whole, so that several
    programs may add to one file; one that was cut short counts for nothing."""

    path: Path

    @classmethod
    def of(cls, potential: Potential, settings: Relaxation) -> "_Kept":
        content: Mapping[str, Json] = {
            "format": _FORMAT,
            "potential": potential.identity,
            "settings": attrs.asdict(settings),
            "ase": version("ase"),
        }
        digest = hashlib.sha256(_text(content).encode()).hexdigest()
        return cls(folder() / "relaxations" / f"{digest}.jsonl")

    def read(self, keys: Collection[str]) -> dict[str, Relaxed]:
        """Those of the relaxations asked for that are there."""
        found: dict[str, Relaxed] = {}
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return found
        for line in lines:
            try:
                row = json.loads(line)
                if row["key"] in keys:
                    found[row["key"]] = _from_row(row)
            except (ValueError, KeyError, TypeError, AttributeError):  # a line cut short
                continue
        return found

    def add(self, key: str, one: Relaxed) -> None:
        assert one.structure is not None
        row = {"key": key, **attrs.asdict(one, recurse=False), "structure": one.structure.as_dict()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(b"\n" + json.dumps(row).encode() + b"\n")
        except OSError as error:
            _warn(f"{self.path}: {error.strerror or error} (relaxations are not kept for the next time)")


def _from_row(row: Mapping[str, Any]) -> Relaxed:
    from pymatgen.core.structure import Structure

    energy, before = float(row["energy"]), float(row["before"])
    return Relaxed(Structure.from_dict(row["structure"]), energy, before, int(row["steps"]), bool(row["converged"]))
