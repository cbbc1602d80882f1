"""What every registered potential must be: one energy, of which forces and stress are the derivatives."""

import json
import pickle
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest

import kldm.potentials  # noqa: F401 - puts the potentials on their shelf
from kldm import registry
from kldm.interfaces import Potential
from tests.potentials.weights import tiny_weights

SCALES = ("own", "uncorrected", "mp2020")


@pytest.fixture(params=registry.potentials.names())
def potential(request: pytest.FixtureRequest, tmp_path: Path) -> Potential:
    """Skips where its package is not installed."""
    more = {"weights": tiny_weights(tmp_path / "tiny.pth")} if request.param == "mattersim.v1" else {}
    if request.param == "chgnet.v1":
        pytest.importorskip("chgnet")
    built: Potential = registry.potentials.get(request.param)(**more)
    return built


@pytest.fixture
def atoms(potential: Potential) -> ase.Atoms:
    """Nickel, rattled and sheared, with the calculator."""
    rng = np.random.default_rng(0)
    cell = 3.6 * np.eye(3) + rng.normal(0, 0.05, (3, 3))
    places = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + rng.normal(0, 0.02, (4, 3))
    made = ase.Atoms("Ni4", scaled_positions=places, cell=cell, pbc=True)
    made.calc = potential.calculator()
    return made


def test_it_is_a_record_that_travels(potential: Potential) -> None:
    twin = pickle.loads(pickle.dumps(potential))
    assert twin == potential
    assert hash(twin) == hash(potential)
    assert potential.scale in SCALES


def test_its_identity_is_json(potential: Potential) -> None:
    identity = potential.identity
    assert json.loads(json.dumps(identity)) == identity
    assert identity["name"] in registry.potentials.names()


def energy(atoms: Any) -> float:
    return float(atoms.get_potential_energy())


def test_forces_are_the_slope_of_the_energy(atoms: Any) -> None:
    forces, step = atoms.get_forces(), 1e-2
    for number, axis in ((0, 0), (2, 1)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[number, axis] += sign * step
            moved.calc = atoms.calc
            ends.append(energy(moved))
        assert forces[number, axis] == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=0.02)


def test_the_stress_is_the_slope_by_strain(atoms: Any) -> None:
    stress, volume, step = atoms.get_stress(voigt=False), atoms.get_volume(), 5e-3
    for row, column in ((0, 0), (1, 2)):
        ends = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[row, column] += sign * step / 2
            strain[column, row] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            strained.calc = atoms.calc
            ends.append(energy(strained))
        slope = (ends[0] - ends[1]) / (2 * step * volume)
        assert stress[row, column] == pytest.approx(slope, abs=3e-3)


def test_translations_and_the_order_of_atoms_change_nothing(atoms: Any) -> None:
    before = energy(atoms)
    turned = atoms[[2, 0, 3, 1]]
    turned.positions += 0.37
    turned.calc = atoms.calc
    assert energy(turned) == pytest.approx(before, abs=1e-4)


def test_it_computes_what_its_equal_computes(potential: Potential, atoms: Any) -> None:
    twin = atoms.copy()
    twin.calc = pickle.loads(pickle.dumps(potential)).calculator()
    assert energy(twin) == pytest.approx(energy(atoms), abs=1e-6)
