"""Validity: how many structures and compositions are possible at all."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs.validators import optional

from kldm.data.formulas import reduced_formula
from kldm.interfaces import Candidate, Json, Measurement, Samples, Terms
from kldm.metrics.composition import MOST_COMBINATIONS, States, check_states, compositional_rule, compositional_validity
from kldm.metrics.structure import CUTOFF, MINIMUM_VOLUME, structural_rule, structural_validity, undecorated
from kldm.registry import metric
from kldm.runtime.pool import Failure, parallel_map
from kldm.validators import above

if TYPE_CHECKING:
    from pymatgen.core.composition import Composition

__all__ = ["CUTOFF", "MINIMUM_VOLUME", "Validity", "structural_validity"]


@metric("validity.v1")
@attrs.frozen(kw_only=True)
class Validity:
    """Shares of structures and of compositions that are possible at all (Xie et al. 2022, CDVAE): quick enough for
    validation during training.

        struct_valid = candidates that pass ``structural_validity`` / all requested candidates
        comp_valid   = candidates that pass ``compositional_validity`` / all requested candidates
        valid        = candidates that pass both / all requested candidates

    Shares are in [0, 1], None if nothing was requested. A failed candidate fails the first test, and the second unless
    its composition is known; a structure that fails the first still has a composition. CDVAE's ``valid`` also requires
    a CrystalNN fingerprint; this one does not.

    Args:
        states: the set of oxidation states behind ``comp_valid``: smact14 (all published tables) or icsd24.
        legacy: judge compositions exactly as smact 2.2.1 does.
        also_icsd24: add ``comp_valid_icsd24``, the share under the set icsd24, to values and rows.
        longest_edge: angstrom; structures with a longer cell edge are invalid (40 in the KLDM code); None: no limit.
    """

    terms: ClassVar[Terms] = Terms(
        needs_reference=False,
        agree={
            "sets of oxidation states": ("oxidation_states", "legacy"),
            "longest edges allowed": ("longest_edge",),
        },
        shares=("struct_valid", "comp_valid", "valid"),
    )

    states: States = "smact14"
    legacy: bool = False
    also_icsd24: bool = False
    longest_edge: float | None = attrs.field(default=None, validator=optional(above(0)))

    def __attrs_post_init__(self) -> None:
        check_states(self.states, self.legacy)

    def measure(self, samples: Samples) -> Measurement:
        """The shares, and one row per candidate with target, candidate, formula, struct_valid, comp_valid and reason:
        why it is not valid (that of the structure before that of the composition)."""
        judged = self.faults(undecorated(samples).candidates)
        rows = [faults.verdict() for faults in judged]
        names = ["struct_valid", "comp_valid", *(["comp_valid_icsd24"] if self.also_icsd24 else [])]
        values = {name: share([bool(getattr(row, name)) for row in rows]) for name in names}
        values["valid"] = share([faults.valid for faults in judged])
        table = tuple(row.columns(*names, "reason") for row in rows)
        return Measurement(values, table, self._definition(judged), _notes(judged))

    def faults(
        self, candidates: Sequence[Candidate], *, workers: int = 1, time_limit: float | None = None
    ) -> "list[Faults]":
        """The reasons against every candidate, in their order.

        Args:
            workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
            time_limit: seconds per candidate; one that takes longer passes no test. None: no limit.
        """
        judge = partial(_faults, rules=self)
        results = parallel_map(judge, candidates, workers=workers, time_limit=time_limit, description="validity")
        return [
            Faults(candidate, "", *[result.reason] * 3) if isinstance(result, Failure) else result
            for candidate, result in zip(candidates, results, strict=True)
        ]

    def _definition(self, judged: "Sequence[Faults]") -> Mapping[str, Json]:
        rules = {
            "struct_valid": structural_rule(self.longest_edge),
            "comp_valid": compositional_rule(self.states, self.legacy),
            "valid": "both; no fingerprint is asked for",
        }
        if self.also_icsd24:
            rules["comp_valid_icsd24"] = compositional_rule("icsd24")
        return {
            "rules": rules,
            "distance_cutoff": CUTOFF,
            "minimum_volume": MINIMUM_VOLUME,
            "longest_edge": self.longest_edge,
            "oxidation_states": self.states,
            "legacy": self.legacy,
            "most_combinations": MOST_COMBINATIONS,
            "denominator": "all requested candidates, failed ones included",
            "counts": {
                "candidates": len(judged),
                "without_structure": sum(faults.candidate.structure is None for faults in judged),
                "valid": sum(faults.valid for faults in judged),
                "failures": {
                    "structure": _counted(faults.structural for faults in judged),
                    "composition": _counted(faults.compositional for faults in judged),
                },
            },
            "versions": {"pymatgen": version("pymatgen"), "smact": version("smact")},
        }


def composition_of(candidate: Candidate) -> "Composition | None":
    """The composition of the candidate, with or without a structure; None if it is not known."""
    from pymatgen.core.composition import Composition
    from pymatgen.core.periodic_table import Element

    try:
        if candidate.structure is not None:
            return candidate.structure.composition
        return Composition(Counter(Element.from_Z(number).symbol for number in candidate.species) or None)
    except Exception:  # a hopeless structure must not end the evaluation of the others
        return None


def formula(candidate: Candidate) -> str:
    """The reduced formula, as it stands in the rows of all metrics; ``""`` if there is none."""
    try:
        composition = composition_of(candidate)
        return reduced_formula(composition) if composition else ""
    except Exception:  # a composition without a formula still gets a row
        return ""


def structure_fault(candidate: Candidate, longest_edge: float | None = None) -> str:
    """Why the structure is invalid or absent, or ``""``."""
    if candidate.structure is None:
        return candidate.reason or "no structure"
    return structural_validity(candidate.structure, longest_edge=longest_edge)


def composition_fault(candidate: Candidate, states: States, legacy: bool = False) -> str:
    """Why the composition is invalid, or ``""``. It is judged without a structure too, as in CDVAE's code."""
    composition = composition_of(candidate)
    if not composition:
        return "composition not known"
    return compositional_validity(composition, states=states, legacy=legacy)


