"""The light metric of validity: how many structures and compositions are possible at all."""

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
from kldm.metrics.structure import CUTOFF, MINIMUM_VOLUME, structural_rule, structural_validity
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

    Shares are in [0, 1], None where nothing was requested. A failed candidate passes neither test; a structure that
    fails the first still has a composition. CDVAE's ``valid`` asks for a CrystalNN fingerprint too; this one does not.

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
        """The shares; one row per candidate with target, candidate, formula, struct_valid, comp_valid, reason (the
        first that was found, the structure's before the composition's)."""
        judged = self.faults(samples.candidates)
        rows = [one.verdict() for one in judged]
        names = ["struct_valid", "comp_valid", *(["comp_valid_icsd24"] if self.also_icsd24 else [])]
        values = {name: share([bool(getattr(row, name)) for row in rows]) for name in names}
        values["valid"] = share([one.valid for one in judged])
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
        work = parallel_map(judge, candidates, workers=workers, time_limit=time_limit, description="validity")
        return [
            Faults(candidate, "", *[found.reason] * 3) if isinstance(found, Failure) else found
            for candidate, found in zip(candidates, work, strict=True)
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
                "without_structure": sum(one.candidate.structure is None for one in judged),
                "valid": sum(one.valid for one in judged),
                "failures": {
                    "structure": _counted(one.structural for one in judged),
                    "composition": _counted(one.compositional for one in judged),
                },
            },
            "versions": {"pymatgen": version("pymatgen"), "smact": version("smact")},
        }


def composition_of(candidate: Candidate) -> "Composition | None":
    """What the candidate consists of, with or without a structure; None where that is not known."""
    from pymatgen.core.composition import Composition
    from pymatgen.core.periodic_table import Element

    try:
        if candidate.structure is not None:
            return candidate.structure.composition
        return Composition(Counter(Element.from_Z(number).symbol for number in candidate.species) or None)
    except Exception:  # a hopeless structure is judged, not raised
        return None


def formula(candidate: Candidate) -> str:
    """The reduced formula, as the tables of all metrics have it; ``""`` where there is none."""
    try:
        found = composition_of(candidate)
        return reduced_formula(found) if found else ""
    except Exception:  # a composition without a formula is still a row of the table
        return ""


def structure_fault(candidate: Candidate, longest_edge: float | None = None) -> str:
    """Why the structure is invalid or absent, or ``""``."""
    if candidate.structure is None:
        return candidate.reason or "no structure"
    return structural_validity(candidate.structure, longest_edge=longest_edge)


def composition_fault(candidate: Candidate, states: States, legacy: bool = False) -> str:
    """Why the composition is invalid, or ``""``. It is judged without a structure too, as in CDVAE's code."""
    found = composition_of(candidate)
    return compositional_validity(found, states=states, legacy=legacy) if found else "composition not known"


@attrs.frozen(eq=False, kw_only=True)
class Verdict:
    """What became of one candidate, as the per-structure table has it; None where nobody asked.

    Attributes:
        target, candidate: its numbers.
        formula: reduced, empty where the composition is not known.
        struct_valid, comp_valid, comp_valid_icsd24: whether structure and composition pass their tests.
        fingerprint: whether it has one.
        reason: the first that was found against it.
        rms, max_dist: of the match with its target, in units of (V/n)^(1/3).
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
        """The same, without a fingerprint that was looked for and is lacking."""
        return self.both and self.fingerprint is not False

    def columns(self, *names: str) -> dict[str, Json]:
        """Its numbers, its formula, and these attributes."""
        return {name: getattr(self, name) for name in ("target", "candidate", "formula", *names)}


@attrs.frozen(eq=False)
class Faults:
    """A candidate with the reasons against its structure and its composition; ``""`` where there is none."""

    candidate: Candidate
    formula: str
    structural: str
    compositional: str
    icsd24: str | None

    @property
    def valid(self) -> bool:
        return not (self.structural or self.compositional)

    def verdict(self) -> Verdict:
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
    """Of those that are true; None of none."""
    return sum(flags) / len(flags) if flags else None


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reason for reason in reasons if reason).items()))


def _notes(judged: Sequence[Faults]) -> tuple[str, ...]:
    """What a reader should doubt."""
    if not judged:
        return ("There are no candidates, so nothing is defined.",)
    if all(one.candidate.structure is None for one in judged):
        return (f"None of the {len(judged)} candidates has a structure.",)
    contents = {(one.formula, len(one.candidate.structure or ())) for one in judged}
    if len(judged) > 1 and len(contents) == 1 and all(one.valid for one in judged):
        (name, atoms), *_ = contents
        return (
            f"All {len(judged)} candidates are valid and have {atoms} atoms of {name}; unless that is what was asked "
            "for, the model has collapsed onto one composition.",
        )
    return ()
