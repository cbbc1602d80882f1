"""Finds which sample answers which row of the reference."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import attrs

from kldm.errors import KldmError
from kldm.interfaces import Candidate
from kldm.reading.reference import Reference
from kldm.reading.rows import SampleFile, formulas

UNPLACED = -1
"""Target of a sample that answers no row of the reference."""

BY_TARGET = "Rows are placed by the target that they carry."


@attrs.frozen(eq=False)
class Alignment:
    """Samples by the rows of a reference that they answer.

    Attributes:
        candidates: the samples that answer a row, sorted by target and candidate number.
        unplaced: the samples that answer no row, with target ``UNPLACED`` and a reason; their candidate number is their
            position in the file. They count as samples, but no target is matched by them.
        rule: a sentence that says how the samples were placed.
        notes: sentences that a reader of the results must see.
    """

    candidates: tuple[Candidate, ...]
    unplaced: tuple[Candidate, ...]
    rule: str
    notes: tuple[str, ...]


def align(files: Sequence[SampleFile], reference: Reference, targets: int | None = None) -> Alignment:
    """Place the samples of one file, or of several files that are seeds of one experiment, on the rows of a reference.

    - Rows that carry a target keep it.
    - Otherwise, if the file has as many rows as the reference or k times as many, rows are placed by their order: pass
      after pass over the reference, or with the k candidates of each row together, whichever agrees with more of the
      compositions.
    - Otherwise rows are placed by their composition: the samples of a reduced formula go to the reference rows of this
      formula in turn.

    File f of several gives candidate f of every target.

    Args:
        files: the samples.
        reference: the structures that they answer.
        targets: number of its rows that samples were requested for; by default all.

    Raises:
        KldmError: a row carries a target that the reference lacks; two rows have the same target and candidate; or one
            of several files has two candidates for a target.
    """
    alignments = [_align_file(file, reference) for file in files]
    targets = len(reference) if targets is None else targets
    notes = [note for alignment in alignments for note in alignment.notes]
    if len(files) > 1:
        notes += [
            f"{file.path} has no candidate for {missing} of {targets} targets; they count as not matched."
            for file, alignment in zip(files, alignments, strict=True)
            if (missing := targets - len({candidate.target for candidate in alignment.candidates}))
        ]
    candidates = _numbered_by_seed(files, alignments)
    return Alignment(
        tuple(sorted(candidates, key=lambda candidate: (candidate.target, candidate.candidate))),
        tuple(candidate for alignment in alignments for candidate in alignment.unplaced),
        _rule(files, alignments),
        tuple(notes),
    )


def _numbered_by_seed(files: Sequence[SampleFile], alignments: Sequence[Alignment]) -> Sequence[Candidate]:
    if len(files) == 1:
        return alignments[0].candidates
    result = []
    for seed, (file, alignment) in enumerate(zip(files, alignments, strict=True)):
        counts = Counter(candidate.target for candidate in alignment.candidates)
        target, count = counts.most_common(1)[0] if counts else (0, 0)
        if count > 1:
            remedy = "several files are several seeds, with one candidate for each target; give a set of k alone"
            raise KldmError(f"it has {count} candidates for target {target}", place=str(file.path), remedy=remedy)
        # A candidate that was selected within its file was not selected among those of all files.
        result += [attrs.evolve(candidate, candidate=seed, selected=False) for candidate in alignment.candidates]
    return result


def _rule(files: Sequence[SampleFile], alignments: Sequence[Alignment]) -> str:
    if len({alignment.rule for alignment in alignments}) == 1:
        rule = alignments[0].rule
    else:
        pairs = zip(files, alignments, strict=True)
        rule = " ".join(f"{file.path}: {alignment.rule}" for file, alignment in pairs)
    return rule if len(files) == 1 else f"{rule} File f of {len(files)} is candidate f of every target."


def _align_file(file: SampleFile, reference: Reference) -> Alignment:
    names = formulas(candidate.structure for candidate in file.candidates)
    if file.labelled:
        _check_labels(file, len(reference))
        return Alignment(file.candidates, (), BY_TARGET, _mismatch_notes(file, file.candidates, names, reference))
    k, left = divmod(len(file.candidates), len(reference)) if len(reference) else (0, 1)
    return _by_composition(file, names, reference) if left else _by_order(file, names, reference, k)


def _check_labels(file: SampleFile, rows: int) -> None:
    places: dict[tuple[int, int], str] = {}
    for candidate, place in zip(file.candidates, file.places, strict=True):
        target, number = candidate.target, candidate.candidate
        if target >= rows:
            remedy = f"the reference has rows 0 to {rows - 1}; is it the right one?"
            remedy = remedy if rows else "the reference is empty"
            raise KldmError(f"it answers target {target}", place=place, remedy=remedy)
        first = places.setdefault((target, number), place)
        if first is not place:
            problem = f"target {target} has a candidate {number} in {first} too"
            raise KldmError(problem, place=place, remedy="number them 0, 1, ...")


def _by_order(file: SampleFile, names: Sequence[str | None], reference: Reference, k: int) -> Alignment:
    rows = len(reference)
    passes = [attrs.evolve(c, target=row % rows, candidate=row // rows) for row, c in enumerate(file.candidates)]
    if k == 1:
        rule = "Rows are placed by their order: they carry no target, and there are as many as in the reference."
        return Alignment(tuple(passes), (), rule, _mismatch_notes(file, passes, names, reference))
    blocks = [attrs.evolve(c, target=row // k, candidate=row % k) for row, c in enumerate(file.candidates)]
    agreement = [sum(_same_composition(placed, names, reference)) for placed in (passes, blocks)]
    candidates, order = (
        (blocks, f"the {k} candidates of each target stand together")
        if agreement[1] > agreement[0]
        else (passes, f"{k} passes over the reference follow each other")
    )
    rule = (
        f"Rows are placed by their order: they carry no target, and there are {k} times as many as in the reference; "
    )
    notes = _mismatch_notes(file, candidates, names, reference)
    if agreement[0] == agreement[1]:
        notes = (
            f"{file.path}: the compositions do not tell whether the {k} candidates of a target stand together or in "
            f"{k} passes over the reference; passes were assumed, so check that, or give every row a target.",
            *notes,
        )
    return Alignment(tuple(candidates), (), f"{rule}{order}.", notes)


def _by_composition(file: SampleFile, names: Sequence[str | None], reference: Reference) -> Alignment:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, formula in enumerate(reference.formulas):
        if formula is not None:
            rows[formula].append(row)
    answers: Counter[str] = Counter()
    placed, unplaced, failed = [], [], 0
    for position, (candidate, name) in enumerate(zip(file.candidates, names, strict=True)):
        if name is None or name not in rows:
            failed += name is None
            reason = candidate.reason or "no row of the reference has its composition"
            unplaced.append(attrs.evolve(candidate, target=UNPLACED, candidate=position, reason=reason))
            continue
        number, index = divmod(answers[name], len(rows[name]))
        answers[name] += 1
        placed.append(attrs.evolve(candidate, target=rows[name][index], candidate=number))
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
    if shared := sum(len(rows[name]) > 1 for name in answers):
        notes.append(
            f"{file.path}: {shared} compositions have several rows in the reference, which were taken in turn."
        )
    return Alignment(tuple(placed), tuple(unplaced), rule, tuple(notes))


def _same_composition(candidates: Sequence[Candidate], names: Sequence[str | None], reference: Reference) -> list[bool]:
    """Whether sample and reference row have the same composition, for each pair in which both have one."""
    pairs = ((name, reference.formulas[candidate.target]) for candidate, name in zip(candidates, names, strict=True))
    return [name == formula for name, formula in pairs if name is not None and formula is not None]


def _mismatch_notes(
    file: SampleFile, candidates: Sequence[Candidate], names: Sequence[str | None], reference: Reference
) -> tuple[str, ...]:
    same = _same_composition(candidates, names, reference)
    if 2 * sum(same) >= len(same):
        return ()
    problem = f"{file.path}: only {sum(same)} of {len(same)} samples have the composition of the row they are placed at"
    return (f"{problem}; is {reference.name} the right reference?",)
