"""What every potential must be: one energy, of which forces and stress are the derivatives."""

import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any, get_args

from kldm.interfaces import EnergyScale, Potential
from kldm.testing.crystals import expect

PotentialCheck = Callable[[Potential], None]


def is_a_record_that_travels(potential: Potential) -> None:
    """It is equal to its copy in another process, and says what its energies depend on."""
    twin = pickle.loads(pickle.dumps(potential))
    expect(twin == potential and hash(twin) == hash(potential), "pickled and unpickled it is not equal to itself")
    expect(potential.scale in get_args(EnergyScale), f"its scale is {potential.scale!r}")
    identity = potential.identity
    expect(json.loads(json.dumps(identity)) == identity, "its identity is changed by JSON")
    expect("name" in identity, "its identity says no name")


def computes_what_its_equal_computes(potential: Potential) -> None:
    """A copy of it gives the same energy."""
    twin: Potential = pickle.loads(pickle.dumps(potential))
    difference = _energy(_nickel(twin)) - _energy(_nickel(potential))
    expect(abs(difference) < 1e-6, f"a copy of it gives an energy that is {difference:g} eV higher")


def has_forces_that_are_slopes(potential: Potential) -> None:
    """A force is minus the slope of the energy by a position."""
    atoms, step = _nickel(potential), 1e-2
    forces = atoms.get_forces()
    for number, axis in ((0, 0), (2, 1)):
        energies = []
        for sign in (1, -1):
            moved = _like(atoms)
            moved.positions[number, axis] += sign * step
            energies.append(_energy(moved))
        slope, force = (energies[1] - energies[0]) / (2 * step), float(forces[number, axis])
        expect(abs(slope - force) < 0.02, f"a force is {force:.4f} eV/angstrom, the slope of the energy {slope:.4f}")


def has_a_stress_that_is_a_slope(potential: Potential) -> None:
    """The stress is the slope of the energy by strain, over the volume."""
    import numpy as np

    atoms, step = _nickel(potential), 5e-3
    stress = atoms.get_stress(voigt=False)
    for row, column in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step / 2
            strain[column, row] += sign * step / 2
            strained = _like(atoms)
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(_energy(strained))
        slope, found = (energies[0] - energies[1]) / (2 * step * atoms.get_volume()), float(stress[row, column])
        expect(abs(slope - found) < 3e-3, f"a stress is {found:.4f} eV/angstrom^3, the slope of the energy {slope:.4f}")


def ignores_translations_and_order(potential: Potential) -> None:
    """The energy knows neither where the crystal lies nor how its atoms are numbered."""
    atoms = _nickel(potential)
    turned = _like(atoms, (2, 0, 3, 1))
    turned.positions += 0.37
    difference = _energy(turned) - _energy(atoms)
    expect(abs(difference) < 1e-4, f"moved and renumbered, the crystal has an energy {difference:g} eV higher")


POTENTIAL_CHECKS: tuple[PotentialCheck, ...] = (
    is_a_record_that_travels,
    computes_what_its_equal_computes,
    has_forces_that_are_slopes,
    has_a_stress_that_is_a_slope,
    ignores_translations_and_order,
)


def check_potential(potential: Potential) -> None:
    """Every check on a potential, with four atoms of nickel, which it must know.

    Raises:
        AssertionError: one sentence on what does not hold.
        KldmError: its weights or its package are not there.
    """
    for check in POTENTIAL_CHECKS:
        check(potential)


def _nickel(potential: Potential) -> Any:  # of ase, which is untyped
    """Four atoms of nickel, rattled and sheared, with the calculator."""
    import ase
    import numpy as np

    rng = np.random.default_rng(0)
    cell = 3.6 * np.eye(3) + rng.normal(0, 0.05, (3, 3))
    places = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + rng.normal(0, 0.02, (4, 3))
    made = ase.Atoms("Ni4", scaled_positions=places, cell=cell, pbc=True)
    made.calc = potential.calculator()
    return made


def _like(atoms: Any, order: Sequence[int] | None = None) -> Any:
    """A copy with the same calculator, its atoms in another order if one is given."""
    made = atoms.copy() if order is None else atoms[list(order)]
    made.calc = atoms.calc
    return made


def _energy(atoms: Any) -> float:
    return float(atoms.get_potential_energy())
