"""Relaxation, stability, uniqueness and novelty of generated structures: MatterGen's pipeline, in one metric."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import attrs
from attrs.validators import optional

from kldm.errors import KldmError
from kldm.interfaces import Candidate, Json, Measurement, Potential, Samples, Terms
from kldm.metrics.relaxing.corrections import mp2020
from kldm.metrics.relaxing.displacement import displacement, displacement_mattergen
from kldm.metrics.relaxing.hull import Hull, Scheme, above_hull, check_scales, read_hull
from kldm.metrics.relaxing.relaxation import (
    RELAXATION_SECONDS,
    Relaxation,
    calculator_of,
    impossible,
    relaxation_versions,
    relaxed,
)
from kldm.metrics.relaxing.similarity import ELECTRONEGATIVITIES, RADII, TOLERANCES, Comparator, novel, unique
from kldm.metrics.structure import without_charges
from kldm.metrics.validity import formula, share
from kldm.reading import find_reference, read_reference
from kldm.registry import metric
from kldm.runtime.pool import Failure, parallel_map
from kldm.validators import duration, finite, one_of, worker_count
from kldm.validators import each as each_of

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure


@metric("stability.v1")
@attrs.frozen(kw_only=True)
class Stability:
    """Stability, uniqueness and novelty of relaxed structures (Zeni et al., Nature 2025, MatterGen; KLDM's Table 2).

        rmsd, rmsd_mattergen  = mean displacement in relaxation, angstrom (``displacement``, ``displacement_mattergen``)
        energy_drop           = mean energy lost in relaxation, eV/atom
        avg_, median_e_above_hull = of those with an energy above hull, eV/atom; negative below the reference's hull
        stable_<t>meV         = candidates at most t meV/atom above the hull / all requested candidates
        unique                = candidates like none before them / all requested
        novel                 = candidates like none of the known structures / all requested
        sun_<t>meV            = candidates that are all three / all requested

    Shares are in [0, 1]. A candidate that failed, could not be relaxed, or has an element that the hull lacks stays in
    every denominator. Structures are compared after relaxation. Without a hull nothing is called stable; without a
    potential nothing is relaxed, and uniqueness and novelty are of the structures as they are.

    Args:
        potential: what relaxes.
        relaxation: how.
        hull: files of entries whose convex hull decides: those that ``kldm relax`` made of a reference with the same
            potential, or computed entries of density functional theory.
        corrections: those in the energies of the latter, none or mp2020. An uncorrected potential's energies get them.
        thresholds: eV/atom above the hull, up to which a structure counts as stable.
        matcher: ``disordered`` (MatterGen's default, behind published shares) or ``ordered``; see ``same``.
        known: what is not new: ``DATASET/SPLIT`` or files of structures; if empty, the reference of the samples.
        workers: processes; -1: as many as there are CPU cores. A potential on a GPU is best served by one.
        time_limit: seconds for the relaxation of one structure; what takes longer has failed.
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
            raise KldmError("corrections are those of a hull", place="corrections", remedy="give the hull too")

    @property
    def terms(self) -> Terms:
        """It looks at the reference for what is not novel, unless ``known`` says that."""
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
        """See that the potential can be used, that the hull fits it, and that what is known is there."""
        if self.potential is not None:
            calculator_of(self.potential)
        self._hull()
        for name in self.known:
            find_reference(name)

    def measure(self, samples: Samples) -> Measurement:
        """The values; one row per candidate with target, candidate, formula, reason (against its structure, its
        relaxation or its energy above hull, the first found), energy (eV/atom, relaxed, corrected as the hull is),
        e_above_hull, rmsd, rmsd_mattergen, steps, converged, unique, novel and stable_<t>meV."""
        self.prepare()
        hull, known = self._hull(), self._known(samples)
        rows = [_Row(candidate) for candidate in samples.candidates]
        ordered = sorted(rows, key=lambda row: (row.candidate.target, row.candidate.candidate))
        made = self._relax(ordered)
        if hull is not None:
            self._place(made, hull)
        self._compare(made, known)
        levels = {f"{1000 * threshold:.10g}meV": threshold for threshold in self.thresholds if hull is not None}
        return Measurement(
            self._values(rows, hull, levels, bool(known)),
            tuple(row.public(levels) for row in rows),
            self._definition(rows, hull, len(known)),
            tuple(self._notes(rows, hull, bool(known))),
        )

    def _hull(self) -> Hull | None:
        if self.potential is None or not self.hull:
            return None
        hull = read_hull([path.expanduser() for path in self.hull], self.corrections)
        check_scales(hull, self.potential.scale, self.potential.identity)
        return hull

    def _known(self, samples: Samples) -> "list[Structure]":
        known = list(samples.reference)
        if self.known:
            known = [one for name in self.known for one in read_reference(name).structures]
        return [without_charges(one) for one in known if one is not None]

    def _relax(self, rows: Sequence["_Row"]) -> list["_Made"]:
        """What is left of the candidates after relaxation; the rows of the others get their reason."""
        given = [row.candidate.structure for row in rows]
        if self.potential is None:
            for row, structure in zip(rows, given, strict=True):
                row.reason = row.candidate.reason or impossible(structure)
            pairs = zip(rows, given, strict=True)
            return [_Made(row, structure) for row, structure in pairs if structure is not None and not row.reason]
        made = []
        done = relaxed(given, self.potential, self.relaxation, workers=self.workers, time_limit=self.time_limit)
        for row, result in zip(rows, done, strict=True):
            if result.structure is None:
                row.reason = row.candidate.reason or result.reason
                continue
            atoms = len(result.structure)
            row.energy, row.energy_drop = result.energy / atoms, (result.before - result.energy) / atoms
            row.steps, row.converged = result.steps, result.converged
            made.append(_Made(row, result.structure))
        ends = [(before, one.structure) for one in made if (before := one.row.candidate.structure) is not None]
        moved = parallel_map(
            _displacements, ends, workers=self.workers, time_limit=self.time_limit, description="displacements"
        )
        for one, found in zip(made, moved, strict=True):
            if not isinstance(found, Failure):
                one.row.rmsd, one.row.rmsd_mattergen = found
        return made

    def _place(self, made: Sequence["_Made"], hull: Hull) -> None:
        """Energies above the hull, of those that have one."""
        if hull.scheme == "mp2020" and self.potential is not None and self.potential.scale == "uncorrected":
            structures = [one.structure for one in made]
            work = parallel_map(
                mp2020, structures, workers=self.workers, time_limit=self.time_limit, description="corrections"
            )
            for one, added in zip(made, work, strict=True):
                if isinstance(added, Failure):
                    one.row.energy, one.row.reason = None, "its energy cannot be corrected"
                elif one.row.energy is not None:
                    one.row.energy += added / len(one.structure)
        for one in made:
            if hull.lacks(frozenset(one.structure.composition.get_el_amt_dict())):
                one.row.reason = one.row.reason or "the hull lacks one of its elements"
        placed = [(one, one.row.energy) for one in made if one.row.energy is not None and not one.row.reason]
        heights = above_hull(
            [one.structure for one, _ in placed],
            [energy for _, energy in placed],
            hull,
            workers=self.workers,
            time_limit=self.time_limit,
        )
        for (one, _), height in zip(placed, heights, strict=True):
            one.row.e_above_hull = height
            one.row.reason = "" if height is not None else "no energy of the hull was found for its composition"

    def _compare(self, made: Sequence["_Made"], known: "Sequence[Structure]") -> None:
        """Uniqueness and novelty of the rows."""
        structures = [without_charges(one.structure) for one in made]
        first = unique(structures, self.matcher, workers=self.workers)
        for one, is_first in zip(made, first, strict=True):
            one.row.unique = is_first
        if known:
            unseen = novel(structures, known, self.matcher, workers=self.workers)
            for one, is_unseen in zip(made, unseen, strict=True):
                one.row.novel = is_unseen

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
            heights = [row.e_above_hull for row in rows if row.e_above_hull is not None]
            values["n_unsupported"] = sum(row.unsupported for row in rows)
            values["avg_e_above_hull"] = _mean(heights)
            values["median_e_above_hull"] = statistics.median(heights) if heights else None
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
        notes = []
        if self.potential is None:
            notes.append("No potential is given: nothing is relaxed, and nothing is said about energies.")
        elif hull is None:
            notes.append("No hull is given: nothing is said about stability.")
        elif hull.potential is not None:
            what = f"The hull consists of {hull.entries} structures of {hull.place}, by the same potential"
            notes.append(f"{what}; phases that it lacks would lower the shares of stable ones.")
        if not known:
            notes.append("There are no known structures to compare with, so that novelty is undefined.")
        if hull is not None and (unsupported := sum(row.unsupported for row in rows)):
            what = "of the relaxed structures have no energy above hull, and count as not stable"
            notes.append(f"{unsupported} {what}.")
        if unconverged := sum(row.converged is False for row in rows):
            notes.append(f"{unconverged} of {len(rows)} relaxations did not converge; the last structure counts.")
        return notes


@attrs.define
class _Row:
    """What is found out about one candidate; None where nobody knows. Energies in eV/atom, lengths in angstrom."""

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
        """Relaxed, without a place above the hull."""
        return self.converged is not None and self.e_above_hull is None

    def stable(self, threshold: float) -> bool:
        """At the threshold itself too, with some room for rounding."""
        return self.e_above_hull is not None and self.e_above_hull <= threshold + 1e-6

    def sun(self, threshold: float) -> bool:
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
class _Made:
    """A row, and the structure that the candidate became."""

    row: _Row
    structure: "Structure"


def _displacements(pair: "tuple[Structure, Structure]") -> tuple[float, float | None]:
    """The second is None where no symmetry can be found in the structure before."""
    try:
        published = displacement_mattergen(*pair)
    except Exception:  # spglib and the matcher raise in many ways
        return displacement(*pair), None
    return displacement(*pair), published


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
