"""What every registered metric must do with any samples, hopeless ones included."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import DummySpecies
from pymatgen.core.structure import Structure

import kldm.metrics  # noqa: F401 - puts the metrics on their shelf
from kldm import registry
from kldm.evaluation.report import flat, terms_of
from kldm.evaluation.tables import parts
from kldm.interfaces import Candidate, Measurement, Metric, Samples


def crystal(matrix: npt.ArrayLike, x: float = 0.5, species: Sequence[str | DummySpecies] = ("Cs", "Cl")) -> Structure:
    return Structure(Lattice(np.array(matrix)), list(species), np.array([[0, 0, 0], [x, 0.5, 0.5]]))


def samples() -> Samples:
    """Three targets, the last without an answer; two answers each, most of them hopeless."""
    good = crystal(4.1 * np.eye(3))
    hopeless = [
        crystal(4.1 * np.eye(3), x=math.nan),
        crystal(4.1 * np.eye(3), x=math.inf),
        crystal(np.diag([-4.1, 4.1, 4.1])),
        crystal([[4, 0, 0], [0, 4, 0], [4, 4, 0]]),
        crystal(np.zeros((3, 3))),
        crystal(np.full((3, 3), math.nan)),
        crystal(1e-3 * np.eye(3)),
        crystal(4.1 * np.eye(3), species=(DummySpecies("X"), "Cl")),
        Structure(Lattice.cubic(4.0), [], []),
        None,
    ]
    bad = [Candidate(1, number, structure, "") for number, structure in enumerate(hopeless)]
    answers = [Candidate(0, 1, crystal(4.3 * np.eye(3), x=0.52)), *bad, Candidate(0, 0, good)]
    return Samples(tuple(answers), (good, good, good))


@pytest.fixture(params=registry.metrics.names())
def metric(request: pytest.FixtureRequest) -> Metric:
    built: Metric = registry.metrics.get(request.param)()
    return built


def check(found: Measurement, judged: Samples) -> None:
    assert found.values
    assert all(value is None or math.isfinite(value) for value in found.values.values())
    assert found.definition
    assert all(note.endswith(".") for note in found.notes)
    if found.rows:
        asked = [(c.target, c.candidate) for c in judged.candidates]
        assert [(row["target"], row["candidate"]) for row in found.rows] == asked


def test_bad_structures_are_judged_not_raised(metric: Metric) -> None:
    judged = samples()
    check(metric.measure(judged), judged)


def test_nothing_at_all(metric: Metric) -> None:
    good = samples().reference
    for judged in (Samples((), ()), Samples((), good), Samples((Candidate(0, 0, None, "failed"),), good)):
        check(metric.measure(judged), judged)


def test_repeats_and_leaves_its_input_alone(metric: Metric) -> None:
    judged, before = samples(), samples()
    first, second = metric.measure(judged), metric.measure(judged)
    assert (first.values, first.rows) == (second.values, second.rows)
    assert judged.reference == before.reference
    assert judged.candidates[0].structure == before.candidates[0].structure


def test_its_terms_are_about_its_own_values_and_definition(metric: Metric) -> None:
    terms, judged = terms_of(metric), samples()
    found = metric.measure(judged)
    for beginning in terms.shares:
        named = [name for name in found.values if parts(name)[-1].startswith(beginning)]
        assert all((value := found.values[name]) is None or 0 <= value <= 1 for name in named)
    stated = flat(found.definition)
    for keys in terms.agree.values():
        for key in keys:
            if not key.endswith((".", "?")) and key.partition(".")[0] in found.definition:
                assert key in stated


def test_one_that_needs_no_reference_looks_at_none(metric: Metric) -> None:
    if not terms_of(metric).needs_reference:
        judged = samples()
        assert metric.measure(Samples(judged.candidates, ())).values == metric.measure(judged).values


def test_order_of_candidates_does_not_matter(metric: Metric) -> None:
    judged = samples()
    turned = Samples(judged.candidates[::-1], judged.reference)
    assert metric.measure(turned).values == pytest.approx(metric.measure(judged).values)
