"""De-novo generation: validity, coverage and property distances of CDVAE's procedure, in one metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

import attrs
from attrs.validators import optional

from kldm.interfaces import Candidate, Json, Measurement, Samples, Terms
from kldm.metrics.composition import States, check_states, compositional_rule
from kldm.metrics.distributions import drawn, property_distances
from kldm.metrics.fingerprinting import (
    CUTOFFS,
    FINGERPRINT_SECONDS,
    Coverage,
    Dataset,
    Fingerprint,
    cached_fingerprints,
    coverage_of,
    fingerprint_versions,
    fingerprints_of,
)
from kldm.metrics.structure import structural_rule, undecorated
from kldm.metrics.validity import Validity, Verdict, share
from kldm.registry import metric
from kldm.validators import at_least, duration, one_of, worker_count

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@metric("de_novo.v1")
@attrs.frozen(kw_only=True)
class DeNovo:
    """Validity, coverage and property distances of generated structures (Xie et al. 2022, CDVAE, appendix; the
    procedure of every table of de-novo generation on MP-20, Perov-5 and Carbon-24 since).

        struct_valid = candidates that pass ``structural_validity`` / all requested candidates
        comp_valid   = candidates that pass ``compositional_validity`` / all requested candidates
        valid        = candidates that pass both and have a fingerprint / all requested candidates
        cov_*, am*   = ``coverage_of`` the fingerprints of all structures, valid or not
        wdist_*      = Wasserstein distances of density and number of elements, valid candidates against the reference

    ``comp_valid_icsd24`` is comp_valid with the oxidation states icsd24. Shares are in [0, 1]; None where undefined.
    Failed candidates stay in every denominator. The mean smallest distances amsd and amcd are taken over structures
    with a fingerprint, the property distances over valid candidates.

    Args:
        cutoffs: the data set whose coverage cutoffs are used; None: that of the reference (``Samples.source``), or
            mp_20 if no cutoffs are known for it.
        states: oxidation states behind comp_valid and valid: smact14 (all published tables) or icsd24.
        legacy: judge compositions exactly as smact 2.2.1 does.
        draw: how many valid candidates are drawn, without replacement, for the property distances (1000 in the
            papers); None: all.
        seed: seed of that draw.
        valid_only: only candidates that pass both tests get a fingerprint (the KLDM code); the denominators stay.
        coverage: False leaves out the fingerprints, by far the most work; ``valid`` then means the two tests only.
        workers: processes; the result does not depend on it. -1: as many as there are CPU cores.
        time_limit: seconds per structure; one that takes longer gets no fingerprint.
    """

    terms: ClassVar[Terms] = Terms(
        agree={
            "sets of oxidation states": ("oxidation_states", "legacy"),
            "coverage cutoffs": ("coverage.cutoffs",),
            "structures that coverage counts": ("coverage.generated",),
            "numbers drawn for property distances": ("draw",),
        },
        shares=("struct_valid", "comp_valid", "valid", "cov_"),
    )

    cutoffs: Dataset | None = attrs.field(default=None, validator=optional(one_of(*CUTOFFS)))
    states: States = attrs.field(default="smact14", validator=one_of())
    legacy: bool = False
    draw: int | None = attrs.field(default=None, validator=optional(at_least(1)))
    seed: int = attrs.field(default=0, validator=at_least(0))
    valid_only: bool = False
    coverage: bool = True
    workers: int = attrs.field(default=1, validator=worker_count())
    time_limit: float = attrs.field(default=FINGERPRINT_SECONDS, validator=duration())

    def __attrs_post_init__(self) -> None:
        check_states(self.states, self.legacy)

    def measure(self, samples: Samples) -> Measurement:
        """The values, and one row per candidate with target, candidate, formula, struct_valid, comp_valid, fingerprint
        and the first reason why it is not valid (structure, composition, fingerprint). The columns rms and max_dist of
        crystal structure prediction are None."""
        samples = undecorated(samples)
        rows, generated = self._rows(samples.candidates)
        dataset = self._dataset(samples)
        reference, coverage = None, None
        if self.coverage:
            reference = cached_fingerprints(
                samples.reference,
                workers=self.workers,
                time_limit=self.time_limit,
                description="fingerprints of the reference",
            )
            coverage = coverage_of(generated, reference, CUTOFFS[dataset])
        by_number = sorted(
            zip(samples.candidates, rows, strict=True), key=lambda pair: (pair[0].target, pair[0].candidate)
        )  # so that the draw does not depend on the order of the candidates
        valid = [c.structure for c, row in by_number if c.structure is not None and row.valid]
        taken = drawn(valid, self.draw, self.seed)
        values = {
            "struct_valid": share([row.struct_valid for row in rows]),
            "comp_valid": share([bool(row.comp_valid) for row in rows]),
            "comp_valid_icsd24": share([bool(row.comp_valid_icsd24) for row in rows]),
            "valid": share([row.valid for row in rows]),
            **(coverage.values() if coverage is not None else {}),
            **property_distances(taken, [structure for structure in samples.reference if structure is not None]),
        }
        counts: dict[str, Json] = {
            "candidates": len(rows),
            "structures": sum(candidate.structure is not None for candidate in samples.candidates),
            "valid": len(valid),
            "wdist_candidates": len(taken),
            "reference": len(samples.reference),
            "failures": dict(sorted(Counter(row.reason for row in rows if row.reason).items())),
        }
        if coverage is not None and reference is not None:
            reasons = Counter(fingerprint.reason for fingerprint in reference if not fingerprint.exists)
            counts |= {
                "fingerprints": coverage.generated,
                "reference_fingerprints": coverage.reference,
                "reference_failures": dict(sorted(reasons.items())),
                "copies_of_the_reference": coverage.copies,
            }
        columns = ("struct_valid", "comp_valid", "fingerprint", "reason", "rms", "max_dist")
        table = tuple(row.columns(*columns) for row in rows)
        notes = self._notes(samples, valid, coverage, dataset)
        return Measurement(values, table, self._definition(counts, dataset), tuple(notes))

    def _rows(self, candidates: Sequence[Candidate]) -> tuple[list[Verdict], tuple[Fingerprint, ...]]:
        """The rows, and one fingerprint for each candidate, which is empty where coverage is off."""
        rules = Validity(states=self.states, legacy=self.legacy, also_icsd24=True)
        judged = rules.faults(candidates, workers=self.workers, time_limit=self.time_limit)
        rows = [faults.verdict() for faults in judged]
        if not self.coverage:
            return rows, (Fingerprint(None, None),) * len(rows)
        structures = [
            None if self.valid_only and not row.both else candidate.structure
            for candidate, row in zip(candidates, rows, strict=True)
        ]
        fingerprints = fingerprints_of(structures, workers=self.workers, time_limit=self.time_limit)
        rows = [
            attrs.evolve(row, fingerprint=fingerprint.exists, reason=row.reason or fingerprint.reason)
            for row, fingerprint in zip(rows, fingerprints, strict=True)
        ]
        return rows, fingerprints

    def _dataset(self, samples: Samples) -> Dataset:
        """The data set whose cutoffs are used."""
        if self.cutoffs is not None:
            return self.cutoffs
        return next((name for name in CUTOFFS if name == samples.source.partition("/")[0]), "mp_20")

    def _definition(self, counts: Mapping[str, Json], dataset: Dataset) -> Mapping[str, Json]:
        cutoffs = CUTOFFS[dataset]
        definition: dict[str, Json] = {
            "rules": {
                "struct_valid": structural_rule(),
                "comp_valid": compositional_rule(self.states, self.legacy),
                "comp_valid_icsd24": compositional_rule("icsd24"),
                "valid": "both, and a fingerprint" if self.coverage else "both; no fingerprint is asked for",
                "wdist": "Wasserstein-1 of density in g/cm^3 and number of elements, valid candidates against the "
                "whole reference",
            },
            "oxidation_states": self.states,
            "legacy": self.legacy,
            "denominator": "all requested candidates, failed ones included",
            "draw": self.draw,
            "seed": self.seed,
            "time_limit": self.time_limit,
            "counts": counts,
            "versions": {**fingerprint_versions(), "smact": version("smact")},
        }
        if self.coverage:
            definition["coverage"] = {
                "cutoffs": dataset if cutoffs.published else f"{dataset} (unpublished; those of mp_20)",
                "structure_cutoff": cutoffs.structure,
                "composition_cutoff": cutoffs.composition,
                "fingerprints": "mean over sites of CrystalNN ops (61 numbers); Magpie without imputation (132), "
                "scaled by the constants of CDVAE",
                "generated": "valid candidates only" if self.valid_only else "all structures, valid or not",
                "cov_precision": "over all requested candidates",
                "cov_recall": "over reference structures with a fingerprint; its two minima may be of different "
                "candidates",
            }
        return definition

    def _notes(
        self, samples: Samples, valid: Sequence["Structure"], coverage: Coverage | None, dataset: Dataset
    ) -> list[str]:
        notes = []
        if not samples.candidates:
            notes.append("There are no candidates, so nothing is defined.")
        elif all(candidate.structure is None for candidate in samples.candidates):
            notes.append(f"None of the {len(samples.candidates)} candidates has a structure.")
        elif not valid:
            notes.append("No candidate is valid, so the property distances are undefined.")
        if not samples.reference:
            notes.append("The reference is empty, so coverage and property distances are undefined.")
        if self.draw is not None and len(valid) < self.draw:
            notes.append(f"Only {len(valid)} candidates are valid, fewer than draw = {self.draw}; all are taken.")
        if len(valid) > 1 and len(valid) == len(samples.candidates) and len({_content(s) for s in valid}) == 1:
            what = "are valid and share formula and cell, as if the model generated one structure only"
            notes.append(f"All {len(valid)} candidates {what}.")
        if coverage is None:
            notes.append("Coverage is off: it is not computed, and valid needs no fingerprint.")
            return notes
        if missing := len(samples.reference) - coverage.reference:
            notes.append(f"{missing} of {len(samples.reference)} reference structures have no fingerprint; left out.")
        if coverage.copies and coverage.copies == coverage.generated:
            notes.append(
                f"All {coverage.copies} fingerprints of candidates are those of reference structures, as if the "
                "candidates were copies of the reference."
            )
        if not CUTOFFS[dataset].published:
            notes.append(f"No cutoffs are published for {dataset}; those of mp_20 are used.")
        return notes


def _content(structure: "Structure") -> tuple[str, tuple[float, ...]]:
    """Formula and cell, rounded to 0.001 angstrom and degrees."""
    return structure.formula, tuple(round(value, 3) for value in structure.lattice.parameters)
