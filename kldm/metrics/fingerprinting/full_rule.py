"""The full validity rule of the CDVAE family, asked of as few structures as the match rate needs."""

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
    """Who has a fingerprint, as far as it was asked.

    Attributes:
        targets: by target.
        candidates: by (target, candidate).
    """

    targets: Mapping[int, bool]
    candidates: Mapping[Key, bool]

    def passes(self, key: Key) -> bool:
        return self.targets.get(key[0], False) and self.candidates.get(key, False)


def composition_valid(structure: "Structure") -> bool:
    """By smact's 2014 set of oxidation states; False where the composition cannot be judged."""
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
    """Fingerprints of targets with a match, their candidates 0, and others by rms until one has one.

    A miss is a miss whatever its fingerprint, so candidates outside ``rms`` are not asked. That leaves two or three
    fingerprints a target. Structures equal to the last bit, such as copies of the target, are asked once.

    Args:
        targets: by number, those that are otherwise allowed.
        structures: of all candidates.
        rms: of the candidates that match and are otherwise allowed.
        everyone: ask every candidate in ``rms``, as the numbers of each seed need.
        also: candidates that are asked whatever is known of the others of their target.
        workers: processes.
        time_limit: seconds per structure.
    """

    answers: dict[Hashable, bool] = {}

    def ask(wanted: "Iterable[Structure]") -> list[bool]:
        given = [(_content(structure), structure) for structure in wanted]
        new = {content: structure for content, structure in given if content not in answers}
        found = parallel_map(
            has_structure_fingerprint,
            list(new.values()),
            workers=workers,
            time_limit=time_limit,
            description="fingerprints",
        )
        answers.update((c, not isinstance(one, Failure) and one) for c, one in zip(new, found, strict=True))
        return [answers[content] for content, _ in given]

    numbers = sorted({target for target, _ in rms})
    known = dict(zip(numbers, ask(targets[target] for target in numbers), strict=True))
    queues: dict[int, list[Key]] = {target: [] for target in numbers if known[target]}
    for key in sorted(rms, key=lambda key: (rms[key], key)):
        if key[0] in queues:
            queues[key[0]].append(key)
    first = [
        key for queue in queues.values() for key in queue if everyone or key[1] == 0 or key == queue[0] or key in also
    ]
    asked = dict(zip(first, ask(structures[key] for key in first), strict=True))
    while True:
        following = [
            next(key for key in queue if key not in asked) for queue in queues.values() if not _decided(queue, asked)
        ]
        if not following:
            return Fingerprinted(known, asked)
        asked |= zip(following, ask(structures[key] for key in following), strict=True)


def _content(structure: "Structure") -> Hashable:
    """Everything that a fingerprint depends on."""
    species = tuple((repr(kind), amount) for site in structure for kind, amount in site.species.items())
    counts = tuple(len(site.species) for site in structure)
    cell = structure.lattice
    return counts, species, cell.pbc, cell.matrix.tobytes(), structure.frac_coords.tobytes()


def _decided(queue: Sequence[Key], asked: Mapping[Key, bool]) -> bool:
    """Whether the first that has a fingerprint is known, or that there is none."""
    for key in queue:
        if key not in asked:
            return False
        if asked[key]:
            return True
    return True
