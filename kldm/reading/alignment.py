"""Finds which sample answers which row of the reference."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import attrs

from kldm.errors import KldmError
from kldm.interfaces import UNPLACED, Candidate
from kldm.reading.clues import (
    BY_ID,
    REMEDY,
    Place,
    Placement,
    are_row_numbers,
    by_ids,
    by_numbers,
    cleaned,
    unlike_note,
)
from kldm.reading.reference import Reference
from kldm.reading.rows import SampleFile, formulas

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
        rows: the rows of the reference that samples were requested for, ascending.
    """

    candidates: tuple[Candidate, ...]
    unplaced: tuple[Candidate, ...]
    rule: str
    notes: tuple[str, ...]
    rows: tuple[int, ...]


def align(files: Sequence[SampleFile], reference: Reference, requested: bool = False) -> Alignment:
    """Place the samples of one file, or of several files that are seeds of one experiment, on the rows of a reference.

    The first of these that applies decides:

    - Rows that carry a target keep it.
    - If the names of the samples are ids of the reference, alone or with words around them (``mp-66__1``), rows are
      placed by id.
    - If all names hold a number (``crystal_17``), rows are placed by it, and missing numbers are failed requests.
    - If the file has as many rows as the reference or k times as many, rows are placed by their order: pass
      after pass over the reference, or with the k candidates of each row together, whichever agrees with more of the
      compositions.
    - Otherwise rows are placed by their composition: the samples of a reduced formula go to the reference rows of this
      formula in turn.

    File f of several gives candidate f of every target.

    Args:
        files: the samples.
        reference: the structures that they answer.
        requested: samples were requested only for the rows that they name, and not for all of the reference.

    Raises:
        KldmError: a row carries a target that the reference lacks; two rows have the same target and candidate;
            targets, ids, numbers and the order of the file contradict each other; one of several files has two
            candidates for a target; or the samples name no rows although ``requested`` needs them.
    """
    placed = [_place(file, reference) for file in files]
    if requested and (silent := [file for file, each in zip(files, placed, strict=True) if not each.stated]):
        problem = "the file does not say which rows of the reference its samples answer"
        remedy = "give every row a 'target' or an id of the reference, or leave --requested out"
        raise KldmError(problem, place=str(silent[0].path), remedy=remedy)
    answered = [{place[0] for place in each.places if place is not None} for each in placed]
    rows = sorted(set().union(*answered)) if requested else list(range(len(reference)))
    notes = [note for each in placed for note in each.notes]
    notes += [
        f"{file.path} has no candidate for {missing} of {len(rows)} targets; they count as not matched."
        for file, each, targets in zip(files, placed, answered, strict=True)
        if len(files) > 1 and (missing := len(rows) - len(targets))
    ]
    candidates, unplaced = _numbered_by_seed(files, placed)
    candidates.sort(key=lambda candidate: (candidate.target, candidate.candidate))
    return Alignment(tuple(candidates), tuple(unplaced), _rule(files, placed), tuple(notes), tuple(rows))


def _numbered_by_seed(
    files: Sequence[SampleFile], placed: Sequence[Placement]
) -> tuple[list[Candidate], list[Candidate]]:
    """The candidates that answer a row, and those that answer none."""
    candidates, unplaced = [], []
    several = len(files) > 1
    for seed, (file, each) in enumerate(zip(files, placed, strict=True)):
        counts = Counter(place[0] for place in each.places if place is not None)
        target, count = counts.most_common(1)[0] if counts else (0, 0)
        if several and count > 1:
            remedy = "several files are several seeds, with one candidate for each target; give a set of k alone"
            raise KldmError(f"it has {count} candidates for target {target}", place=str(file.path), remedy=remedy)
        for position, (candidate, place) in enumerate(zip(file.candidates, each.places, strict=True)):
            if place is None:
                reason = candidate.reason or "no row of the reference has its composition or its id"
                unplaced.append(attrs.evolve(candidate, target=UNPLACED, candidate=position, reason=reason))
                continue
            # A candidate that was selected within its file was not selected among those of all files.
            selected, number = candidate.selected and not several, seed if several else place[1]
            candidates.append(attrs.evolve(candidate, target=place[0], candidate=number, selected=selected))
    return candidates, unplaced


