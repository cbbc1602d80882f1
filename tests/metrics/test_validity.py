"""The structural rule, its two thresholds and all that slips through a plain distance test; the metric of validity."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Measurement, Samples
from kldm.metrics import Validity
from kldm.metrics.validity import structural_validity


def crystal(cell: Lattice, *places: tuple[float, float, float]) -> Structure:
    """Sodium at each place."""
    return Structure(cell, ["Na"] * len(places), np.array(places))


def pair(distance: float, edge: float = 5.0) -> Structure:
    """Two atoms at this distance along a, in a cubic cell."""
    return crystal(Lattice.cubic(edge), (0, 0, 0), (distance / edge, 0, 0))


def test_valid_structure_has_no_reason() -> None:
    assert structural_validity(pair(2.5)) == ""


@pytest.mark.parametrize(
    ("distance", "valid"), [(0.499, False), (0.501, True), (0.0, False), (4.6, False), (4.4, True)]
)
def test_distance_threshold_uses_the_nearest_image(distance: float, valid: bool) -> None:
    assert (structural_validity(pair(distance)) == "") is valid


@pytest.mark.parametrize(("volume", "valid"), [(0.099, False), (0.101, True)])
def test_volume_threshold_and_own_images_ignored(volume: float, valid: bool) -> None:
    """One atom in a cell of half an angstrom: its images are nearer than 0.5 A, and only V decides."""
    structure = Structure(Lattice.cubic(volume ** (1 / 3)), ["Na"], [[0, 0, 0]])
    assert (structural_validity(structure) == "") is valid


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_coordinates_not_finite(bad: float) -> None:
    structure = crystal(Lattice.cubic(5), (0, 0, 0), (0.5, bad, 0.5))
    assert structural_validity(structure) == "coordinates not finite"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", range(6))
def test_cell_not_finite(bad: float, place: int) -> None:
    parameters = [5.0, 5.0, 5.0, 90.0, 90.0, 90.0]
    parameters[place] = bad
    with np.errstate(all="ignore"):
        structure = Structure(Lattice.from_parameters(*parameters), ["Na"], [[0, 0, 0]])
    assert structural_validity(structure) == "cell not finite"


@pytest.mark.parametrize("lengths", [(-5, 5, 5), (5, -5, 5), (5, 5, -5), (-5, -5, -5)])
@pytest.mark.parametrize("angles", [(90, 90, 90), (80, 100, 70)])
def test_negative_lengths(lengths: tuple[float, ...], angles: tuple[float, ...]) -> None:
    structure = Structure(Lattice.from_parameters(*lengths, *angles), ["Na"], [[0, 0, 0]])
    assert structural_validity(structure) == "cell length not positive"


def test_honest_left_handed_cells_are_valid() -> None:
    """The hexagonal cell with a and b swapped, and a cell with c along x: left-handed, and ordinary crystals."""
    hexagonal = Lattice.hexagonal(3, 5).matrix
    for matrix in (hexagonal[[1, 0, 2]], np.array([[0, 0, 3.0], [0, 4.0, 0], [5.0, 0, 0]])):
        assert np.linalg.det(matrix) < 0
        assert structural_validity(Structure(matrix, ["Na"], [[0, 0, 0]])) == ""


def test_zero_length_and_flat_cells() -> None:
    zero = Structure([[0, 0, 0], [0, 5, 0], [0, 0, 5]], ["Na"], [[0, 0, 0]])
    assert structural_validity(zero) == "cell length not positive"
    flat = crystal(Lattice([[5, 0, 0], [0, 5, 0], [3, 4, 0]]), (0, 0, 0), (0.5, 0.5, 0.5))
    assert structural_validity(flat) == "volume below 0.1 A^3"
    folded = Structure([[5, 0, 0], [5, 0, 0], [0, 0, 5]], ["Na"], [[0, 0, 0]])
    assert structural_validity(folded) == "cell angle outside (0, 180) degrees"


def test_unknown_element_and_no_atoms() -> None:
    dummy = Structure(Lattice.cubic(5), [DummySpecies("X")], [[0, 0, 0]])
    assert structural_validity(dummy) == "element outside 1 to 118"
    assert structural_validity(Structure(Lattice.cubic(5), [], [])) == "no atoms"
    assert structural_validity(None) == "no structure"


def test_options() -> None:
    assert structural_validity(pair(2.5, edge=41.0)) == ""
    assert structural_validity(pair(2.5, edge=41.0), longest_edge=40.0) == "cell edge longer than 40 A"
    assert structural_validity(pair(2.5, edge=39.0), longest_edge=40.0) == ""
    assert structural_validity(pair(1.0), cutoff=1.5) == "atoms closer than 1.5 A"
    assert structural_validity(pair(2.5), minimum_volume=200.0) == "volume below 200 A^3"


def test_a_fault_of_the_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Structure) -> None:
        raise np.linalg.LinAlgError("singular")

    monkeypatch.setattr(Structure, "distance_matrix", property(broken))
    assert structural_validity(pair(2.5)) == "cannot be examined: LinAlgError: singular"


def compound(*symbols: str, x: float = 0.5) -> Structure:
    """One atom each along a cell of 5 A; below x = 0.1 the first two are too close."""
    places = [(index * x, 0, 0) for index in range(len(symbols))]
    return Structure(Lattice.cubic(5), list(symbols), np.array(places))


def measure(structures: Sequence[Structure | None], metric: Validity | None = None) -> Measurement:
    candidates = tuple(Candidate(row, 0, structure) for row, structure in enumerate(structures))
    return (metric or Validity()).measure(Samples(candidates, ()))


MIXED = (
    compound("Na", "Cl"),
    compound("Na", "Cl", x=0.05),
    compound("Na", "Cl", "Cl", x=0.3),
    compound("Na", "Cl", "Cl", x=0.05),
    None,
)


def test_shares_are_of_all_requested_candidates() -> None:
    found = measure(MIXED)
    assert found.values == {"struct_valid": 0.4, "comp_valid": 0.4, "valid": 0.2}
    assert [(row["struct_valid"], row["comp_valid"], row["reason"]) for row in found.rows] == [
        (True, True, ""),
        (False, True, "atoms closer than 0.5 A"),
        (True, False, "charges cannot be balanced"),
        (False, False, "atoms closer than 0.5 A"),
        (False, False, "no structure"),
    ]
    assert [row["formula"] for row in found.rows] == ["NaCl", "NaCl", "NaCl2", "NaCl2", ""]
    assert found.definition["counts"] == {
        "candidates": 5,
        "without_structure": 1,
        "valid": 1,
        "failures": {
            "structure": {"atoms closer than 0.5 A": 2, "no structure": 1},
            "composition": {"charges cannot be balanced": 2, "composition not known": 1},
        },
    }


def test_one_candidate_that_failed_keeps_its_own_reason() -> None:
    found = Validity().measure(Samples((Candidate(3, 1, None, "sampler diverged"),), ()))
    assert found.values == {"struct_valid": 0.0, "comp_valid": 0.0, "valid": 0.0}
    assert found.rows[0]["reason"] == "sampler diverged"
    assert (found.rows[0]["target"], found.rows[0]["candidate"]) == (3, 1)


def test_definition_says_what_was_measured() -> None:
    definition = json.loads(json.dumps(measure(MIXED, Validity(legacy=True, longest_edge=40.0)).definition))
    assert definition["oxidation_states"] == "smact14"
    assert definition["legacy"] is True
    assert "2.2.1" in definition["rules"]["comp_valid"]
    assert "edges <= 40 A" in definition["rules"]["struct_valid"]
    assert set(definition["versions"]) == {"pymatgen", "smact"}
    assert "all requested" in definition["denominator"]
    assert "2.2.1" not in str(measure(MIXED).definition)


def test_options_of_the_metric_reach_the_rules() -> None:
    odd = [compound("Ra", "O"), compound("Pm", "Cl", "Cl", x=0.3), pair(2.5, edge=41.0)]
    assert measure(odd).values == pytest.approx({"struct_valid": 1, "comp_valid": 2 / 3, "valid": 2 / 3})
    assert measure(odd, Validity(legacy=True)).values["comp_valid"] == 1
    assert measure(odd, Validity(states="icsd24")).values["comp_valid"] == pytest.approx(1 / 3)
    assert measure(odd, Validity(longest_edge=40.0)).values["struct_valid"] == pytest.approx(2 / 3)


def test_second_set_is_labelled() -> None:
    found = measure([compound("Ra", "O"), compound("Na", "Cl"), None], Validity(also_icsd24=True))
    assert found.values["comp_valid"] == pytest.approx(2 / 3)
    assert found.values["comp_valid_icsd24"] == pytest.approx(1 / 3)
    assert [row["comp_valid_icsd24"] for row in found.rows] == [False, True, False]
    assert found.values["valid"] == pytest.approx(2 / 3)
    assert "icsd24" in str(found.definition["rules"])


def test_implausible_results_are_pointed_out() -> None:
    salt, doubled = compound("Na", "Cl"), compound("Na", "Cl").make_supercell(2, in_place=False)
    assert "collapsed" in measure([salt, salt]).notes[0]
    assert "2 atoms of NaCl" in measure([salt, salt]).notes[0]
    for honest in ([salt], [salt, doubled], [salt, compound("K", "Cl")], [salt, compound("Na", "Cl", x=0.05)]):
        assert measure(honest).notes == ()
    nothing = measure([])
    assert set(nothing.values.values()) == {None}
    assert nothing.notes == ("There are no candidates, so nothing is defined.",)
    assert measure([None, None]).notes == ("None of the 2 candidates has a structure.",)


def test_a_composition_that_cannot_be_had_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Structure) -> None:
        raise ValueError("no composition")

    monkeypatch.setattr(Structure, "composition", property(broken))
    found = measure([pair(2.5)])
    assert found.values["comp_valid"] == 0.0
    assert found.rows[0]["formula"] == ""


def test_users_mistakes() -> None:
    with pytest.raises(KldmError, match="longest_edge: must be above 0, got -1"):
        Validity(longest_edge=-1)
    with pytest.raises(KldmError, match="states: must be one of smact14, icsd24, got 'old'"):
        Validity(states="old")  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="legacy: there is no legacy form of the oxidation states icsd24"):
        Validity(states="icsd24", legacy=True)


def test_a_composition_is_judged_without_a_structure() -> None:
    """As in CDVAE's code, where the composition of a cell that cannot be built still counts."""
    salt, odd = Candidate(0, 0, None, "no cell", (11, 17)), Candidate(1, 0, None, "no cell", (11, 17, 17))
    found = Validity().measure(Samples((salt, odd), ()))
    assert found.values == {"struct_valid": 0.0, "comp_valid": 0.5, "valid": 0.0}
    assert [row["formula"] for row in found.rows] == ["NaCl", "NaCl2"]
    assert [row["reason"] for row in found.rows] == ["no cell", "no cell"]
