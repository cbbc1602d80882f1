"""Coverage against its definition, written out with full matrices, and at its edges."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from kldm.metrics.fingerprinting.coverage import CUTOFFS, Cutoffs, Dataset, coverage_of, minima
from kldm.metrics.fingerprinting.fingerprints import Fingerprint

NONE = Fingerprint(None, None, "none")


def at(structure: float, composition: float = 0.0) -> Fingerprint:
    """Fingerprints on a line, so that distances are differences."""
    return Fingerprint(np.array([structure]), np.array([composition]))


def cloud(seed: int, size: int, missing: int = 0) -> list[Fingerprint]:
    rng = np.random.default_rng(seed)
    found = [Fingerprint(rng.normal(size=4) / 3, rng.normal(size=6) * 5) for _ in range(size)]
    return found + [NONE] * missing


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3))
def test_definition(seed: int, generated: int, reference: int, failed: int, lacking: int) -> None:
    made, known = cloud(seed, generated, failed), cloud(seed + 1, reference, lacking)
    structure = cdist([f.structure for f in made[:generated]], [f.structure for f in known[:reference]])
    composition = cdist([f.composition for f in made[:generated]], [f.composition for f in known[:reference]])
    s, c = float(np.median(structure)), float(np.median(composition.min(axis=0)))
    found = coverage_of(made, known, Cutoffs(s, c))
    assert found.values() == pytest.approx(
        {
            "cov_recall": np.mean((structure.min(axis=0) <= s) & (composition.min(axis=0) <= c)),
            "cov_precision": np.mean((structure.min(axis=1) <= s) & (composition.min(axis=1) <= c))
            * generated
            / (generated + failed),
            "amsd_recall": np.mean(structure.min(axis=0)),
            "amsd_precision": np.mean(structure.min(axis=1)),
            "amcd_recall": np.mean(composition.min(axis=0)),
            "amcd_precision": np.mean(composition.min(axis=1)),
        },
        rel=1e-12,
    )
    assert (found.generated, found.reference, found.copies) == (generated, reference, 0)


def test_two_minima_may_come_from_different_candidates() -> None:
    """The rule of the published code; no single candidate is near in both."""
    found = coverage_of([at(0.0, 100.0), at(5.0, 0.0)], [at(0.0, 0.0)], CUTOFFS["mp_20"])
    assert found.cov_recall == 1.0
    assert found.cov_precision == 0.0
    assert (found.amsd_recall, found.amcd_recall) == (0.0, 0.0)
    assert (found.amsd_precision, found.amcd_precision) == (2.5, 50.0)


def test_both_distances_count_and_cutoffs_are_inclusive() -> None:
    cutoffs = Cutoffs(0.5, 4.0)
    shares = [
        coverage_of([at(s, c)], [at(0.0)], cutoffs).cov_precision
        for s, c in ((0.5, 4.0), (np.nextafter(0.5, 1), 4.0), (0.5, np.nextafter(4.0, 5)))
    ]
    assert shares == [1.0, 0.0, 0.0]


def test_failures_stay_in_the_denominator_and_bad_references_are_left_out() -> None:
    found = coverage_of([at(0.0), NONE, NONE, at(9.0)], [at(0.0), NONE, at(20.0), at(40.0)], CUTOFFS["mp_20"])
    assert found.cov_precision == 1 / 4
    assert found.cov_recall == 1 / 3
    assert found.amsd_precision == 4.5
    assert (found.generated, found.reference, found.copies) == (2, 3, 1)


def test_undefined_is_none() -> None:
    for made, known in (([], []), ([], [at(0.0)]), ([at(0.0)], []), ([at(0.0)], [NONE])):
        assert set(coverage_of(made, known, CUTOFFS["mp_20"]).values().values()) == {None}
    hopeless = coverage_of([NONE], [at(0.0)], CUTOFFS["mp_20"]).values()
    assert (hopeless.pop("cov_recall"), hopeless.pop("cov_precision")) == (0.0, 0.0)
    assert set(hopeless.values()) == {None}


@pytest.mark.parametrize("block", [1, 7, 20, 21, 10_000])
def test_blocks_do_not_matter(block: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(23, 5)), rng.normal(size=(7, 5))
    whole = cdist(a, b)
    of_a, of_b = minima(a, b, block)
    assert np.array_equal(of_a, whole.min(axis=1))
    assert np.array_equal(of_b, whole.min(axis=0))


@pytest.mark.parametrize(
    ("dataset", "structure", "composition"),
    [("mp_20", 0.4, 10), ("alex_mp_20", 0.4, 10), ("mpts_52", 0.4, 10), ("perov_5", 0.2, 4), ("carbon_24", 0.2, 4)],
)
def test_published_cutoffs(dataset: Dataset, structure: float, composition: float) -> None:
    cutoffs = CUTOFFS[dataset]
    assert (cutoffs.structure, cutoffs.composition) == (structure, composition)
    assert cutoffs.published is (dataset != "mpts_52")