def _rule(files: Sequence[SampleFile], placed: Sequence[Placement]) -> str:
    if len({each.rule for each in placed}) == 1:
        rule = placed[0].rule
    else:
        pairs = zip(files, placed, strict=True)
        rule = " ".join(f"{file.path}: {each.rule}" for file, each in pairs)
    return rule if len(files) == 1 else f"{rule} File f of {len(files)} is candidate f of every target."


def _place(file: SampleFile, reference: Reference) -> Placement:
    compositions = formulas(candidate.structure for candidate in file.candidates)
    names = [cleaned(name) for name in file.names]
    if file.labelled:
        return _by_target(file, names, compositions, reference)
    agreement = partial(_agreement, compositions, reference)
    k, left = divmod(len(file.candidates), len(reference)) if len(reference) else (0, 1)
    order = None if left else _by_order(file, compositions, reference, k)
    clue = by_ids(names, reference.ids, str(file.path)) or _by_numbers(file, names, reference, agreement)
    if clue is None:
        placed = order or _by_composition(file, compositions, reference)
        unlike = unlike_note(names, reference.ids)
        return attrs.evolve(placed, notes=(*placed.notes, *([f"{file.path}: {unlike}."] if unlike else [])))
    if order is not None and order.places != clue.places:
        in_order = [place if named else None for place, named in zip(order.places, clue.places, strict=True)]
        by_names, by_order = agreement(clue.places), agreement(in_order)
        if by_order > by_names or (clue.weak and by_order == by_names):
            raise KldmError(
                f"its names and its order contradict each other: {by_names} of {len(names)} samples have the "
                f"composition of the row that their name says, {by_order} that of the row in order",
                place=str(file.path),
                remedy=REMEDY,
            )
    notes = (
        *(f"{file.path}: {note}" for note in clue.notes),
        *_mismatch_notes(file, clue.places, compositions, reference),
    )
    return attrs.evolve(clue, notes=notes)


def _by_numbers(
    file: SampleFile, names: Sequence[str], reference: Reference, agreement: Callable[[Sequence[Place | None]], int]
) -> Placement | None:
    """The places by the numbers in names. The numbers that rows of a table have anyway are no names, and a single file
    may be called as it likes."""
    if list(names) == [cleaned(file.path.name)]:
        return None
    bundle = file.path.is_dir() or {".zip", ".tar", ".tgz"} & {suffix.lower() for suffix in file.path.suffixes}
    if not bundle and (are_row_numbers(names) or are_row_numbers(names, 1)):
        return None
    return by_numbers(names, len(reference), agreement, str(file.path))


def _by_target(
    file: SampleFile, names: Sequence[str], compositions: Sequence[str | None], reference: Reference
) -> Placement:
    """The places that rows carry. If they have ids of other rows too, the targets count the rows of another reference,
    and the ids count, unless the compositions agree better with the targets."""
    places: tuple[Place | None, ...] = tuple(
        None if candidate.target == UNPLACED else (candidate.target, candidate.candidate)
        for candidate in file.candidates
    )
    ids = [cleaned(name) for name in reference.ids]
    rows = {name: row for row, name in enumerate(ids)}
    notes = []
    if unplaced := places.count(None):
        notes.append(f"{file.path}: {unplaced} of {len(places)} samples have no target, and answer no row.")
    rule = BY_TARGET
    pairs = list(zip(names, places, strict=True))
    all_have_ids = all(name in rows for name, place in pairs if place is not None)
    if all_have_ids and len(rows) == len(ids) and not are_row_numbers(ids):
        by_id = tuple(None if place is None else (rows[name], place[1]) for name, place in pairs)
        if by_id != places:
            first = next(row for row, (one, other) in enumerate(zip(places, by_id, strict=True)) if one != other)
            target, row = file.candidates[first].target, rows[names[first]]
            problem = f"it answers target {target}, but its id {names[first]!r} is that of row {row}"
            kept = [place if place and place[0] < len(reference) else None for place in places]
            if _agreement(compositions, reference, by_id) < _agreement(compositions, reference, kept):
                remedy = "give the reference that the samples were made for, or leave the targets or the ids out"
                raise KldmError(problem, place=file.places[first], remedy=remedy)
            notes.append(f"{file.places[first]}: {problem}; the ids were taken.")
            places, rule = by_id, BY_ID
    _check_places(file, places, len(reference))
    return Placement(places, rule, (*notes, *_mismatch_notes(file, places, compositions, reference)), stated=True)


