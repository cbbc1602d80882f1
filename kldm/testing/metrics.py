"""Checks of metrics: they must measure any samples, hopeless ones included."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kldm.evaluation.tables import parts
from kldm.interfaces import Candidate, Measurement, Metric, Samples, StatesTerms
from kldm.testing.crystals import expect, run_checks

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

MetricCheck = Callable[[Metric], None]


def judges_bad_structures(metric: Metric) -> None:
    """Broken structures do not raise."""
    samples = hopeless_samples()
    _well_formed(metric.measure(samples), samples)


def judges_nothing_at_all(metric: Metric) -> None:
    """No samples, no reference, or nothing but failures."""
    reference = hopeless_samples().reference
    for samples in (
        Samples((), ()),
        Samples((), reference),
        Samples((Candidate(0, 0, None, "failed"),), reference),
    ):
        _well_formed(metric.measure(samples), samples)


def counts_failures(metric: Metric) -> None:
    """One success out of one request is better than one out of four: failures may not be left out."""
    good = _caesium_chloride(4.1)
    alone = Samples((Candidate(0, 0, good),), (good,))
    failures = tuple(Candidate(target, 0, None, "failed") for target in (1, 2, 3))
    with_failures = Samples((*alone.candidates, *failures), (good,) * 4)
    same = _same(metric.measure(alone), metric.measure(with_failures))
    expect(not same, "one success of one request and one of four have the same values: it leaves failures out")


def repeats_itself(metric: Metric) -> None:
    """The same samples give the same values, and are not changed."""
    samples, before = hopeless_samples(), hopeless_samples()
    first, second = metric.measure(samples), metric.measure(samples)
    expect(_same(first, second) and first.rows == second.rows, "a second measurement gives different values")
    same = samples.reference == before.reference and samples.candidates[0].structure == before.candidates[0].structure
    expect(same, "it changes the structures that it measures")


def ignores_the_order_of_candidates(metric: Metric) -> None:
    """Candidates have numbers, so their order does not matter."""
    samples = hopeless_samples()
    same = _same(metric.measure(samples), metric.measure(Samples(samples.candidates[::-1], samples.reference)))
    expect(same, "values depend on the order of the candidates")


def needs_no_reference_where_it_says_so(metric: Metric) -> None:
    """A metric whose terms say that it needs no reference gives the same values without one."""
    if not isinstance(metric, StatesTerms) or metric.terms.needs_reference:
        return
    samples = hopeless_samples()
    same = _same(metric.measure(samples), metric.measure(Samples(samples.candidates, ())))
    expect(same, "it says that it needs no reference, and has different values without one")


def has_shares_from_0_to_1(metric: Metric) -> None:
    """Values that its terms call shares are in [0, 1]."""
    if not isinstance(metric, StatesTerms):
        return
    for name, value in metric.measure(hopeless_samples()).values.items():
        share = parts(name)[-1].startswith(metric.terms.shares)
        expect(not share or value is None or 0 <= value <= 1, f"it calls {name} a share, which cannot be {value}")


METRIC_CHECKS: tuple[MetricCheck, ...] = (
    judges_bad_structures,
    judges_nothing_at_all,
    counts_failures,
    repeats_itself,
    ignores_the_order_of_candidates,
    needs_no_reference_where_it_says_so,
    has_shares_from_0_to_1,
)


def check_metric(metric: Metric) -> None:
    """Every check on a metric.

    Raises:
        AssertionError: a check fails; one sentence says what is wrong.
    """
    run_checks(METRIC_CHECKS, metric)


def hopeless_samples() -> Samples:
    """Three targets, the last without an answer; two or more answers to the others, most of them broken."""
    import numpy as np
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.periodic_table import DummySpecies
    from pymatgen.core.structure import Structure

    def crystal(matrix: "np.typing.ArrayLike", x: float = 0.5, first: "str | DummySpecies" = "Cs") -> Structure:
        species: list[Any] = [first, "Cl"]
        return Structure(Lattice(np.array(matrix)), species, np.array([[0, 0, 0], [x, 0.5, 0.5]]))

    good, cube = _caesium_chloride(4.1), 4.1 * np.eye(3)
    broken = [
        crystal(cube, x=math.nan),
        crystal(cube, x=math.inf),
        crystal(np.diag([-4.1, 4.1, 4.1])),
        crystal([[4, 0, 0], [0, 4, 0], [4, 4, 0]]),
        crystal(np.zeros((3, 3))),
        crystal(np.full((3, 3), math.nan)),
        crystal(1e-3 * np.eye(3)),
        crystal(cube, first=DummySpecies("X")),
        Structure(Lattice.cubic(4.0), [], []),
        None,
    ]
    bad = [Candidate(1, number, structure) for number, structure in enumerate(broken)]
    answers = [Candidate(0, 1, crystal(4.3 * np.eye(3), x=0.52)), *bad, Candidate(0, 0, good)]
    return Samples(tuple(answers), (good, good, good))


def _caesium_chloride(edge: float) -> "Structure":
    import numpy as np
    from pymatgen.core.lattice import Lattice
    from pymatgen.core.structure import Structure

    return Structure(Lattice.cubic(edge), ["Cs", "Cl"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))


def _well_formed(measurement: Measurement, samples: Samples) -> None:
    expect(measurement.values, "it has no values")
    for name, value in measurement.values.items():
        expect(value is None or math.isfinite(value), f"{name} is {value}; a value that is not defined must be None")
    expect(measurement.definition, "it has no definition of its values")
    expect(all(note.endswith(".") for note in measurement.notes), "its notes are not sentences")
    if measurement.rows:
        sentence = "its rows are not one for each candidate, in their order and with failures"
        expect(len(measurement.rows) == len(samples.candidates), sentence)
        for row, candidate in zip(measurement.rows, samples.candidates, strict=True):
            numbers = (row.get("target", candidate.target), row.get("candidate", candidate.candidate))
            expect(numbers == (candidate.target, candidate.candidate), sentence)


def _same(first: Measurement, second: Measurement) -> bool:
    """Whether two measurements have the same values, up to rounding."""
    if first.values.keys() != second.values.keys():
        return False
    pairs = ((first.values[name], second.values[name]) for name in first.values)
    return all(a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6)) for a, b in pairs)
