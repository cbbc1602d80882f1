"""The full validity rule of the CDVAE family, checked for as few structures as the match rate needs."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from kldm.metrics.composition import compositional_validity
from kldm.metrics.fingerprinting.fingerprints import has_structure_fingerprint
from kldm.runtime.pool import Failure, parallel_map

if TYPE_CHECKING:
    from pymatgen.core.structure import Structure

Key = tuple[int, int]
"""(target, candidate)."""


@attrs.frozen
class Fingerprinted:
    """Whether targets and candidates have a fingerprint, for those that were checked.

    Attributes:
        targets: one answer for each target.
        candidates: one answer for each (target, candidate).
    """

    targets: Mapping[int, bool]
    candidates: Mapping[Key, bool]

    def passes(self, key: Key) -> bool:
        """Whether the candidate and its target are known to have one."""
        return self.targets.get(key[0], False) and self.candidates.get(key, False)


def composition_valid(structure: "Structure") -> bool:
    """Whether the composition is valid by smact's oxidation states of 2014; False if it cannot be examined."""
    return not compositional_validity(structure.composition)


def fingerprinted(
    targets: "Mapping[int, Structure]",
    structures: "Mapping[Key, Structure]",
    rms: Mapping[Key, float],
    *,
    everyone: bool,
    also: Collection[Key] = (),
    workers: int,
    time_limit: float | None,
) -> Fingerprinted:
    """Check for fingerprints: of every target with a match, of its candidate 0, and of its other matches in the order
    of their rms until one has a fingerprint.

    Candidates outside ``rms`` do not match in any case, so they are not checked. That leaves two or three fingerprints
    for each target. Structures equal to the last bit, such as copies of the target, are checked once.

    Args:
        targets: the targets that are otherwise valid, by number.
        structures: the structures of all candidates.
        rms: that of the candidates that match and are otherwise valid.
        everyone: check every candidate in ``rms``, which the values of each seed need.
        also: candidates that are checked whatever is known of the others of their target.
        workers: processes.
        time_limit: seconds per structure.
    """
    answers: dict[Hashable, bool] = {}

    def check(structures: "Iterable[Structure]") -> list[bool]:
        contents = [(_content(structure), structure) for structure in structures]
        new = {content: structure for content, structure in contents if content not in answers}
        results = parallel_map(
            has_structure_fingerprint,
            list(new.values()),
            workers=workers,
            time_limit=time_limit,
            description="fingerprints",
        )
        for content, result in zip(new, results, strict=True):
            answers[content] = not isinstance(result, Failure) and result
        return [answers[content] for content, _ in contents]

    numbers = sorted({target for target, _ in rms})
    checked_targets = dict(zip(numbers, check(targets[target] for target in numbers), strict=True))
    queues: dict[int, list[Key]] = {target: [] for target in numbers if checked_targets[target]}
    for key in sorted(rms, key=lambda key: (rms[key], key)):
        if key[0] in queues:
            queues[key[0]].append(key)
    first = [
        key for queue in queues.values() for key in queue if everyone or key[1] == 0 or key == queue[0] or key in also
    ]
    checked = dict(zip(first, check(structures[key] for key in first), strict=True))
    while True:
        following = [
            next(key for key in queue if key not in checked)
            for queue in queues.values()
            if not _decided(queue, checked)
        ]
        if not following:
            return Fingerprinted(checked_targets, checked)
        checked |= zip(following, check(structures[key] for key in following), strict=True)


def _content(structure: "Structure") -> Hashable:
    """Everything that a fingerprint depends on."""
    species = tuple((repr(kind), amount) for site in structure for kind, amount in site.species.items())
    counts = tuple(len(site.species) for site in structure)
    cell = structure.lattice
    return counts, species, cell.pbc, cell.matrix.tobytes(), structure.frac_coords.tobytes()


def _decided(queue: Sequence[Key], checked: Mapping[Key, bool]) -> bool:
    """Whether it is known which candidate of the queue is the first with a fingerprint, or that there is none."""
    return next((key in checked for key in queue if checked.get(key) is not False), True)
