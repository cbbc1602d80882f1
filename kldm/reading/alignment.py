"""Which sample answers which row of the reference."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import attrs

from kldm.errors import KldmError
from kldm.interfaces import Candidate
from kldm.reading.reference import Reference
from kldm.reading.rows import SampleFile, formulas

UNPLACED = -1
"""Target of a sample that answers no row of the reference."""

LABELS = "Rows are placed by the target that they carry."


@attrs.frozen(eq=False)
class Alignment:
    """Samples beside the rows of a reference.

    Attributes:
        candidates: those that answer a row, by target and candidate.
        unplaced: those that answer none, with target ``UNPLACED`` and a reason; their candidate number is their
            position in the file. They count among the samples, and no target is met by them.
        rule: a sentence that says how the samples were placed.
        notes: sentences that a reader of the results must see.
    """

    candidates: tuple[Candidate, ...]
    unplaced: tuple[Candidate, ...]
    rule: str
    notes: tuple[str, ...]


def align(files: Sequence[SampleFile], reference: Reference, targets: int | None = None) -> Alignment:
    """Place the samples of one file, or of several that are seeds of one experiment, on the rows of the reference.

    Rows that carry a target keep it. Otherwise order decides where the file has as many rows as the reference, or
    k times as many (pass after pass over the reference, or the k answers to each row together, whichever agrees
    with the compositions more often). Otherwise composition decides: the samples of a reduced formula go to
    the reference rows of this formula in turn. File f of several gives candidate f of every target.

    Args:
        files: the samples.
        reference: what they answer.
        targets: how many of its rows were asked for; by default all.

    Raises:
        KldmError: a row carries a target that the reference lacks, or two rows the same target and candidate; one
            of several files answers a target twice.
    """
    placed = [_placed(file, reference) for file in files]
    targets = len(reference) if targets is None else targets
    notes = [note for one in placed for note in one.notes]
    if len(files) > 1:
        notes += [
            f"{file.path} has no candidate for {missing} of {targets} targets; they count as not matched."
            for file, one in zip(files, placed, strict=True)
            if (missing := targets - len({candidate.target for candidate in one.candidates}))
        ]
    candidates = _as_seeds([(str(file.path), one.candidates) for file, one in zip(files, placed, strict=True)])
    return Alignment(
        tuple(sorted(candidates, key=lambda one: (one.target, one.candidate))),
        tuple(candidate for one in placed for candidate in one.unplaced),
        _rule(files, placed),
        tuple(notes),
    )


def _as_seeds(sets: Sequence[tuple[str, Sequence[Candidate]]]) -> list[Candidate]:
    if len(sets) == 1:
        return list(sets[0][1])
    result = []
    for seed, (name, candidates) in enumerate(sets):
        target, count = Counter(one.target for one in candidates).most_common(1)[0] if candidates else (0, 0)
        if count > 1:
            remedy = "several files are several seeds, with one candidate for each target; give a set of k alone"
            raise KldmError(f"it has {count} candidates for target {target}", place=name, remedy=remedy)
        # What was selected within a file was not among the candidates of all.
        result += [attrs.evolve(one, candidate=seed, selected=False) for one in candidates]
    return result


def _rule(files: Sequence[SampleFile], placed: Sequence[Alignment]) -> str:
    if len({one.rule for one in placed}) == 1:
        rule = placed[0].rule
    else:
        rule = " ".join(f"{file.path}: {one.rule}" for file, one in zip(files, placed, strict=True))
    return rule if len(files) == 1 else f"{rule} File f of {len(files)} is candidate f of every target."


def _placed(file: SampleFile, reference: Reference) -> Alignment:
    found = formulas(one.structure for one in file.candidates)
    if file.labelled:
        _check_labels(file, len(reference))
        return Alignment(file.candidates, (), LABELS, _doubts(file, file.candidates, found, reference))
    k, left = divmod(len(file.candidates), len(reference)) if len(reference) else (0, 1)
    return _by_composition(file, found, reference) if left else _by_order(file, found, reference, k)


def _check_labels(file: SampleFile, rows: int) -> None:
    taken: dict[tuple[int, int], str] = {}
    for one, place in zip(file.candidates, file.places, strict=True):
        if one.target >= rows:
            remedy = (
                f"the reference has rows 0 to {rows - 1}; is it the right one?" if rows else "the reference is empty"
            )
            raise KldmError(f"it answers target {one.target}", place=place, remedy=remedy)
        first = taken.setdefault((one.target, one.candidate), place)
        if first is not place:
            problem, remedy = (
                f"target {one.target} has a candidate {one.candidate} in {first} too",
                "number them 0, 1, ...",
            )
            raise KldmError(problem, place=place, remedy=remedy)


def _by_order(file: SampleFile, found: Sequence[str | None], reference: Reference, k: int) -> Alignment:
    rows, candidates = len(reference), file.candidates
    passes = [attrs.evolve(c, target=row % rows, candidate=row // rows) for row, c in enumerate(candidates)]
    if k == 1:
        rule = "Rows are placed by their order: they carry no target, and there are as many as in the reference."
        return Alignment(tuple(passes), (), rule, _doubts(file, passes, found, reference))
    blocks = [attrs.evolve(c, target=row // k, candidate=row % k) for row, c in enumerate(candidates)]
    agreement = [_agreement(one, found, reference) for one in (passes, blocks)]
    chosen, how = (
        (blocks, f"the {k} candidates of each target stand together")
        if agreement[1] > agreement[0]
        else (passes, f"{k} passes over the reference follow each other")
    )
    rule = (
        f"Rows are placed by their order: they carry no target, and there are {k} times as many as in the reference; "
    )
    notes = _doubts(file, chosen, found, reference)
    if agreement[0] == agreement[1]:
        notes = (
            f"{file.path}: the compositions do not tell whether the {k} candidates of a target stand together or in "
            f"{k} passes over the reference; passes were assumed, so check that, or give every row a target.",
            *notes,
        )
    return Alignment(tuple(chosen), (), f"{rule}{how}.", notes)


def _by_composition(file: SampleFile, found: Sequence[str | None], reference: Reference) -> Alignment:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(reference.formulas):
        if name is not None:
            rows[name].append(row)
    met: Counter[str] = Counter()
    placed, unplaced, failed = [], [], 0
    for position, (one, name) in enumerate(zip(file.candidates, found, strict=True)):
        if name is None or name not in rows:
            failed += name is None
            reason = one.reason or "no row of the reference has its composition"
            unplaced.append(attrs.evolve(one, target=UNPLACED, candidate=position, reason=reason))
            continue
        number, which = divmod(met[name], len(rows[name]))
        met[name] += 1
        placed.append(attrs.evolve(one, target=rows[name][which], candidate=number))
    rule = (
        f"Rows are placed by their composition: they carry no target, and their number, {len(file.candidates)}, is no "
        f"multiple of the reference's, {len(reference)}."
    )
    notes = []
    if unplaced:
        notes.append(
            f"{file.path}: {len(unplaced)} of {len(file.candidates)} samples answer no row of the reference "
            f"({failed} are no structures, {len(unplaced) - failed} have a composition that it lacks)."
        )
    if shared := sum(len(rows[name]) > 1 for name in met):
        notes.append(
            f"{file.path}: {shared} compositions have several rows in the reference, which were taken in turn."
        )
    return Alignment(tuple(placed), tuple(unplaced), rule, tuple(notes))


def _compared(candidates: Sequence[Candidate], found: Sequence[str | None], reference: Reference) -> list[bool]:
    """Of each sample and reference row that both have a composition: whether it is the same."""
    pairs = ((name, reference.formulas[one.target]) for one, name in zip(candidates, found, strict=True))
    return [name == other for name, other in pairs if name is not None and other is not None]


def _agreement(candidates: Sequence[Candidate], found: Sequence[str | None], reference: Reference) -> int:
    return sum(_compared(candidates, found, reference))


def _doubts(
    file: SampleFile, candidates: Sequence[Candidate], found: Sequence[str | None], reference: Reference
) -> tuple[str, ...]:
    same = _compared(candidates, found, reference)
    if 2 * sum(same) >= len(same):
        return ()
    problem = f"{file.path}: only {sum(same)} of {len(same)} samples have the composition of the row they are placed at"
    return (f"{problem}; is {reference.name} the right reference?",)
