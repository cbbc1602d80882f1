"""The matcher against pymatgen's own, pair by pair, and what it does where rounding decides."""

import csv
import gzip
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import IStructure, Structure

from kldm.metrics.matching import matcher, reduction
from kldm.metrics.matching.assignments import FORBIDDEN, assignment
from kldm.metrics.matching.lll import lll
from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.reduction import ReducedCell

Pair = tuple[float, float]


class Plain(StructureMatcher):
    """pymatgen's matcher without the cache that would answer with the cell of an earlier structure."""

    @classmethod
    def _get_reduced_structure(
        cls, struct: Structure | IStructure, primitive_cell: bool = True, niggli: bool = True
    ) -> Structure:
        return Structure.from_sites(list(struct.get_reduced_structure().get_primitive_structure()))


PLAIN = Plain(ltol=0.3, stol=0.5, angle_tol=10)


def plain(candidate: Structure, target: Structure) -> Pair | None:
    found = PLAIN.get_rms_dist(candidate, target)  # type: ignore[no-untyped-call]
    return None if found is None else (float(found[0]), float(found[1]))


def agree(mine: Pair | None, theirs: Pair | None) -> bool:
    """The same decision and numbers. Below 1e-5 pymatgen takes the first it finds, and rounding decides its digits."""
    if mine is None or theirs is None:
        return mine is theirs
    exact = mine[0] < 1e-5 and theirs[0] < 1e-5
    return exact or bool(np.allclose(mine, theirs, rtol=0, atol=1e-9))


def random_structure(rng: np.random.Generator, species: Sequence[str]) -> Structure:
    matrix = np.eye(3) * rng.uniform(3, 6, 3) + rng.normal(0, 0.6, (3, 3))
    return Structure(Lattice(matrix), list(species), rng.random((len(species), 3)))


def changed(structure: Structure, rng: np.random.Generator, noise: float, strain: float) -> Structure:
    """Strained, displaced, translated, permuted, and at times in another cell."""
    lattice = Lattice(structure.lattice.matrix @ (np.eye(3) + rng.normal(0, strain, (3, 3))))
    places = structure.frac_coords @ lattice.matrix + rng.normal(0, noise, (len(structure), 3)) + rng.random(3)
    order = rng.permutation(len(structure))
    moved = Structure(lattice, [structure.species[n] for n in order], places[order], coords_are_cartesian=True)
    cells = ([1, 1, 1], [[1, 0, 0], [1, 1, 0], [0, -1, 1]], [2, 1, 1])
    return moved.make_supercell(cells[rng.integers(len(cells)) if len(structure) < 12 else 0], in_place=False)


KINDS = (("Na", "Cl"), ("Sr", "Ti", "O", "O", "O"), ("C",) * 6, ("Ti", "Ti", "O", "O", "O", "O"), ("Cu",))


@pytest.mark.parametrize("species", KINDS)
def test_equal_to_pymatgen_on_random_crystals(species: Sequence[str]) -> None:
    """Same and other crystals of a composition, from nearly equal to beyond any match."""
    rng = np.random.default_rng(len(species))
    outcomes = set()
    for noise, strain in ((0.0, 0.0), (0.05, 0.02), (0.3, 0.05), (1.0, 0.05)):
        for _ in range(6):
            target = random_structure(rng, species)
            candidate = changed(target, rng, noise, strain)
            for pair in ((candidate, target), (target, candidate), (random_structure(rng, species), target)):
                theirs = plain(*pair)
                assert agree(Matcher().get_rms_dist(*pair), theirs)
                outcomes.add(theirs is None)
    assert outcomes == {True, False}


@pytest.mark.parametrize(("ltol", "stol", "angle_tol"), [(0.2, 0.3, 5.0), (0.5, 0.5, 10.0), (0.3, 0.05, 2.0)])
def test_other_tolerances(ltol: float, stol: float, angle_tol: float) -> None:
    rng = np.random.default_rng(0)
    other = Plain(ltol=ltol, stol=stol, angle_tol=angle_tol)
    mine = Matcher(ltol=ltol, stol=stol, angle_tol=angle_tol)
    for noise in (0.02, 0.1, 0.2, 0.4) * 3:
        target = random_structure(rng, ("Mg", "Mg", "Si", "O", "O"))
        candidate = changed(target, rng, noise, 0.03)
        assert agree(mine.get_rms_dist(candidate, target), other.get_rms_dist(candidate, target))  # type: ignore[no-untyped-call]


