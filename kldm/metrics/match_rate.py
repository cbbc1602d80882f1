"""How many targets of crystal structure prediction are matched, and how closely."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, ClassVar, Literal, get_args

import attrs
import numpy as np
from attrs.validators import optional

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Json, Measurement, Samples, Terms
from kldm.metrics.composition import compositional_rule, compositional_validity
from kldm.metrics.fingerprinting import Fingerprinted, Key, composition_valid, fingerprinted
from kldm.metrics.matching import (
    CONSENSUS,
    Examined,
    Matcher,
    chosen_indices,
    count_repeated,
    examine,
    match,
    smallest_rms,
)
from kldm.metrics.structure import structural_rule, structural_validity, undecorated
from kldm.metrics.validity import Verdict, composition_of, formula
from kldm.registry import metric
from kldm.validators import above, duration, each, one_of, within, worker_count

Rule = Literal["structural", "full"]

Rates = Callable[[str, Mapping[Key, float]], dict[str, float | None]]

CLOSE = (0.02, 0.1)
"""Limits of the rms. Structures within ``stol`` of each other, as the match rate counts them, may look quite different;
these shares count close ones."""

_SECONDS: float | None = 60.0
"""Seconds for one structure or one pair."""

EXACT_RMSE = 1e-6
"""Generated structures do not come closer to their targets than this, copies of the targets do."""

FULL_RULE = (
    "the structural rule, compositional validity ({composition}) and a computable CrystalNN fingerprint, of candidate "
    "and target alike; the target's structure must be valid too"
)

MARKED = "the candidate of each target that the samples themselves mark as selected"

NO_FULL_SEEDS = (
    "Mean and std over seeds under the full rule need the fingerprint of every matching candidate; set full_seeds "
    "to compute them."
)


@metric("match_rate.v1")
@attrs.frozen(kw_only=True)
class MatchRate:
    """Match rate and RMSE at 1 and at k (CDVAE's procedure, Xie et al. 2022; at k as in DiffCSP, Jiao et al. 2023).

    A candidate matches its own target if a validity rule allows it and pymatgen's ``StructureMatcher.get_rms_dist``
    finds a mapping; rms is then the root mean square displacement over (V/n)^(1/3), without unit, below ``stol``. Both
    cells are made primitive and scaled to a common volume first, so the volume is not judged.

        match_rate@1       = targets whose candidate 0 matches / all targets of the reference
        rmse@1             = mean rms over those targets
        crmse@1            = mean over all targets of that rms, or ``stol`` where candidate 0 does not match
        share_below_0.02@1 = targets whose candidate 0 matches with rms < 0.02 / all targets
        share_below_0.1@1  = the same below 0.1

    Names with @k use the smallest rms among the k candidates of a target (``match_rate@k``: any match). k is the
    largest number of candidates of one target; @k is given where k > 1. Then candidate c of all targets is also seed c:
    ``@1_mean`` and ``@1_std`` are the mean and the population standard deviation (ddof = 0) over the seeds. If one
    candidate of each target is selected (by ``select`` or by the samples' own marks), the names with ``@selected_of_k``
    use the selected candidates: one answer to each target, at the price of k. Rates and shares are in [0, 1]; an rmse
    is None if nothing matches. Candidates that failed, are invalid, or make the matcher raise count as no match.

    rmse is a mean over the matched targets, which differ between methods. crmse is a mean over all targets, falls with
    every target that is matched more closely, and compares the same pairs.

    Every name starts with that of its rule. ``structural``: the candidate is structurally valid (the KLDM code).
    ``full``: candidate and target are structurally and compositionally valid and have a CrystalNN fingerprint (the
    CDVAE, DiffCSP and FlowMM codes). A target whose composition smact refuses can then never match.

    METRe and cRMSE (arXiv 2509.12178) use the structural rule and the candidates numbered 0, of which there are at
    most as many as references:

        METRe = references matched by a generated structure of the same reduced composition, whichever target that
                answers / all references
        cRMSE = mean over all references of the smallest such rms, or ``stol`` if there is none

    Any generated structure of a composition counts for cRMSE, only the one generated for the target for crmse@1. So
    cRMSE <= structural.crmse@1, and they are equal if no two references share a composition and every answer has the
    composition of its target.

    Args:
        ltol: tolerance of relative lengths; 0.3, stol 0.5 and angle_tol 10 are those of all published tables.
        stol: largest site displacement over (V/n)^(1/3).
        angle_tol: degrees.
        longest_edge: angstrom; candidates with a longer cell edge are invalid (40 in the KLDM code); None: no limit.
        rules: the rules to report; ``full`` checks two to three fingerprints (10 ms each) for each matched target.
        select: ``consensus`` selects a candidate of each target before it is judged, without the reference
            (``kldm.metrics.matching.consensus``), instead of the samples' own marks.
        full_seeds: also mean and std over seeds under the full rule, with a fingerprint check for every match.
        metre: METRe and cRMSE, which compare all pairs of a composition: hours if the whole reference has only one.
        workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
        time_limit: seconds for one structure or one pair; one that takes longer counts as no match. None: no limit.
    """

    terms: ClassVar[Terms] = Terms(
        answers=True,
        agree={
            "tolerances": ("ltol", "stol", "angle_tol"),
            "longest edges allowed": ("longest_edge",),
            "rules of selection": ("selected?",),
        },
        shares=("match_rate", "share_below_", "METRe"),
    )

    ltol: float = attrs.field(default=0.3, validator=within(0, 10, ends="high"))
    stol: float = attrs.field(default=0.5, validator=within(0, 10, ends="high"))
    angle_tol: float = attrs.field(default=10.0, validator=within(0, 180, ends="high"))
    longest_edge: float | None = attrs.field(default=None, validator=optional(above(0)))
    rules: tuple[Rule, ...] = attrs.field(default=get_args(Rule), validator=each(one_of(*get_args(Rule))))
    select: Literal["consensus"] | None = attrs.field(default=None, validator=optional(one_of("consensus")))
    full_seeds: bool = False
    metre: bool = True
    workers: int = attrs.field(default=1, validator=worker_count())
    time_limit: float | None = attrs.field(default=_SECONDS, validator=optional(duration()))

    def __attrs_post_init__(self) -> None:
        if not self.rules or len(set(self.rules)) < len(self.rules):
            problem = f"must be one rule or several different ones, got {list(self.rules)}"
            raise KldmError(problem, place="rules", remedy='give "structural", "full" or both')

    def measure(self, samples: Samples) -> Measurement:
        """The values, and one row per candidate with target, candidate, formula, struct_valid, comp_valid, fingerprint,
        reason, rms and max_dist, and with selected if candidates are selected.

        rms is given for every structurally valid candidate that matches, whatever its composition. comp_valid is None
        if the composition is not known (a candidate without structure may have one), fingerprint if it was not checked.

        Raises:
            KldmError: a candidate answers a target that the reference does not have, two candidates have the same
                numbers, or some targets have one candidate marked as selected and others none or several.
        """
        samples = undecorated(samples)
        groups, targets = _by_target(samples), len(samples.reference)
        work: dict[str, Any] = {"workers": self.workers, "time_limit": self.time_limit}
        matcher = Matcher(ltol=self.ltol, stol=self.stol, angle_tol=self.angle_tol)
        structures = [candidate.structure for candidate in samples.candidates]
        examined = examine(structures, validity=True, longest_edge=self.longest_edge, **work)
        reference = examine(samples.reference, validity=False, longest_edge=None, **work)
        results = match(matcher, reference, examined, groups, **work)
        rows = {}
        for index, (candidate, structure) in enumerate(zip(samples.candidates, examined, strict=True)):
            result = results.get((candidate.target, index))
            reason = _reason(candidate, structure) or (result.reason if result else "")
            out_of_time = structure.fault.startswith("time limit")
            rows[candidate.target, candidate.candidate] = Verdict(
                target=candidate.target,
                candidate=candidate.candidate,
                formula=formula(candidate),
                struct_valid=candidate.structure is not None and not structure.invalid and not out_of_time,
                comp_valid=_composition_valid(candidate),
                reason=reason,
                rms=result.rms if result else None,
                max_dist=result.max_dist if result else None,
            )
        rms = {key: row.rms for key, row in rows.items() if row.rms is not None}
        seeds = {c.candidate for c in samples.candidates}
        k = max((len(group) for group in groups.values()), default=0)
        values: dict[str, float | None] = {}
        notes = _notes(samples, len(groups), rms, reference)
        selected: frozenset[Key] = frozenset()
        if k > 1:
            chosen = (
                chosen_indices(matcher, structures, examined, groups, **work)
                if self.select
                else _marked(samples, groups)
            )
            selected = frozenset((samples.candidates[n].target, samples.candidates[n].candidate) for n in chosen)
        elif self.select:
            notes.append("There is one candidate of each target, so nothing is selected.")
        rates = partial(_rates, targets=targets, stol=self.stol)
        if "structural" in self.rules:
            of_rule, more_notes = _values("structural", rms, seeds if k > 1 else set(), k, selected, rates)
            values, notes = values | of_rule, notes + more_notes
        if "full" in self.rules:
            full_rms, fingerprints, rows = self._full(samples, rows, rms, selected)
            full_seeds = seeds if k > 1 and self.full_seeds else set()
            of_rule, more_notes = _values("full", full_rms, full_seeds, k, selected, rates)
            values, notes = values | of_rule, notes + more_notes
            if k > 1 and not self.full_seeds:
                notes.append(NO_FULL_SEEDS)
            if missing := sum(not exists for exists in fingerprints.targets.values()):
                notes.append(f"{missing} of the matched targets have no fingerprint and cannot match under full.")
        if self.metre:
            generated = {c.target: index for index, c in enumerate(samples.candidates) if c.candidate == 0}
            smallest, failed = smallest_rms(matcher, reference, examined, generated, results, **work)
            values["METRe"] = len(smallest) / targets if targets else None
            values["cRMSE"] = _with_misses(smallest, targets, self.stol)
            notes += [f"{failed} pairs of METRe could not be compared and count as no match."] if failed else []
        failures = Counter(row.reason for row in rows.values() if row.reason)
        counts: dict[str, Json] = {
            "targets": targets,
            "targets_without_candidate": targets - len(groups),
            "candidates": len(rows),
            "k": k,
            "valid": sum(row.struct_valid for row in rows.values()),
            "matched": len(rms),
            "failures": dict(sorted(failures.items())),
        }
        keys = [(c.target, c.candidate) for c in samples.candidates]
        columns = ("struct_valid", "comp_valid", "fingerprint", "reason", "rms", "max_dist")
        ordered = tuple(
            rows[key].columns(*columns) | ({"selected": key in selected} if selected else {}) for key in keys
        )
        return Measurement(values, ordered, self._definition(counts, bool(selected)), tuple(notes))

    def _full(
        self, samples: Samples, rows: Mapping[Key, Verdict], rms: Mapping[Key, float], selected: Collection[Key]
    ) -> tuple[dict[Key, float], Fingerprinted, dict[Key, Verdict]]:
        """The rms of candidates known to be valid under the rule, the fingerprints that were checked, and the rows with
        them.

        If any match of a target is valid, the one with the smallest rms is among them; so are candidate 0 and the
        selected candidate if they are valid."""
        structures = {(c.target, c.candidate): c.structure for c in samples.candidates if c.structure is not None}
        reference = {
            target: structure
            for target in {target for target, _ in rms}
            if (structure := samples.reference[target]) is not None
            and not structural_validity(structure)
            and composition_valid(structure)
        }
        fingerprints = fingerprinted(
            reference,
            structures,
            {key: value for key, value in rms.items() if rows[key].comp_valid and key[0] in reference},
            everyone=self.full_seeds,
            also=selected,
            workers=self.workers,
            time_limit=self.time_limit,
        )
        judged = {key: attrs.evolve(row, fingerprint=fingerprints.candidates.get(key)) for key, row in rows.items()}
        return {key: value for key, value in rms.items() if fingerprints.passes(key)}, fingerprints, judged

    def _definition(self, counts: Mapping[str, Json], selected: bool) -> Mapping[str, Json]:
        rules = {
            "structural": f"the candidate is structurally valid: {structural_rule(self.longest_edge)}; the target "
            "may be any",
            "full": FULL_RULE.format(composition=compositional_rule()) if "full" in self.rules else "",
        }
        libraries = ("pymatgen", "smact", *(("matminer",) if "full" in self.rules else ()))
        return {
            "rules": {rule: rules[rule] for rule in self.rules},
            "matcher": "pymatgen StructureMatcher.get_rms_dist(candidate, target), other arguments at their defaults",
            "ltol": self.ltol,
            "stol": self.stol,
            "angle_tol": self.angle_tol,
            "longest_edge": self.longest_edge,
            "time_limit": self.time_limit,
            "denominator": "all targets of the reference",
            "rmse": "mean over matched targets of rms / (V/n)^(1/3); at k the smallest rms of a target",
            "crmse": "mean over all targets of the rms of the answer to that target; stol if it does not match",
            "share_below": "targets with such an rms below the number, in units of (V/n)^(1/3) / all targets",
            "seeds": "candidate c of every target is seed c; std is the population standard deviation",
            **({"selected": f"consensus: {CONSENSUS}" if self.select else MARKED} if selected else {}),
            "METRe": "structural rule; candidates numbered 0 against all references of their reduced composition",
            "cRMSE": "mean over all references of METRe's smallest rms; stol if there is none",
            "counts": counts,
            "versions": {library: version(library) for library in libraries},
        }


def _by_target(samples: Samples) -> dict[int, list[int]]:
    """Places of the candidates of each target, sorted by candidate number."""
    groups: dict[int, list[int]] = {}
    seen: set[Key] = set()
    for index, candidate in enumerate(samples.candidates):
        key = candidate.target, candidate.candidate
        if not 0 <= candidate.target < len(samples.reference):
            remedy = f"the reference has targets 0 to {len(samples.reference) - 1}; is it the right one?"
            raise KldmError(f"a candidate answers target {candidate.target}", place="match_rate.v1", remedy=remedy)
        if key in seen:
            remedy = "number the answers to one target 0, 1, ..."
            raise KldmError(f"target {key[0]} has two candidates {key[1]}", place="match_rate.v1", remedy=remedy)
        seen.add(key)
        groups.setdefault(candidate.target, []).append(index)
    for indices in groups.values():
        indices.sort(key=lambda index: samples.candidates[index].candidate)
    return groups


def _marked(samples: Samples, groups: Mapping[int, Sequence[int]]) -> list[int]:
    """Places of the candidates that are marked as selected: none, or one of each target."""
    if not any(candidate.selected for candidate in samples.candidates):
        return []
    chosen = []
    for target, indices in groups.items():
        marked = [index for index in indices if samples.candidates[index].selected]
        if len(marked) != 1:
            problem = f"{len(marked)} of the {len(indices)} candidates of target {target} are marked as selected"
            raise KldmError(problem, place="match_rate.v1", remedy="mark one of each target, or none at all")
        chosen += marked
    return chosen


def _reason(candidate: Candidate, examined: Examined) -> str:
    if candidate.structure is None:
        return candidate.reason or "no structure"
    return examined.invalid or (f"matcher failed: {examined.fault}" if examined.fault else "")


def _composition_valid(candidate: Candidate) -> bool | None:
    """Whether the composition is valid; None if it is not known."""
    composition = composition_of(candidate)
    return not compositional_validity(composition) if composition else None


def _values(
    rule: Rule, rms: Mapping[Key, float], seeds: Iterable[int], k: int, selected: Collection[Key], rates: Rates
) -> tuple[dict[str, float | None], list[str]]:
    """All values under one rule, those over the seeds included, and notes on them."""
    values = rates("1", {key: value for key, value in rms.items() if key[1] == 0})
    notes: list[str] = []
    if k > 1:
        values |= rates(str(k), rms)
        if selected:
            values |= rates(f"selected_of_{k}", {key: value for key, value in rms.items() if key in selected})
        over_seeds, unmatched = _over_seeds(rms, seeds, rates)
        values |= over_seeds
        if unmatched:
            notes.append(f"{unmatched} of the seeds match no target under {rule}; rmse@1_mean and _std leave them out.")
    return {f"{rule}.{name}": value for name, value in values.items()}, notes


def _rates(suffix: str, rms: Mapping[Key, float], targets: int, stol: float) -> dict[str, float | None]:
    """Rates and errors by the smallest rms of each target."""
    smallest: dict[int, float] = {}
    for (target, _), value in rms.items():
        smallest[target] = min(value, smallest.get(target, math.inf))
    return {
        f"match_rate@{suffix}": len(smallest) / targets if targets else None,
        f"rmse@{suffix}": math.fsum(smallest.values()) / len(smallest) if smallest else None,
        f"crmse@{suffix}": _with_misses(smallest, targets, stol),
        **{
            f"share_below_{limit:g}@{suffix}": sum(value < limit for value in smallest.values()) / targets
            if targets
            else None
            for limit in CLOSE
        },
    }


def _with_misses(rms: Mapping[int, float], targets: int, stol: float) -> float | None:
    """The mean rms over all targets; a target without one counts as ``stol``."""
    return (math.fsum(rms.values()) + stol * (targets - len(rms))) / targets if targets else None


def _over_seeds(rms: Mapping[Key, float], seeds: Iterable[int], rates: Rates) -> tuple[dict[str, float | None], int]:
    """Mean and population standard deviation over the seeds, and how many of them match nothing."""
    values: dict[str, float | None] = {}
    by_seed = [rates("1", {key: v for key, v in rms.items() if key[1] == seed}) for seed in sorted(seeds)]
    for name in rates("1", {}):
        defined = [value for of_seed in by_seed if (value := of_seed[name]) is not None]
        values[f"{name}_mean"] = float(np.mean(defined)) if defined else None
        values[f"{name}_std"] = float(np.std(defined)) if defined else None
    return values, sum(of_seed["rmse@1"] is None for of_seed in by_seed)


def _notes(samples: Samples, answered: int, rms: Mapping[Key, float], reference: Sequence[Examined]) -> list[str]:
    """Warnings to the reader, implausible results first."""
    targets, notes = len(samples.reference), []
    if not targets:
        notes.append("The reference is empty, so nothing is defined.")
    if not samples.candidates:
        notes.append("There are no candidates.")
    if targets and len({target for target, _ in rms}) == targets and max(rms.values()) < EXACT_RMSE:
        notes.append("Every reference is matched exactly: the samples look like copies of the reference.")
    built = [c.structure for c in samples.candidates if c.structure is not None]
    if len(built) > 1 and all(structure == built[0] for structure in built[1:]):
        notes.append(f"All {len(built)} structures are the same.")
    if copies := count_repeated(reference):
        notes.append(
            f"At least {copies} of {targets} references repeat an earlier one. METRe and cRMSE count them again, so do "
            "not use them here."
        )
    if unanswered := targets - answered:
        notes.append(f"{unanswered} of {targets} targets have no candidate; they count as not matched.")
    return notes
