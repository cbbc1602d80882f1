"""The compositional rule: equal to the plain loop over all oxidation states, and its known traps."""

import csv
import gzip
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import smact
from pymatgen.core.composition import Composition
from pymatgen.core.periodic_table import DummySpecies, Species
from smact.screening import pauling_test, smact_validity

from kldm.data import Data
from kldm.errors import KldmError
from kldm.metrics.composition import MOST_COMBINATIONS, States, compositional_validity

UNBALANCED, AGAINST = "charges cannot be balanced", "charges against electronegativity"
SEARCHABLE = 20_000
"""The plain loop takes about 5 us per combination; compositions beyond this are left to the rule for large searches."""


def valid(formula: str, states: States = "smact14", legacy: bool = False) -> bool:
    return compositional_validity(Composition(formula), states=states, legacy=legacy) == ""


element = cache(smact.Element)


def old_pauling_test(charges: Sequence[int], electronegativities: Sequence[float | None]) -> bool:
    """Rule 5 of smact 2.2.1: comparing a number with None raises TypeError, which its callers took for passed."""
    for first, second in itertools.combinations(zip(charges, electronegativities, strict=True), 2):
        cation, anion = (first, second) if first[0] > second[0] else (second, first)
        if cation[0] > 0 > anion[0]:
            if cation[1] is None or anion[1] is None:
                return True
            if cation[1] >= anion[1]:
                return False
        elif first[1] is None or second[1] is None:
            return False
    return True