def ideal() -> list[Structure]:
    """Lattices whose reduced bases, nearest images and assignments tie, all of carbon."""
    cell: dict[str, Sequence[Sequence[float]]] = {
        "simple": [(0, 0, 0), (0.5, 0.5, 0.5)],
        "half": [(0, 0, 0), (0.5, 0, 0)],
        "third": [(0, 0, 0), (1 / 3, 2 / 3, 0.5)],
        "diamond": [(0, 0, 0), (0.25, 0.25, 0.25)],
    }
    lattices = [
        Lattice.cubic(3.0),
        Lattice.hexagonal(2.5, 4.0),
        Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]),
        Lattice([[-1.5, 1.5, 1.5], [1.5, -1.5, 1.5], [1.5, 1.5, -1.5]]),
        Lattice.tetragonal(3.0, 3.4),
    ]
    return [Structure(lattice, ["C", "C"], np.array(sites)) for lattice in lattices for sites in cell.values()]


def test_ties_are_decided_as_pymatgen_does(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = ideal()
    asked: list[object] = []
    original = matcher._Pair.by_pymatgen

    def counted(pair: matcher._Pair) -> Pair | None:
        asked.append(pair)
        return original(pair)

    monkeypatch.setattr(matcher._Pair, "by_pymatgen", counted)
    pairs = [(first, second) for first in crystals for second in crystals[::3]]
    for first, second in pairs:
        assert agree(Matcher().get_rms_dist(first, second), plain(first, second))
    assert 0 < len(asked) < len(pairs)


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(4):
        target = random_structure(rng, ("Ti",) * 3 + ("O",) * 6)
        pairs.append((changed(target, rng, 0.2, 0.03), target))
    whole = [Matcher().get_rms_dist(*pair) for pair in pairs]
    monkeypatch.setattr(matcher, "BATCH", 1)
    assert all(agree(Matcher().get_rms_dist(*pair), result) for pair, result in zip(pairs, whole, strict=True))


def test_species_are_compared() -> None:
    """An ion is not its element, and a mixed site is compared as a whole."""
    lattice, places = Lattice.cubic(3.4), np.array([(0, 0, 0), (0.5, 0.5, 0.5)])
    neutral, ionic = Structure(lattice, ["Na", "Cl"], places), Structure(lattice, ["Na+", "Cl-"], places)
    mixed = Structure(lattice, [{"Na": 0.5, "K": 0.5}, "Cl"], places)
    assert Matcher().get_rms_dist(neutral, ionic) is None
    for structure in (neutral, ionic, mixed):
        assert Matcher().get_rms_dist(structure, structure) == pytest.approx((0, 0), abs=1e-6)
    assert Matcher().get_rms_dist(mixed, neutral) is None


def test_hopeless_cells_raise_rather_than_match() -> None:
    good = Structure(Lattice.cubic(3.0), ["C"], [[0, 0, 0]])
    for matrix, place in ((np.eye(3) * np.nan, 0.0), (np.eye(3) * 3, np.nan), (np.eye(3) * 3, np.inf)):
        bad = Structure(Lattice(matrix), ["C"], [[place, 0, 0]])
        with pytest.raises(ValueError, match="not finite"):
            Matcher().get_rms_dist(bad, good)


@pytest.mark.parametrize("repeats", [(2, 1, 1), (1, 2, 2), (3, 1, 1)])
def test_supercells_are_made_primitive(repeats: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    crystal = random_structure(rng, ("Na", "Cl", "Cl"))
    noisy = crystal.make_supercell(repeats, in_place=False).perturb(0.01, seed=0)
    assert len(ReducedCell.of(noisy).species) == 3
    distorted = noisy.copy()
    distorted.translate_sites([0], [0.9, 0, 0], frac_coords=False)
    assert len(ReducedCell.of(distorted).species) == len(noisy)


def test_the_quick_look_for_a_smaller_cell_misses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    crystals = [
        random_structure(rng, species).make_supercell([2, 1, 1], in_place=False).perturb(noise, seed=1)
        for species in KINDS
        for noise in (0.0, 0.05, 0.12, 0.2, 0.3)
    ]
    quick = [ReducedCell.of(crystal) for crystal in crystals]
    monkeypatch.setattr(reduction.ReducedCell, "_may_be_smaller", lambda _: True)
    for mine, full in zip(quick, [ReducedCell.of(crystal) for crystal in crystals], strict=True):
        assert mine.species == full.species
        np.testing.assert_allclose(mine.matrix, full.matrix, atol=1e-10)
        np.testing.assert_allclose(mine.fractional, full.fractional, atol=1e-10)


@pytest.mark.parametrize(
    ("cost", "columns", "only", "possible"),
    [
        ([[1.0, 2.0], [1.5, 9.0]], [1, 0], True, True),
        ([[1.0, 1.0], [1.0, 1.0 + 1e-12]], None, False, True),
        ([[1.0, FORBIDDEN], [1.0, FORBIDDEN]], None, True, False),
        ([[FORBIDDEN]], None, True, False),
    ],
)
def test_assignments_that_are_not_the_only_cheapest_are_told(
    cost: list[list[float]], columns: list[int] | None, only: bool, possible: bool
) -> None:
    found, single, feasible = assignment(np.array(cost))
    assert (single, feasible) == (only, possible)
    assert columns is None or found.tolist() == columns


def test_lll_is_pymatgens() -> None:
    rng = np.random.default_rng(2)
    skew: NDArray[np.float64] = rng.normal(0, 1, (300, 3, 3)) + np.array([[4, 0, 0], [3, 4, 0], [0, 5, 3]])
    reduced, mapping, unsure = lll(skew)
    assert not unsure.any()
    assert (mapping != np.eye(3)).any((1, 2)).sum() > 100
    for matrix, mine, steps in zip(skew, reduced, mapping, strict=True):
        np.testing.assert_allclose(mine, Lattice(matrix).lll_matrix, atol=1e-9)
        np.testing.assert_allclose(steps, Lattice(matrix).lll_mapping, atol=1e-9)
    assert lll(Lattice.hexagonal(3, 5).matrix[None])[2].all()


def real(dataset: str, count: int) -> Iterator[Structure]:
    source = Path(os.environ.get("KLDM_DATA", "")) / dataset / "val.csv.gz"
    if "KLDM_DATA" not in os.environ or not source.exists():
        pytest.skip(f"needs {dataset} under KLDM_DATA")
    with gzip.open(source, "rt") as file:
        table = list(csv.DictReader(io.StringIO(file.read())))
    for row in table[:: max(1, len(table) // count)][:count]:
        yield Structure.from_str(row["cif"], fmt="cif")


def check_real(dataset: str, count: int) -> None:
    rng = np.random.default_rng(count)
    matched = total = 0
    for target in real(dataset, count):
        for noise, strain in ((0.01, 0.0), (0.1, 0.02), (0.3, 0.04), (1.0, 0.04), (2.5, 0.04)):
            candidate = changed(target, rng, noise, strain)
            theirs = plain(candidate, target)
            assert agree(Matcher().get_rms_dist(candidate, target), theirs)
            matched, total = matched + (theirs is not None), total + 1
    assert 0.3 * total < matched < total


@pytest.mark.parametrize(("dataset", "count"), [("perov_5", 8), ("mp_20", 8)])
def test_equal_to_pymatgen_on_real_crystals(dataset: str, count: int) -> None:
    check_real(dataset, count)


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "count"), [("perov_5", 300), ("mp_20", 600), ("mpts_52", 100)])
def test_equal_to_pymatgen_on_thousands_of_real_pairs(dataset: str, count: int) -> None:
    check_real(dataset, count)
