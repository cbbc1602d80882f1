"""Oxidation states, spins, isotopes, disorder and axes called not periodic: all metrics see the same crystals."""

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Species
from pymatgen.core.structure import Structure

from kldm.interfaces import Candidate, Metric, Samples
from kldm.metrics import DeNovo, MatchRate, Stability, Validity

PLACES = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
PLAIN = (
    Structure(Lattice.cubic(3.4), ["Li", "H"], PLACES),
    Structure(Lattice.cubic(4.1), ["Cs", "Cl"], PLACES),
)
DECORATED = {
    "oxidation states": (
        Structure(Lattice.cubic(3.4), [Species("Li", 1), Species("H", -1)], PLACES),
        Structure(Lattice.cubic(4.1), [Species("Cs", 1), Species("Cl", -1)], PLACES),
    ),
    "spins": (
        Structure(Lattice.cubic(3.4), [Species("Li", None, spin=1), Species("H", None, spin=-1)], PLACES),
        Structure(Lattice.cubic(4.1), [Species("Cs", 1, spin=0), "Cl"], PLACES),
    ),
    "isotopes": (Structure(Lattice.cubic(3.4), ["Li", "D"], PLACES), PLAIN[1]),
    "slabs": (PLAIN[0], Structure(Lattice(np.eye(3) * 4.1, pbc=(True, True, False)), ["Cs", "Cl"], PLACES)),
    "both": (
        Structure(Lattice.cubic(3.4), [Species("Li", 1), "T"], PLACES),
        Structure(Lattice(np.eye(3) * 4.1, pbc=(True, False, False)), [Species("Cs", 1), "Cl"], PLACES),
    ),
}
METRICS: tuple[Metric, ...] = (MatchRate(rules=("structural",)), DeNovo(), Validity(), Stability())


def judged(metric: Metric, given: tuple[Structure, ...], reference: tuple[Structure, ...]) -> object:
    found = metric.measure(Samples(tuple(Candidate(row, 0, each) for row, each in enumerate(given)), reference))
    return found.values, found.rows, found.notes


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_decorations_change_no_value(metric: Metric) -> None:
    expected = judged(metric, PLAIN, PLAIN)
    for name, structures in DECORATED.items():
        assert judged(metric, structures, PLAIN) == expected, name
    assert judged(metric, DECORATED["oxidation states"], DECORATED["spins"]) == expected


def test_the_same_crystals_match_and_are_not_novel() -> None:
    samples = Samples(tuple(Candidate(row, 0, each) for row, each in enumerate(DECORATED["both"])), PLAIN)
    assert MatchRate(rules=("structural",)).measure(samples).values["structural.match_rate@1"] == 1.0
    found = DeNovo().measure(samples).values
    assert (found["amsd_recall"], found["amsd_precision"]) == (0.0, 0.0)
    assert Stability().measure(samples).values["novel"] == 0.0


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: type(metric).__name__)
def test_disordered_structures_are_none(metric: Metric) -> None:
    """As a sample and as a row of the reference."""
    alloy = Structure(Lattice.cubic(4.1), [{"Cs": 0.5, "Rb": 0.5}, "Cl"], PLACES)
    dummy = Structure(Lattice.cubic(4.1), ["Xa", "Cl"], PLACES)
    found = metric.measure(
        Samples(tuple(Candidate(row, 0, each) for row, each in enumerate((PLAIN[0], alloy, dummy))), (*PLAIN, alloy))
    )
    assert [row["reason"] for row in found.rows] == ["", "it is disordered", "Xa0+ is no element"]
