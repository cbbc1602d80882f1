"""Checks of potentials: forces and stress must be the derivatives of one energy."""

import json
import pickle
from collections.abc import Callable, Sequence
from typing import Any, get_args

from kldm.interfaces import EnergyScale, Potential
from kldm.testing.crystals import expect, run_checks

PotentialCheck = Callable[[Potential], None]


def is_a_record_that_travels(potential: Potential) -> None:
    """It equals its pickled copy, and names what its energies depend on."""
    twin = pickle.loads(pickle.dumps(potential))
    expect(twin == potential and hash(twin) == hash(potential), "it does not equal its pickled copy")
    expect(potential.scale in get_args(EnergyScale), f"its scale {potential.scale!r} is not known")
    identity = potential.identity
    expect(json.loads(json.dumps(identity)) == identity, "its identity is changed by JSON")
    expect("name" in identity, "its identity has no name")


def computes_what_its_equal_computes(potential: Potential) -> None:
    """A copy of it gives the same energy."""
    twin: Potential = pickle.loads(pickle.dumps(potential))
    difference = _energy(_nickel(twin)) - _energy(_nickel(potential))
    expect(abs(difference) < 1e-6, f"a copy of it gives an energy that is {difference:g} eV higher")


def has_forces_that_are_slopes(potential: Potential) -> None:
    """A force is minus the derivative of the energy by a position."""
    atoms, step = _nickel(potential), 1e-2
    forces = atoms.get_forces()
    for number, axis in ((0, 0), (2, 1)):
        energies = []
        for sign in (1, -1):
            moved = _like(atoms)
            moved.positions[number, axis] += sign * step
            energies.append(_energy(moved))
        slope, force = (energies[1] - energies[0]) / (2 * step), float(forces[number, axis])
        expect(abs(slope - force) < 0.02, f"a force is {force:.4f} eV/angstrom, the slope of the energy {-slope:.4f}")


def has_a_stress_that_is_a_slope(potential: Potential) -> None:
    """The stress is the derivative of the energy by strain, over the volume."""
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
        slope, value = (energies[0] - energies[1]) / (2 * step * atoms.get_volume()), float(stress[row, column])
        expect(abs(slope - value) < 3e-3, f"a stress is {value:.4f} eV/angstrom^3, the slope of the energy {slope:.4f}")


def ignores_translations_and_order(potential: Potential) -> None:
    """The energy depends neither on the position of the crystal nor on the order of its atoms."""
    atoms = _nickel(potential)
    moved = _like(atoms, (2, 0, 3, 1))
    moved.positions += 0.37
    difference = _energy(moved) - _energy(atoms)
    expect(abs(difference) < 1e-4, f"moving a crystal and renumbering its atoms adds {difference:g} eV to its energy")


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
        AssertionError: a check fails; one sentence says what is wrong.
        KldmError: its weights or its package are missing.
    """
    run_checks(POTENTIAL_CHECKS, potential)


def _nickel(potential: Potential) -> Any:  # of ase, which is untyped
    """Four atoms of nickel, rattled and sheared, with the calculator."""
    import ase
    import numpy as np

    rng = np.random.default_rng(0)
    cell = 3.6 * np.eye(3) + rng.normal(0, 0.05, (3, 3))
    places = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + rng.normal(0, 0.02, (4, 3))
    atoms = ase.Atoms("Ni4", scaled_positions=places, cell=cell, pbc=True)
    atoms.calc = potential.calculator()
    return atoms


def _like(atoms: Any, order: Sequence[int] | None = None) -> Any:
    """A copy with the same calculator, its atoms in another order if one is given."""
    copy = atoms.copy() if order is None else atoms[list(order)]
    copy.calc = atoms.calc
    return copy


def _energy(atoms: Any) -> float:
    return float(atoms.get_potential_energy())