def _check_places(file: SampleFile, places: Sequence[Place | None], rows: int) -> None:
    taken: dict[Place, str] = {}
    for place, source in zip(places, file.places, strict=True):
        if place is None:
            continue
        target, number = place
        if target >= rows:
            remedy = f"the reference has rows 0 to {rows - 1}; is it the right one?"
            remedy = remedy if rows else "the reference is empty"
            raise KldmError(f"it answers target {target}", place=source, remedy=remedy)
        first = taken.setdefault(place, source)
        if first is not source:
            problem = f"target {target} has a candidate {number} in {first} too"
            raise KldmError(problem, place=source, remedy="number them 0, 1, ...")


def _by_order(file: SampleFile, compositions: Sequence[str | None], reference: Reference, k: int) -> Placement:
    rows, count = len(reference), len(file.candidates)
    passes = tuple((row % rows, row // rows) for row in range(count))
    if k == 1:
        rule = "Rows are placed by their order: they carry no target, and there are as many as in the reference."
        return Placement(passes, rule, _mismatch_notes(file, passes, compositions, reference))
    blocks = tuple((row // k, row % k) for row in range(count))
    agreement = [_agreement(compositions, reference, places) for places in (passes, blocks)]
    places, order = (
        (blocks, f"the {k} candidates of each target stand together")
        if agreement[1] > agreement[0]
        else (passes, f"{k} passes over the reference follow each other")
    )
    rule = (
        f"Rows are placed by their order: they carry no target, and there are {k} times as many as in the reference; "
    )
    notes = _mismatch_notes(file, places, compositions, reference)
    if agreement[0] == agreement[1] and passes != blocks:
        notes = (
            f"{file.path}: the compositions do not tell whether the {k} candidates of a target stand together or in "
            f"{k} passes over the reference; passes were assumed, so check that, or give every row a target.",
            *notes,
        )
    return Placement(places, f"{rule}{order}.", notes)


def _by_composition(file: SampleFile, compositions: Sequence[str | None], reference: Reference) -> Placement:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, formula in enumerate(reference.formulas):
        if formula is not None:
            rows[formula].append(row)
    answers: Counter[str] = Counter()
    places: list[Place | None] = []
    for name in compositions:
        if name is None or name not in rows:
            places.append(None)
            continue
        number, index = divmod(answers[name], len(rows[name]))
        answers[name] += 1
        places.append((rows[name][index], number))
    rule = (
        f"Rows are placed by their composition: they carry no target, and their number, {len(file.candidates)}, is no "
        f"multiple of the reference's, {len(reference)}."
    )
    notes = []
    if unplaced := places.count(None):
        failed = compositions.count(None)
        notes.append(
            f"{file.path}: {unplaced} of {len(file.candidates)} samples answer no row of the reference "
            f"({failed} are no structures, {unplaced - failed} have a composition that it lacks)."
        )
    if shared := sum(len(rows[name]) > 1 for name in answers):
        notes.append(
            f"{file.path}: {shared} compositions have several rows in the reference, which were taken in turn."
        )
    return Placement(tuple(places), rule, tuple(notes))


def _same_composition(
    places: Sequence[Place | None], compositions: Sequence[str | None], reference: Reference
) -> list[bool]:
    """Whether sample and reference row have the same composition, for each pair in which both have one."""
    pairs = (
        (name, reference.formulas[place[0]])
        for place, name in zip(places, compositions, strict=True)
        if place is not None
    )
    return [name == formula for name, formula in pairs if name is not None and formula is not None]


def _agreement(compositions: Sequence[str | None], reference: Reference, places: Sequence[Place | None]) -> int:
    """How many samples have the composition of their row."""
    return sum(_same_composition(places, compositions, reference))


def _mismatch_notes(
    file: SampleFile, places: Sequence[Place | None], compositions: Sequence[str | None], reference: Reference
) -> tuple[str, ...]:
    same = _same_composition(places, compositions, reference)
    if 2 * sum(same) >= len(same):
        return ()
    problem = f"{file.path}: only {sum(same)} of {len(same)} samples have the composition of the row they are placed at"
    return (f"{problem}; is {reference.name} the right reference, and in the order of the samples?",)
