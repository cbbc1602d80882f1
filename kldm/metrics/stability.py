"""Relaxation, stability, uniqueness and novelty of generated structures: MatterGen's pipeline, in one metric."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import attrs
from attrs.validators import optional

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Json, Measurement, Potential, Samples, Terms
from kldm.metrics.relaxing import (
    FAR_OFF,
    RELAXATION_SECONDS,
    Comparator,
    Hull,
    Relaxation,
    Scheme,
    above_hull,
    calculator_of,
    check_scales,
    displacements,
    impossible,
    mp2020,
    novel,
    read_hull,
    relaxation_versions,
    relaxed,
    unique,
)
from kldm.metrics.relaxing.similarity import ELECTRONEGATIVITIES, RADII, TOLERANCES
from kldm.metrics.structure import undecorated
from kldm.metrics.validity import formula, share
from kldm.reading import find_reference, read_reference
from kldm.registry import metric
from kldm.runtime.paths import expanded
from kldm.runtime.pool import Failure, parallel_map
from kldm.validators import duration, finite, one_of, worker_count
from kldm.validators import each as each_of

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@metric("stability.v1")
@attrs.frozen(kw_only=True)
class Stability:
    """Stability, uniqueness and novelty of relaxed structures (Zeni et al., Nature 2025, MatterGen; KLDM's Table 2).

        rmsd, rmsd_mattergen  = mean displacement by relaxation, angstrom (``displacement``, ``displacement_mattergen``)
        energy_drop           = mean energy released by relaxation, eV/atom
        avg_e_above_hull, median_e_above_hull = of the candidates that have one, eV/atom; negative below the hull
        stable_<t>meV         = candidates at most t meV/atom above the hull / all requested candidates
        unique                = candidates that differ from all before them / all requested candidates
        novel                 = candidates that differ from all known structures / all requested candidates
        sun_<t>meV            = candidates that are stable, unique and novel / all requested candidates

    Shares are in [0, 1]. A candidate that failed, could not be relaxed, or has an element that is not in the hull stays
    in every denominator. Structures are compared after relaxation. Without a hull no stability is computed. Without a
    potential nothing is relaxed, and the structures are compared as they are.

    Args:
        potential: the potential that relaxes structures.
        relaxation: how they are relaxed.
        hull: files of entries that form the convex hull: those that ``kldm relax`` made of a reference with the same
            potential, or entries computed by density functional theory.
        corrections: the corrections that the latter contain, none or mp2020. An uncorrected potential's energies get
            the same.
        thresholds: energies above the hull, eV/atom, up to which a structure counts as stable.
        matcher: ``disordered`` (MatterGen's default, behind published shares) or ``ordered``; see ``same``.
        known: the structures that are not novel: ``DATASET/SPLIT`` or files; if empty, the reference of the samples.
        workers: processes; -1: as many as there are CPU cores. Use one for a potential on a GPU.
        time_limit: seconds for the relaxation of one structure; one that takes longer has failed. Also for a
            structure's comparisons; beyond, it is neither unique nor novel.
    """

    potential: Potential | None = None
    relaxation: Relaxation = attrs.field(factory=Relaxation)
    hull: tuple[Path, ...] = ()
    corrections: Scheme | None = attrs.field(default=None, validator=optional(one_of(*get_args(Scheme))))
    thresholds: tuple[float, ...] = attrs.field(default=(0.0, 0.1), validator=each_of(finite()))
    matcher: Comparator = attrs.field(default="disordered", validator=one_of())
    known: tuple[str, ...] = ()
    workers: int = attrs.field(default=1, validator=worker_count())
    time_limit: float = attrs.field(default=RELAXATION_SECONDS, validator=duration())

    def __attrs_post_init__(self) -> None:
        if self.hull and self.potential is None:
            remedy = "name a potential, e.g. mattersim.v1"
            raise KldmError("a hull is of no use without energies", place="hull", remedy=remedy)
        if not self.hull and self.corrections is not None:
            raise KldmError("they describe a hull, and there is none", place="corrections", remedy="give the hull too")

    @property
    def terms(self) -> Terms:
        """The reference is needed for novelty, unless ``known`` replaces it."""
        return Terms(
            needs_reference=not self.known,
            agree={
                "potentials": ("potential.",),
                "relaxations": ("relaxation.",),
                "hulls": ("hull.sha256", "hull.entries", "hull.corrections"),
                "matchers": ("matcher.name",),
                "known structures": ("known.",),
            },
            shares=("stable_", "unique", "novel", "sun_"),
        )

    def prepare(self) -> None:
        """Check that the potential can be used, that the hull fits it, and that the known structures exist."""
        if self.potential is not None:
            calculator_of(self.potential)
        self._hull()
        for name in self.known:
            find_reference(name)

    def measure(self, samples: Samples) -> Measurement:
        """The values, and one row per candidate with target, candidate, formula, reason (the first failure: of the
        structure, the relaxation or the energy above hull), energy (eV/atom, relaxed, corrected like the hull),
        e_above_hull, rmsd, rmsd_mattergen, steps, converged, unique, novel and stable_<t>meV."""
        self.prepare()
        samples = undecorated(samples)
        hull, references = self._hull(), [read_reference(name) for name in self.known]
        groups = [each.structures for each in references] or [samples.reference]
        known = [structure for group in groups for structure in group if structure is not None]
        rows = [_Row(candidate) for candidate in samples.candidates]
        ordered = sorted(rows, key=lambda row: (row.candidate.target, row.candidate.candidate))
        results = self._relax(ordered)
        if hull is not None:
            self._set_energies(results, hull)
        self._compare(results, known)
        levels = {f"{1000 * threshold:.10g}meV": threshold for threshold in self.thresholds if hull is not None}
        return Measurement(
            self._values(rows, hull, levels, bool(known)),
            tuple(row.public(levels) for row in rows),
            self._definition(rows, hull, len(known)),
            (*(note for each in references for note in each.notes()), *self._notes(rows, hull, bool(known))),
        )

    def _hull(self) -> Hull | None:
        if self.potential is None or not self.hull:
            return None
        hull = read_hull([expanded(path) for path in self.hull], self.corrections)
        check_scales(hull, self.potential.scale, self.potential.identity)
        return hull

    def _relax(self, rows: Sequence["_Row"]) -> list["_Result"]:
        """The candidates that survive relaxation; the rows of the others get a reason."""
        structures = [row.candidate.structure for row in rows]
        if self.potential is None:
            for row, structure in zip(rows, structures, strict=True):
                row.reason = row.candidate.reason or impossible(structure)
            pairs = zip(rows, structures, strict=True)
            return [_Result(row, structure) for row, structure in pairs if structure is not None and not row.reason]
        results = []
        work: dict[str, Any] = {"workers": self.workers, "time_limit": self.time_limit}
        relaxations = relaxed(structures, self.potential, self.relaxation, **work)
        for row, relaxation in zip(rows, relaxations, strict=True):
            if relaxation.structure is None:
                row.reason = row.candidate.reason or relaxation.reason
                continue
            atoms = len(relaxation.structure)
            row.energy, row.energy_drop = relaxation.energy / atoms, (relaxation.before - relaxation.energy) / atoms
            row.steps, row.converged = relaxation.steps, relaxation.converged
            results.append(_Result(row, relaxation.structure))
        ends = [(before, r.structure) for r in results if (before := r.row.candidate.structure) is not None]
        moved = parallel_map(displacements, ends, **work, description="displacements")
        for result, distances in zip(results, moved, strict=True):
            if not isinstance(distances, Failure):
                result.row.rmsd, result.row.rmsd_mattergen = distances
        return results

    def _set_energies(self, results: Sequence["_Result"], hull: Hull) -> None:
        """Correct the energies like the hull, and set the energies above it where they exist."""
        work: dict[str, Any] = {"workers": self.workers, "time_limit": self.time_limit}
        if hull.scheme == "mp2020" and self.potential is not None and self.potential.scale == "uncorrected":
            structures = [result.structure for result in results]
            corrections = parallel_map(mp2020, structures, **work, description="corrections")
            for result, correction in zip(results, corrections, strict=True):
                if isinstance(correction, Failure):
                    result.row.energy, result.row.reason = None, "its energy cannot be corrected"
                elif result.row.energy is not None:
                    result.row.energy += correction / len(result.structure)
        for result in results:
            if hull.lacks(frozenset(result.structure.composition.get_el_amt_dict())):
                result.row.reason = result.row.reason or "the hull lacks one of its elements"
        with_energy = [(r, r.row.energy) for r in results if r.row.energy is not None and not r.row.reason]
        above = above_hull([r.structure for r, _ in with_energy], [energy for _, energy in with_energy], hull, **work)
        for (result, _), height in zip(with_energy, above, strict=True):
            result.row.e_above_hull = height
            result.row.reason = "" if height is not None else "no energy of the hull was found for its composition"

    def _compare(self, results: Sequence["_Result"], known: "Sequence[Structure]") -> None:
        """Set uniqueness and novelty of the rows."""
        structures = [result.structure for result in results]
        work: dict[str, Any] = {"workers": self.workers, "time_limit": self.time_limit}
        uniques = unique(structures, self.matcher, **work)
        for result, is_unique in zip(results, uniques, strict=True):
            result.row.unique = is_unique
        if known:
            novels = novel(structures, known, self.matcher, **work)
            for result, is_novel in zip(results, novels, strict=True):
                result.row.novel = is_novel

    def _values(
        self, rows: Sequence["_Row"], hull: Hull | None, levels: Mapping[str, float], known: bool
    ) -> Mapping[str, float | None]:
        values: dict[str, float | None] = {}
        if self.potential is not None:
            values["rmsd"] = _mean([row.rmsd for row in rows])
            values["rmsd_mattergen"] = _mean([row.rmsd_mattergen for row in rows])
            values["energy_drop"] = _mean([row.energy_drop for row in rows])
            values["n_failed"] = sum(row.converged is None for row in rows)
            values["n_unconverged"] = sum(row.converged is False for row in rows)
        if hull is not None:
            above = [row.e_above_hull for row in rows if row.e_above_hull is not None]
            values["n_unsupported"] = sum(row.unsupported for row in rows)
            values["avg_e_above_hull"] = _mean(above)
            values["median_e_above_hull"] = statistics.median(above) if above else None
        values |= {f"stable_{name}": share([row.stable(level) for row in rows]) for name, level in levels.items()}
        values["unique"] = share([bool(row.unique) for row in rows])
        values["novel"] = share([bool(row.novel) for row in rows]) if known else None
        values |= {
            f"sun_{name}": share([row.sun(level) for row in rows]) if known else None for name, level in levels.items()
        }
        return values

    def _definition(self, rows: Sequence["_Row"], hull: Hull | None, known: int) -> Mapping[str, Json]:
        definition: dict[str, Json] = {
            "denominator": "all requested candidates: failed and unsupported ones included",
            "structures_compared": "as they are" if self.potential is None else "relaxed",
            "matcher": {"name": self.matcher, **TOLERANCES},
            "known": {"names": list(self.known) or "the reference of the samples", "structures": known},
            "counts": {
                "candidates": len(rows),
                "failures": dict(sorted(Counter(row.reason for row in rows if row.reason).items())),
                "rmsd_mattergen": sum(row.rmsd_mattergen is not None for row in rows),
            },
            "versions": relaxation_versions(),
        }
        if self.matcher == "disordered":
            definition["similar_elements"] = {"radii": RADII, "electronegativities": ELECTRONEGATIVITIES}
        if self.potential is not None:
            definition["potential"] = {"label": self.potential.label, **self.potential.identity}
            definition["relaxation"] = {**attrs.asdict(self.relaxation), "optimizer": "FIRE"}
            definition["time_limit"] = self.time_limit
        if hull is not None:
            corrections = hull.scheme or "none; energies of the potential itself"
            definition["hull"] = {
                "names": list(hull.names),
                "sha256": list(hull.sha256),
                "entries": hull.entries,
                "corrections": corrections,
            }
        return definition

    def _notes(self, rows: Sequence["_Row"], hull: Hull | None, known: bool) -> list[str]:
        if not rows:
            return ["There are no candidates, so nothing is defined."]
        notes = list(hull.notes) if hull is not None else []
        if self.potential is None:
            notes.append("No potential is given: nothing is relaxed, and there are no energies.")
        elif hull is None:
            notes.append("No hull is given: no stability is computed.")
        elif hull.potential is not None:
            what = f"The hull consists of {hull.entries} structures of {hull.place}, by the same potential"
            notes.append(f"{what}; missing phases would lower the shares of stable structures.")
        if not known:
            notes.append("There are no known structures to compare with, so novelty is undefined.")
        if hull is not None and (unsupported := sum(row.unsupported for row in rows)):
            what = "of the relaxed structures have no energy above hull, and count as not stable"
            notes.append(f"{unsupported} {what}.")
        heights = [row.e_above_hull for row in rows if row.e_above_hull is not None]
        if hull is not None and (odd := sum(abs(height) > FAR_OFF for height in heights)):
            what = f"of {len(heights)} energies lie more than {FAR_OFF:g} eV/atom above or below the hull"
            notes.append(f"{odd} {what}; if most do, hull and potential may be of different scales.")
        if unconverged := sum(row.converged is False for row in rows):
            notes.append(f"{unconverged} of {len(rows)} relaxations did not converge; the last structure counts.")
        return notes


@attrs.define
class _Row:
    """The values of one candidate, None if they are not known. Energies are in eV/atom, lengths in angstrom."""

    candidate: Candidate
    reason: str = ""
    energy: float | None = None
    energy_drop: float | None = None
    e_above_hull: float | None = None
    rmsd: float | None = None
    rmsd_mattergen: float | None = None
    steps: int | None = None
    converged: bool | None = None
    unique: bool | None = None
    novel: bool | None = None

    @property
    def unsupported(self) -> bool:
        """Whether it was relaxed but has no energy above the hull."""
        return self.converged is not None and self.e_above_hull is None

    def stable(self, threshold: float) -> bool:
        """Whether it is at most at the threshold above the hull, with a margin for rounding."""
        return self.e_above_hull is not None and self.e_above_hull <= threshold + 1e-6

    def sun(self, threshold: float) -> bool:
        """Whether it is stable, unique and novel."""
        return self.stable(threshold) and bool(self.unique) and bool(self.novel)

    def public(self, levels: Mapping[str, float]) -> Mapping[str, Json]:
        """The row of the per-structure table."""
        return {
            "target": self.candidate.target,
            "candidate": self.candidate.candidate,
            "formula": formula(self.candidate),
            "reason": self.reason,
            "energy": self.energy,
            "e_above_hull": self.e_above_hull,
            "rmsd": self.rmsd,
            "rmsd_mattergen": self.rmsd_mattergen,
            "steps": self.steps,
            "converged": self.converged,
            "unique": self.unique,
            "novel": self.novel,
            **{f"stable_{name}": self.stable(level) for name, level in levels.items()},
        }


@attrs.frozen(eq=False)
class _Result:
    """A row, and the structure of the candidate after relaxation."""

    row: _Row
    structure: "Structure"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
