"""One of several answers chosen by the answers alone."""

import itertools
from collections.abc import Sequence

import attrs
import numpy as np
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Samples
from kldm.metrics import MatchRate
from kldm.metrics.matching.matcher import Matcher
from kldm.metrics.matching.selection import consensus, shortest_distance


def salt(x: float = 0.0, edge: float = 3.4, c: float = 3.4, second: str = "Cl") -> Structure:
    """Two atoms, the first displaced by x along the first edge: two of them have an rms that grows with |x - x'|."""
    return Structure(Lattice.tetragonal(edge, c), ["Na", second], np.array([[x, 0, 0], [0.5, 0.5, 0.5]]))


BROKEN = Structure(Lattice.cubic(4.0), ["Na", "Cl"], np.array([[0, 0, 0], [0.01, 0, 0]]))


def answers(structures: Sequence[Structure | None], target: int = 0) -> list[Candidate]:
    return [Candidate(target, n, structure, "" if structure else "failed") for n, structure in enumerate(structures)]


def selected(structures: Sequence[Structure | None]) -> int:
    """The number of the selected candidate."""
    (number,) = (candidate.candidate for candidate in consensus(answers(structures)) if candidate.selected)
    return number


def test_the_middle_of_the_largest_heap_is_selected_in_any_order() -> None:
    """Three near copies, of which the second is in the middle, and an outlier that matches none."""
    outlier = salt(c=8.0)
    near = [salt(0.0), salt(0.01), salt(0.02)]
    matcher = Matcher()
    assert all(matcher.get_rms_dist(outlier, structure) is None for structure in near)
    made = {"outlier": outlier, "low": near[0], "middle": near[1], "high": near[2]}
    for order in itertools.permutations(made):
        assert order[selected([made[name] for name in order])] == "middle"


def test_more_matches_come_before_closer_ones() -> None:
    """Two that are equal, and three that are less so."""
    heap = [salt(0.0), salt(0.03), salt(0.06)]
    pair = [salt(c=8.0), salt(c=8.0)]
    assert selected([*pair, *heap]) == 3


def test_where_none_match_the_longest_shortest_distance_decides() -> None:
    far = [salt(c=c, edge=edge) for c, edge in ((12.0, 3.0), (3.4, 3.4), (3.5, 7.0))]
    matcher = Matcher()
    assert all(matcher.get_rms_dist(a, b) is None for a, b in itertools.combinations(far, 2))
    distances = [shortest_distance(structure) for structure in far]
    assert distances == pytest.approx([3.0, 3.4 * np.sqrt(3) / 2, 3.5])
    assert selected(far) == 2
    assert selected([salt(), salt()]) == 0  # nothing to tell them apart


def test_two_that_match_each_other_alone_are_told_apart_by_distance() -> None:
    assert selected([salt(0.05), salt(0.0)]) == 1


def test_the_invalid_is_never_selected_beside_a_valid_one() -> None:
    assert selected([None, BROKEN, BROKEN, BROKEN, salt()]) == 4
    assert selected([BROKEN, salt(c=9.0), BROKEN, salt(0.02), salt(0.0), None]) in (3, 4)
    assert selected([None, BROKEN, BROKEN]) == 0


def test_other_compositions_do_not_match() -> None:
    assert selected([salt(second="Br"), salt(second="Br"), salt(), salt(0.01), salt(0.02)]) == 3


def test_every_target_has_one_and_nothing_else_changes() -> None:
    made = [*answers([salt(), None, salt(0.02)], 3), *answers([None, None], 7), *answers([salt(c=9.0)], 1)]
    shuffled = [made[place] for place in (4, 0, 2, 5, 1, 3)]
    found = consensus(shuffled)
    assert sorted((c.target, c.candidate) for c in found if c.selected) == [(1, 0), (3, 0), (7, 0)]
    assert [attrs.evolve(c, selected=False).structure for c in found] == [c.structure for c in shuffled]
    assert [c.selected for c in consensus(shuffled, workers=2)] == [c.selected for c in found]
    assert consensus([]) == ()
    with pytest.raises(KldmError, match="workers: must be"):
        consensus(made, workers=0)