@attrs.frozen(eq=False, kw_only=True)
class Verdict:
    """The row of one candidate in the per-structure table; None if something was not examined.

    Attributes:
        target, candidate: its numbers.
        formula: the reduced formula; empty if the composition is not known.
        struct_valid, comp_valid, comp_valid_icsd24: whether structure and composition pass their tests.
        fingerprint: whether it has one.
        reason: why it is not valid or does not match; the first that was found.
        rms, max_dist: distances of the match with its target, in units of (V/n)^(1/3).
    """

    target: int
    candidate: int
    formula: str
    struct_valid: bool
    comp_valid: bool | None
    comp_valid_icsd24: bool | None = None
    fingerprint: bool | None = None
    reason: str = ""
    rms: float | None = None
    max_dist: float | None = None

    @property
    def both(self) -> bool:
        """Whether it passes the tests of structure and composition."""
        return self.struct_valid and bool(self.comp_valid)

    @property
    def valid(self) -> bool:
        """Whether it passes both tests and is not known to have no fingerprint."""
        return self.both and self.fingerprint is not False

    def columns(self, *names: str) -> dict[str, Json]:
        """The row with its numbers, its formula and the named attributes."""
        return {name: getattr(self, name) for name in ("target", "candidate", "formula", *names)}


@attrs.frozen(eq=False)
class Faults:
    """A candidate and why its structure and its composition are invalid; ``""`` if they are valid."""

    candidate: Candidate
    formula: str
    structural: str
    compositional: str
    icsd24: str | None

    @property
    def valid(self) -> bool:
        return not (self.structural or self.compositional)

    def verdict(self) -> Verdict:
        """The row without fingerprint and distances."""
        return Verdict(
            target=self.candidate.target,
            candidate=self.candidate.candidate,
            formula=self.formula,
            struct_valid=not self.structural,
            comp_valid=not self.compositional,
            comp_valid_icsd24=None if self.icsd24 is None else not self.icsd24,
            reason=self.structural or self.compositional,
        )


def _faults(candidate: Candidate, *, rules: Validity) -> Faults:
    return Faults(
        candidate,
        formula(candidate),
        structure_fault(candidate, rules.longest_edge),
        composition_fault(candidate, rules.states, rules.legacy),
        composition_fault(candidate, "icsd24") if rules.also_icsd24 else None,
    )


def share(flags: Sequence[bool]) -> float | None:
    """The share of the flags that are true; None if there are no flags."""
    return sum(flags) / len(flags) if flags else None


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reason for reason in reasons if reason).items()))


def _notes(judged: Sequence[Faults]) -> tuple[str, ...]:
    """Warnings of implausible results."""
    if not judged:
        return ("There are no candidates, so nothing is defined.",)
    if all(faults.candidate.structure is None for faults in judged):
        return (f"None of the {len(judged)} candidates has a structure.",)
    contents = {(faults.formula, len(faults.candidate.structure or ())) for faults in judged}
    if len(judged) > 1 and len(contents) == 1 and all(faults.valid for faults in judged):
        (name, atoms), *_ = contents
        return (
            f"All {len(judged)} candidates are valid and have {atoms} atoms of {name}; unless that was requested, "
            "the model has collapsed onto one composition.",
        )
    return ()
