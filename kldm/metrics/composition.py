"""Whether a composition makes chemical sense: the charge and electronegativity test of SMACT."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from operator import index
from typing import TYPE_CHECKING, Literal, get_args

import attrs

from kldm.data.formulas import reduced_counts
from kldm.errors import KldmError, reason_of

if TYPE_CHECKING:
    from pymatgen.core.composition import Composition

States = Literal["smact14", "icsd24"]
"""Which oxidation states an element may take: ``smact14``, SMACT's hand-made set of 2014 that all published tables
use; ``icsd24``, those with more than five reports in the ICSD of 2024 (``Element.oxidation_states_icsd24``, today's
default of smact's ``Element``; ``smact_validity`` without a named set takes three or more reports instead)."""

MOST_COMBINATIONS = 10_000_000
"""Compositions with more choices of oxidation states are invalid, as in the DiffCSP, EquiCSP and KLDM codes."""

Counts = tuple[tuple[int, int], ...]
"""(atomic number, count) of every element, sorted by atomic number; the counts have no common divisor."""

Charges = Sequence[int]
"""What the atoms of one element can contribute to the charge of a formula unit, c_i q_i for every state q_i."""


def compositional_validity(
    composition: "Composition | Mapping[str, int] | Mapping[int, int]",
    *,
    states: States = "smact14",
    legacy: bool = False,
    most_combinations: int | None = MOST_COMBINATIONS,
) -> str:
    """Why a composition is invalid, or ``""`` for a valid one (Davies et al., Chem 1, 617, 2016; used as a metric
    since Xie et al. 2022, CDVAE).

    With the counts c_i divided by their greatest common divisor, a composition is valid if it has one element, or
    consists of metals (``smact.metals``), or if one oxidation state q_i for each element can be chosen such that

        sum_i c_i q_i = 0    and    EN_i < EN_j for every pair with q_i > 0 > q_j,

    EN being Pauling's electronegativity. All atoms of an element share one state: there is no mixed valence.
    More than ``most_combinations`` choices are not searched but invalid. Without ``legacy``, two or more elements of
    which one has no electronegativity (Pm, Rn, Lr) are invalid, as smact 4 has it.

    Args:
        composition: counts by element, symbol or atomic number; they must be whole numbers.
        states: the set of oxidation states.
        legacy: decide as smact 2.2.1, behind all published tables, does. Ir has the states -2, -1, 1 to 8 (today -3,
            -1, 1 to 8); EN of Zr is its misprint 0.33. Pairs are compared in the order of atomic numbers, and
            the first one without an electronegativity ends the comparison: opposite charges pass, others fail.
        most_combinations: of oxidation states; None: no limit, as in the CDVAE code.

    Returns:
        A reason without measured numbers, so that reasons can be counted. Never raises on a composition.

    Raises:
        KldmError: an unknown set of states, or ``legacy`` with another set than ``smact14``.
    """
    check_states(states, legacy)
    try:
        counts = _reduced(composition)
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:  # whatever a caller took for counts
        return f"cannot be examined: {reason_of(error)}"
    return counts if isinstance(counts, str) else _fault(counts, states, legacy, most_combinations)


def check_states(states: str, legacy: bool) -> None:
    """Raises ``KldmError`` for a set of oxidation states that does not exist or has no legacy form."""
    if states not in get_args(States):
        raise KldmError(f"must be one of {', '.join(get_args(States))}, got {states!r}", place="states")
    if legacy and states != "smact14":
        remedy = "leave states at smact14, or legacy off"
        raise KldmError(f"there is no legacy form of the oxidation states {states}", place="legacy", remedy=remedy)


def compositional_rule(states: States = "smact14", legacy: bool = False) -> str:
    """The rule in words, for the definition of a result."""
    source = "2.2.1 (legacy)" if legacy else version("smact")
    return (
        f"smact {source}, oxidation states {states}, counts over their common divisor: one element, metals only, or "
        "one oxidation state per element that is neutral and gives positive charges to the less electronegative; "
        f"more than {MOST_COMBINATIONS:.0e} combinations: invalid"
    )


@attrs.frozen
class _Element:
    """What the rule needs to know of an element."""

    metal: bool
    electronegativity: float | None
    states: tuple[int, ...]


def _reduced(composition: "Composition | Mapping[str, int] | Mapping[int, int]") -> Counts | str:
    """The counts without a common divisor, isotopes and ions added to their element; or why they are invalid."""
    numbers = _atomic_numbers()
    atoms: dict[int, int] = {}
    for key, amount in composition.items():
        if not math.isfinite(amount) or amount < 0 or amount != int(amount):
            return "counts of atoms not whole numbers"
        name = getattr(key, "symbol", key)
        number = numbers.get(name) if isinstance(name, str) else index(name)
        if number is None:
            return "unknown element"
        if amount:
            atoms[number] = atoms.get(number, 0) + int(amount)
    return tuple(sorted(reduced_counts(atoms).items()))


@lru_cache(maxsize=100_000)
def _fault(counts: Counts, states: States, legacy: bool, most_combinations: int | None) -> str:
    if not counts:
        return "no atoms"
    known = _elements(states, legacy)
    if not all(number in known for number, _ in counts):
        return "unknown element"
    elements = [known[number] for number, _ in counts]
    if len(elements) == 1 or all(element.metal for element in elements):
        return ""
    if not all(element.states for element in elements):
        return "element without oxidation states"
    if most_combinations is not None and math.prod(len(element.states) for element in elements) > most_combinations:
        return "too many combinations of oxidation states"
    charges = [[count * state for state in e.states] for e, (_, count) in zip(elements, counts, strict=True)]
    if 0 not in _sums(charges):
        return "charges cannot be balanced"
    electronegativities = [element.electronegativity for element in elements]
    measured = [value for value in electronegativities if value is not None]
    if len(measured) == len(elements):
        return "" if _ordered(charges, measured) else "charges against electronegativity"
    if not legacy:
        return "element without electronegativity"
    return "" if _passes_by_gap(charges, electronegativities) else "charges against electronegativity"


def _sums(charges: Iterable[Charges]) -> set[int]:
    """All sums of one charge of every element: they are few, although many choices lead to them."""
    sums = {0}
    for choices in charges:
        sums = {total + charge for total in sums for charge in choices}
    return sums


def _ordered(charges: Sequence[Charges], electronegativities: Sequence[float]) -> bool:
    """Whether a neutral choice passes the Pauling test. It passes if some electronegativity x parts the elements: none
    above x is positive, and none up to x is negative. So it suffices that for some x a positive sum of one side equals
    a negative sum of the other; no choice is ever listed."""
    elements = list(zip(charges, electronegativities, strict=True))
    return any(
        not _sums([c for c in choices if c >= 0] for choices, value in elements if value <= x).isdisjoint(
            _sums([-c for c in choices if c <= 0] for choices, value in elements if value > x)
        )
        for x in (-math.inf, *electronegativities)
    )


def _passes_by_gap(charges: Sequence[Charges], electronegativities: Sequence[float | None]) -> bool:
    """Whether a neutral choice passes the Pauling test of smact 2.2.1 where electronegativities are missing.

    Its loop over pairs i < j ends at the first pair with a gap: (0, g), g being the first element with a gap, or
    (0, 1) where element 0 has it. There opposite charges pass. Of the pairs before, (0, 1) to (0, g - 1), none may
    violate the rule; later pairs are never compared.
    """
    gap = max(1, electronegativities.index(None))
    first = electronegativities[0]

    def allowed(number: int, sign: int) -> Charges:
        """What element ``number`` may contribute if element 0 has this sign."""
        if number == 0:
            return [c for c in charges[0] if c * sign > 0]
        if number == gap:
            return [c for c in charges[gap] if c * sign < 0]
        other = electronegativities[number]
        if number > gap or first is None or other is None or (other - first) * sign > 0:
            return charges[number]
        return [c for c in charges[number] if c * sign >= 0]

    return any(0 in _sums(allowed(number, sign) for number in range(len(charges))) for sign in (1, -1))


@cache
def _atomic_numbers() -> Mapping[str, int]:
    from pymatgen.core.periodic_table import Element

    return {element.symbol: element.Z for element in Element} | {"D": 1, "T": 1}


@cache
def _elements(states: States, legacy: bool) -> Mapping[int, _Element]:
    """Every element that smact knows (to Lr), by atomic number."""
    import smact

    metals = frozenset(smact.metals)
    elements = {}
    for element in smact.element_dictionary().values():
        allowed = element.oxidation_states_smact14 if states == "smact14" else element.oxidation_states_icsd24
        electronegativity = element.pauling_eneg
        if legacy and element.symbol == "Ir":
            allowed = [-2, -1, *range(1, 9)]
        if legacy and element.symbol == "Zr":
            electronegativity = 0.33
        elements[int(element.number)] = _Element(element.symbol in metals, electronegativity, tuple(allowed or ()))
    return elements
