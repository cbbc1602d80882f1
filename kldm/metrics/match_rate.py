"""How many targets of crystal structure prediction are met, and how closely."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import attrs
import numpy as np

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Json, Measurement, Samples
from kldm.metrics.validity import CUTOFF, MINIMUM_VOLUME, structural_validity
from kldm.registry import metric

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core.structure import Structure

WITHOUT_FULL_RULE = (
    "Only the structural rule is reported. The full rule of CDVAE, DiffCSP and FlowMM also asks candidate and target "
    "for a valid composition (smact charge neutrality and electronegativity test) and a computable CrystalNN "
    "fingerprint; these two tests are missing here, so do not compare the numbers with tables under the full rule."
)

Rms = Mapping[tuple[int, int], float]
"""By (target, candidate): the rms of every candidate that counts as a match."""


@metric("match_rate.v1")
@attrs.frozen(kw_only=True)
class MatchRate:
    """Match rate and RMSE at 1 and at k (CDVAE's procedure, Xie et al. 2022; at k as in DiffCSP, Jiao et al. 2023).

    A candidate matches its own target if it is structurally valid and pymatgen's ``StructureMatcher.get_rms_dist``
    finds a mapping; rms is then the root mean square displacement over (V/n)^(1/3), without unit, below ``stol``. Both
    cells are made primitive and scaled to a common volume first, so the volume is not judged.

        match_rate@1 = targets whose candidate 0 matches / all targets of the reference
        rmse@1       = mean rms over those targets
        match_rate@k = targets with a matching candidate among their k / all targets
        rmse@k       = mean over those targets of the smallest rms

    k is the largest number of candidates of one target; @k is given where k > 1. Then candidate c of all targets
    is also taken as seed c: ``@1_mean`` and ``@1_std`` are the mean and the population standard deviation (ddof = 0)
    over the seeds. Rates are in [0, 1]; an rmse is None where nothing matches. Candidates that failed, are
    invalid, or make the matcher raise count as no match.

    Args:
        ltol: tolerance of relative lengths; 0.3, stol 0.5 and angle_tol 10 are those of all published tables.
        stol: largest site displacement over (V/n)^(1/3).
        angle_tol: degrees.
        longest_edge: angstrom; candidates with a longer cell edge are invalid (40 in the KLDM code); None: no limit.
        workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
    """

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0
    longest_edge: float | None = None
    workers: int = 1

    def __attrs_post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in ("ltol", "stol", "angle_tol", "longest_edge")}
        for name, limit in limits.items():
            if limit is not None and not (limit > 0 and math.isfinite(limit)):
                raise KldmError(f"{name} is {limit}", place="match_rate.v1", remedy="give a positive number")
        if self.workers < 1 and self.workers != -1:
            remedy = "give a number of processes, or -1 for all cores"
            raise KldmError(f"workers is {self.workers}", place="match_rate.v1", remedy=remedy)

    def measure(self, samples: Samples) -> Measurement:
        """The rates; one row per candidate with target, candidate, formula, struct_valid, reason, rms, max_dist.

        Raises:
            KldmError: a candidate answers a target that the reference lacks, or two answers bear the same numbers.
        """
        groups = _by_target(samples)
        judged = dict(self._judged(groups, samples.reference))
        rows = tuple(judged[c.target, c.candidate] for c in samples.candidates)
        rms = {key: row.rms for key, row in judged.items() if row.rms is not None}
        targets, k = len(samples.reference), max((len(group) for group in groups.values()), default=0)
        values: dict[str, float | None] = {}
        values |= _rates("1", {key: value for key, value in rms.items() if key[1] == 0}, targets)
        notes = [WITHOUT_FULL_RULE]
        if k > 1:
            values |= _rates(str(k), rms, targets)
            spread, unmatched = _over_seeds(rms, {c.candidate for c in samples.candidates}, targets)
            values |= spread
            if unmatched:
                notes.append(f"{unmatched} of the seeds match no target; rmse@1_mean and _std leave them out.")
        if not targets:
            notes.append("The reference is empty, so nothing is defined.")
        if silent := targets - len(groups):
            notes.append(f"{silent} of {targets} targets have no candidate; they count as not matched.")
        failures = Counter(row.reason for row in rows if row.reason)
        counts: dict[str, Json] = {
            "targets": targets,
            "targets_without_candidate": silent,
            "candidates": len(rows),
            "k": k,
            "valid": sum(row.struct_valid for row in rows),
            "matched": len(rms),
            "failures": dict(sorted(failures.items())),
        }
        return Measurement(values, tuple(attrs.asdict(row) for row in rows), self._definition(counts), tuple(notes))

    def _judged(
        self, groups: Mapping[int, Sequence[Candidate]], reference: Sequence["Structure"]
    ) -> Iterable[tuple[tuple[int, int], "_Row"]]:
        from joblib import Parallel, delayed
        from tqdm import tqdm

        # no backend is named, so that a surrounding joblib.parallel_config (dask, for one) decides; loky by default
        pool = Parallel(n_jobs=min(self.workers, max(1, len(groups))), return_as="generator", prefer="processes")
        tasks = (delayed(_judge)(self, reference[target], group) for target, group in groups.items())
        results: Iterable[list[_Row]] = pool(tasks)
        for rows in tqdm(results, total=len(groups), desc="match rate", unit="target", delay=2):
            yield from (((row.target, row.candidate), row) for row in rows)

    def _definition(self, counts: Mapping[str, Json]) -> Mapping[str, Json]:
        return {
            "rules": {
                "structural": "the candidate is structurally valid: all finite, lengths > 0, angles in (0, 180) "
                f"degrees, volume >= {MINIMUM_VOLUME:g} A^3, atomic numbers 1 to 118, distances >= {CUTOFF:g} A"
                + (f", edges <= {self.longest_edge:g} A" if self.longest_edge is not None else "")
                + "; nothing is asked of the target"
            },
            "matcher": "pymatgen StructureMatcher.get_rms_dist(candidate, target), other arguments at their defaults",
            "ltol": self.ltol,
            "stol": self.stol,
            "angle_tol": self.angle_tol,
            "longest_edge": self.longest_edge,
            "denominator": "all targets of the reference",
            "rmse": "mean over matched targets of rms / (V/n)^(1/3); at k the smallest rms of a target",
            "seeds": "candidate c of every target is seed c; std is the population standard deviation",
            "counts": counts,
            "versions": {"pymatgen": version("pymatgen")},
        }


@attrs.frozen
class _Row:
    """What became of one candidate, as the per-structure table has it."""

    target: int
    candidate: int
    formula: str
    struct_valid: bool
    reason: str
    rms: float | None = None
    max_dist: float | None = None


def _by_target(samples: Samples) -> dict[int, list[Candidate]]:
    groups: dict[int, list[Candidate]] = {}
    taken: set[tuple[int, int]] = set()
    for candidate in samples.candidates:
        key = candidate.target, candidate.candidate
        if not 0 <= candidate.target < len(samples.reference):
            remedy = f"the reference has targets 0 to {len(samples.reference) - 1}; is it the right one?"
            raise KldmError(f"a candidate answers target {candidate.target}", place="match_rate.v1", remedy=remedy)
        if key in taken:
            remedy = "number the answers to one target 0, 1, ..."
            raise KldmError(f"target {key[0]} has two candidates {key[1]}", place="match_rate.v1", remedy=remedy)
        taken.add(key)
        groups.setdefault(candidate.target, []).append(candidate)
    return groups


def _judge(rule: MatchRate, target: "Structure", candidates: Sequence[Candidate]) -> list[_Row]:
    """All candidates of one target: one task of the pool."""
    matcher = _matcher(rule)
    return [_judge_one(rule, matcher, target, candidate) for candidate in candidates]


def _matcher(rule: MatchRate) -> "StructureMatcher":
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core.structure import IStructure, Structure

    class Matcher(StructureMatcher):
        """Reduces every cell afresh. pymatgen since 2026 takes the reduced cell of any structure that it met before
        and that is equal within 1e-5 A, so that an rms would depend on what the process compared earlier."""

        @classmethod
        def _get_reduced_structure(
            cls, struct: Structure | IStructure, primitive_cell: bool = True, niggli: bool = True
        ) -> Structure:
            reduced = struct.get_reduced_structure(reduction_algo="niggli") if niggli else struct
            return Structure.from_sites(list(reduced.get_primitive_structure() if primitive_cell else reduced))

    return Matcher(ltol=rule.ltol, stol=rule.stol, angle_tol=rule.angle_tol)


def _judge_one(rule: MatchRate, matcher: "StructureMatcher", target: "Structure", candidate: Candidate) -> _Row:
    structure = candidate.structure
    if structure is None:
        return _Row(candidate.target, candidate.candidate, "", False, candidate.reason or "no structure")
    row = _Row(candidate.target, candidate.candidate, _formula(structure), True, "")
    if reason := structural_validity(structure, longest_edge=rule.longest_edge):
        return attrs.evolve(row, struct_valid=False, reason=reason)
    try:
        if not _same_composition(structure, target):
            return attrs.evolve(row, reason="composition differs from the target's")
        found = matcher.get_rms_dist(structure, target)  # type: ignore[no-untyped-call]
    except Exception as error:  # the matcher raises all sorts on odd cells; each is one candidate without a match
        return attrs.evolve(row, reason=f"matcher failed: {type(error).__name__}")
    if found is None:
        return row
    rms, max_dist = float(found[0]), float(found[1])
    if not math.isfinite(rms):
        return attrs.evolve(row, reason="matcher failed: rms not finite")
    return attrs.evolve(row, rms=rms, max_dist=max_dist)


def _formula(structure: "Structure") -> str:
    try:
        return str(structure.composition.reduced_formula)
    except Exception:  # a composition without a formula is still a row of the table
        return ""


def _same_composition(one: "Structure", other: "Structure") -> bool:
    """Necessary for a match, and a thousand times cheaper than the matcher."""
    first = one.composition.element_composition.fractional_composition
    return bool(first.almost_equals(other.composition.element_composition.fractional_composition, rtol=1e-3))


def _rates(at: str, rms: Rms, targets: int) -> dict[str, float | None]:
    """Rate and RMSE with the smallest rms of each target."""
    smallest: dict[int, float] = {}
    for (target, _), value in rms.items():
        smallest[target] = min(value, smallest.get(target, math.inf))
    return {
        f"structural.match_rate@{at}": len(smallest) / targets if targets else None,
        f"structural.rmse@{at}": math.fsum(smallest.values()) / len(smallest) if smallest else None,
    }


def _over_seeds(rms: Rms, seeds: Iterable[int], targets: int) -> tuple[dict[str, float | None], int]:
    """Mean and population standard deviation over the seeds, and how many of them match nothing."""
    spread: dict[str, float | None] = {}
    each = [_rates("1", {key: v for key, v in rms.items() if key[1] == seed}, targets) for seed in sorted(seeds)]
    for name in ("structural.match_rate@1", "structural.rmse@1"):
        known = [value for rates in each if (value := rates[name]) is not None]
        spread[f"{name}_mean"] = float(np.mean(known)) if known else None
        spread[f"{name}_std"] = float(np.std(known)) if known else None
    return spread, sum(rates["structural.rmse@1"] is None for rates in each)