def plain(counts: Mapping[str, int], states: States, legacy: bool) -> bool:
    """The definition, one combination after the other."""
    symbols = sorted(counts, key=lambda symbol: element(symbol).number)
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    sets, electronegativities = [], []
    for symbol in symbols:
        known = element(symbol)
        sets.append((known.oxidation_states_smact14 if states == "smact14" else known.oxidation_states_icsd24) or [])
        electronegativities.append(known.pauling_eneg)
        if legacy and symbol == "Ir":
            sets[-1] = [-2, -1, 1, 2, 3, 4, 5, 6, 7, 8]
        if legacy and symbol == "Zr":
            electronegativities[-1] = 0.33
    if math.prod(map(len, sets)) > MOST_COMBINATIONS:
        return False
    divisor = math.gcd(*counts.values())
    ratio = [(counts[symbol] // divisor,) for symbol in symbols]
    test = old_pauling_test if legacy else pauling_test
    return any(
        smact.neutral_ratios(charges, stoichs=ratio, threshold=max(ratio)[0]) and test(charges, electronegativities)
        for charges in itertools.product(*sets)
    )


def combinations(counts: Mapping[str, int]) -> int:
    return math.prod(len(element(symbol).oxidation_states_smact14 or ()) for symbol in counts)


def check(compositions: Iterable[Mapping[str, int]]) -> tuple[int, int]:
    """Asserts that every composition is judged as the plain loop does, in all modes; counts checks and valid ones."""
    checked = passed = 0
    modes: list[tuple[States, bool]] = [("smact14", False), ("smact14", True), ("icsd24", False)]
    for counts in compositions:
        if SEARCHABLE < combinations(counts) <= MOST_COMBINATIONS:
            continue
        for states, legacy in modes:
            found = compositional_validity(counts, states=states, legacy=legacy)
            assert (found == "") is plain(counts, states, legacy), (counts, states, legacy, found)
            checked, passed = checked + 1, passed + (found == "")
    return checked, passed


def random_compositions(number: int, seed: int, most_elements: int = 4) -> Iterator[Mapping[str, int]]:
    """Two or more elements, anions and the elements without electronegativity among them more often than others."""
    rng = np.random.default_rng(seed)
    pool = [*smact.ordered_elements(1, 103), *(3 * smact.anions), *(4 * ["Pm", "Rn", "Lr", "Ir", "Zr"])]
    for _ in range(number):
        symbols = rng.choice(pool, rng.integers(2, most_elements + 1))
        yield {str(symbol): int(rng.integers(1, 7)) for symbol in symbols}


def formulas(data_set: str, split: str) -> list[Mapping[str, int]]:
    """The distinct compositions of a published CSV, from its CIFs' own formula sums."""
    folder = os.environ.get("KLDM_DATA")
    source = Path(folder or "") / data_set / f"{split}.csv.gz"
    if folder is None or not source.exists():
        pytest.skip(f"needs {data_set} under KLDM_DATA")
    with gzip.open(source, "rt") as file:
        cifs = [row["cif"] for row in csv.DictReader(file)]
    sums = {next(line for line in cif.splitlines() if line.startswith("_chemical_formula_sum")) for cif in cifs}
    parsed = [Composition(line.split(maxsplit=1)[1].strip("'\"")) for line in sorted(sums)]
    return [{symbol: int(amount) for symbol, amount in composition.get_el_amt_dict().items()} for composition in parsed]


def test_random_compositions_are_judged_as_by_the_plain_loop() -> None:
    checked, passed = check(random_compositions(1500, seed=0))
    assert checked > 3000
    assert 0.1 < passed / checked < 0.9


def test_prototypes_are_judged_as_by_the_plain_loop() -> None:
    store = Data(name="aflow_prototypes").load("train")
    symbols = smact.ordered_elements(1, 103)
    compositions = []
    for row in range(len(store)):
        species = store.batch([row]).species.tolist()
        compositions.append({symbols[z - 1]: species.count(z) for z in set(species)})
    checked, passed = check(compositions)
    assert checked > 300
    assert passed / checked > 0.5


@pytest.mark.parametrize("data_set", ["perov_5", "mp_20"])
def test_some_published_compositions_are_judged_as_by_the_plain_loop(data_set: str) -> None:
    assert check(formulas(data_set, "test")[::40])[0] > 200


@pytest.mark.slow
@pytest.mark.parametrize("data_set", ["perov_5", "mp_20"])
def test_all_published_compositions_are_judged_as_by_the_plain_loop(data_set: str) -> None:
    assert check(formulas(data_set, "test"))[0] > 5000


@pytest.mark.slow
def test_many_random_compositions_are_judged_as_by_the_plain_loop() -> None:
    assert check(random_compositions(10_000, seed=1, most_elements=5))[0] > 20_000


@pytest.mark.parametrize("states", ["smact14", "icsd24"])
def test_smact_itself_agrees(states: States) -> None:
    """Without legacy this is smact 4's own rule, but for the limit on large searches."""
    for counts in random_compositions(300, seed=2, most_elements=3):
        expected = smact_validity(Composition(dict(counts)), oxidation_states_set=states)
        assert (compositional_validity(counts, states=states) == "") is expected, counts


@pytest.mark.parametrize("formula", ["NaCl", "TiO2", "SrTiO3", "LiFePO4", "C", "C8", "Na3Bi", "Cu3Au", "FeNiCr", "Xe"])
def test_ordinary_matter_is_valid(formula: str) -> None:
    for legacy in (False, True):
        assert valid(formula, legacy=legacy)


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        ("NaCl2", UNBALANCED),
        ("Fe3O4", UNBALANCED),  # all Fe share one oxidation state
        ("NaZrH", AGAINST),  # only Na- Zr2+ H- is neutral, and Na is the most electropositive
        ("HeO", "element without oxidation states"),
        ("NaNe", "element without oxidation states"),
        ("ArF2", "element without oxidation states"),
        ("RfO2", "unknown element"),
        ("Og", "unknown element"),
    ],
)
def test_reasons(formula: str, reason: str) -> None:
    assert compositional_validity(Composition(formula)) == reason


def test_noble_gases_alone_are_valid() -> None:
    assert all(valid(f"{symbol}2") for symbol in ("He", "Ne", "Ar"))