@pytest.mark.usefixtures("in_this_process")
def test_a_pair_over_the_time_limit_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from kldm.metrics.matching import pairs
    from kldm.metrics.matching.pairs import PairResult, _match_pair
    from kldm.metrics.matching.reduction import ReducedCell

    def slow(matcher: Matcher, target: ReducedCell, candidate: ReducedCell) -> PairResult:
        if candidate.volume > 60:
            time.sleep(1)
        return _match_pair(matcher, target, candidate)

    monkeypatch.setattr(pairs, "_match_pair", slow)
    found = consensus(answers([salt(0.05), salt(0.02), salt(edge=4.0, c=4.0)]), time_limit=0.2)
    assert [candidate.selected for candidate in found] == [False, True, False]


def shifted(rms: float) -> Structure:
    """With this rms to the undistorted one: half of the displacement over (V/n)^(1/3)."""
    return salt(2 * rms / 2 ** (1 / 3))


@pytest.mark.parametrize("marked", [False, True])
def test_selected_of_k_stands_beside_plain_figures(marked: bool) -> None:
    """Of target 0, candidate 0 is the outlier; of target 1, the heap is elsewhere; 2 has failed, 3 has no answers."""
    candidates = [
        *answers([salt(c=8.0), shifted(0.01), shifted(0.03), shifted(0.04)], 0),
        *answers([shifted(0.0), salt(c=8.0), salt(c=8.1), salt(c=8.2)], 1),
        *answers([None, None, None, None], 2),
    ]
    reference = (salt(),) * 4
    metric = MatchRate(metre=False) if marked else MatchRate(metre=False, select="consensus")
    found = metric.measure(Samples(consensus(candidates) if marked else tuple(candidates), reference))
    for rule in ("structural", "full"):
        expected = {
            "match_rate@1": 0.25,
            "match_rate@4": 0.5,
            "match_rate@selected_of_4": 0.25,
            "rmse@1": 0.0,
            "rmse@selected_of_4": 0.03,
            "crmse@selected_of_4": (0.03 + 3 * 0.5) / 4,
            "share_below_0.02@selected_of_4": 0.0,
            "share_below_0.1@selected_of_4": 0.25,
        }
        assert {name: found.values[f"{rule}.{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert [row["selected"] for row in found.rows] == [number in (2, 5, 8) for number in range(12)]
    assert list(found.rows[0])[-1] == "selected"
    assert str(found.definition["selected"]).startswith("the candidate of each" if marked else "consensus: ")


def test_without_a_selection_nothing_is_said_of_it() -> None:
    found = MatchRate(metre=False).measure(Samples(tuple(answers([salt(), salt()])), (salt(),)))
    assert not any("selected" in name for name in found.values)
    assert "selected" not in found.definition
    assert "selected" not in found.rows[0]
    alone = MatchRate(metre=False, select="consensus").measure(Samples(tuple(answers([salt()])), (salt(),)))
    assert not any("selected" in name for name in alone.values)
    assert "There is one candidate of each target, so nothing is selected." in alone.notes


def test_one_of_each_target_must_be_marked() -> None:
    marked = [attrs.evolve(candidate, selected=True) for candidate in answers([salt(), salt()])]
    with pytest.raises(KldmError, match="2 of the 2 candidates of target 0 are marked"):
        MatchRate().measure(Samples(tuple(marked), (salt(),)))
    some = [*answers([salt(), salt()], 1), marked[0], attrs.evolve(marked[1], selected=False)]
    with pytest.raises(KldmError, match="0 of the 2 candidates of target 1 are marked as selected; mark one of each"):
        MatchRate().measure(Samples(tuple(some), (salt(), salt())))


def test_what_is_selected_is_asked_for_its_fingerprint() -> None:
    """The selected one is neither the nearest nor candidate 0."""
    some = answers([shifted(0.2), shifted(0.01), shifted(0.06), shifted(0.07), shifted(0.08)])
    found = MatchRate(metre=False, select="consensus").measure(Samples(tuple(some), (salt(),)))
    assert [row["selected"] for row in found.rows].index(True) == 3
    assert found.rows[3]["fingerprint"] is True
    assert found.values["full.rmse@selected_of_5"] == pytest.approx(0.07, rel=1e-6)