@pytest.mark.parametrize(
    ("formula", "today", "legacy"),
    [
        ("Pm2O3", "element without electronegativity", ""),  # O2- meets Pm3+ first: not comparable, passed
        ("RnF2", "element without electronegativity", ""),
        ("LrCl3", "element without electronegativity", ""),
        ("NaPmCl4", "element without electronegativity", AGAINST),  # Na+ meets Cl-, passes; then meets Pm3+, fails
        ("PmNa", UNBALANCED, UNBALANCED),  # Pm is not among smact's metals
        ("NaZrH", AGAINST, ""),  # EN 0.33 of Zr lies below Na's
        ("K3IrH", AGAINST, ""),  # K3 Ir2- H-; without Ir2- only K- is neutral
        ("Fe3O4", UNBALANCED, UNBALANCED),
    ],
)
def test_legacy_differs_in_missing_electronegativities_and_two_metals(formula: str, today: str, legacy: str) -> None:
    assert compositional_validity(Composition(formula)) == today
    assert compositional_validity(Composition(formula), legacy=True) == legacy


def test_counts_are_divided_by_their_common_divisor() -> None:
    """The slip of the KLDM code: neutral_ratios drops every ratio with a divisor."""
    assert compositional_validity({"Na": 4, "Cl": 4}) == ""
    assert compositional_validity({"Na": 4, "Cl": 8}) == UNBALANCED


def test_every_way_to_name_elements() -> None:
    ions = Composition({Species("Fe", 2): 1, Species("Fe", 3): 2, Species("O", -2): 4})
    assert compositional_validity(ions) == compositional_validity({26: 3, 8: 4}) == UNBALANCED
    assert compositional_validity({np.int64(11): 1, np.int64(17): 1}) == ""  # type: ignore[arg-type]
    assert compositional_validity({"D": 1, "H": 1, "O": 1}) == ""
    assert compositional_validity({"Na": 1, "Cl": 1, "He": 0}) == ""


def test_what_is_no_composition_is_a_reason() -> None:
    assert compositional_validity({}) == compositional_validity(Composition()) == "no atoms"
    assert compositional_validity({0: 1, 8: 1}) == compositional_validity({"Xx": 2}) == "unknown element"
    assert compositional_validity(Composition({DummySpecies("X"): 1, "Cl": 1})) == "unknown element"
    fractions: Sequence[Mapping[str, float]] = [{"Na": 0.5, "Cl": 1}, {"Na": math.nan}, {"Na": math.inf}, {"Na": -1}]
    for counts in fractions:
        assert compositional_validity(counts) == "counts of atoms not whole numbers"  # type: ignore[arg-type]
    assert compositional_validity({"Na": "one"}) == "cannot be examined: must be real number, not str"  # type: ignore[arg-type]


def test_large_searches_are_invalid_unless_asked_for() -> None:
    counts = dict.fromkeys(("Mn", "Cr", "Re", "Os", "Ru", "Fe", "Mo", "O"), 1)
    assert combinations(counts) > MOST_COMBINATIONS
    assert compositional_validity(counts) == "too many combinations of oxidation states"
    assert compositional_validity(counts, most_combinations=None) == ""
    few = {"Na": 1, "Cl": 1}  # 2 x 8 combinations
    assert compositional_validity(few, most_combinations=combinations(few)) == ""
    assert compositional_validity(few, most_combinations=combinations(few) - 1) != ""


def test_sets_of_oxidation_states_differ() -> None:
    assert valid("RaO")
    assert not valid("RaO", states="icsd24")


def test_users_mistakes() -> None:
    with pytest.raises(KldmError, match="states: must be one of smact14, icsd24, got 'icsd16'"):
        compositional_validity({"Na": 1}, states="icsd16")  # type: ignore[arg-type]
    with pytest.raises(KldmError, match="legacy: there is no legacy form of the oxidation states icsd24"):
        compositional_validity({"Na": 1}, states="icsd24", legacy=True)
