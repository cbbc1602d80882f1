"""Files of samples judged by any registered metric, whichever program made them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from kldm import registry
from kldm.errors import KldmError
from kldm.evaluation.judging import Judge, judge
from kldm.evaluation.overlap import of_structures, overlap_note
from kldm.evaluation.report import Judgement, Report, terms_of
from kldm.evaluation.results import library_versions
from kldm.interfaces import Candidate, Json, Metric, Prepares, Samples
from kldm.reading import Reference, SampleFile, align, read_file, read_reference, record_of
from kldm.recipe import build, overridden
from kldm.recipe.signatures import parameters
from kldm.version import __version__

METRIC = "match_rate.v1"
"""What judges files where nobody says."""


@attrs.frozen(kw_only=True)
class _Judging:
    metric: Metric


def metric_called(name: str, keys: Mapping[str, Json], conveniences: Mapping[str, Json] = {}) -> Judge:
    """A registered metric with keys of its own, ``metric.k``, checked as those of a recipe are.

    Args:
        name: its registered name.
        keys: by dotted key, as from ``parse_overrides``.
        conveniences: keys that go by options of the command, such as ``workers``.

    Raises:
        KldmError: at the option as the command line spells it.
    """
    for key in keys:
        if not key.startswith("metric."):
            remedy = "options with a dot are those of the metric: --metric.key value"
            raise KldmError("is not of the metric", place=f"--{key}", remedy=remedy)
    try:
        known = parameters(registry.metrics.get(name))
    except KldmError as error:
        raise KldmError(error.problem, place="--metric", remedy=error.remedy) from error
    for key in conveniences:
        if key not in known:
            place = f"--{key.replace('_', '-')}"
            raise KldmError(f"says nothing with {name}, which has no {key}", place=place, remedy="leave it out")
    given = {f"metric.{key}": value for key, value in conveniences.items()} | dict(keys)
    try:
        built, complete = build(overridden({"metric": {"@metrics": name}}, given), _Judging)
    except KldmError as error:
        place = f"--{error.place}" if error.place else "--metric"
        raise KldmError(error.problem, place=place, remedy=error.remedy) from error
    return Judge(complete["metric"]["@metrics"], built.metric)


def judge_files(
    paths: Sequence[Path],
    by: Judge,
    out: Path,
    *,
    reference: str | None = None,
    k: int | None = None,
    train: str = "",
    requested: bool = False,
) -> Report:
    """Judge samples and write ``report.json``, ``results.csv`` and ``results.jsonl`` to ``out``.

    Args:
        paths: files in any format of ``kldm.reading``. Several are several candidates of every row of the reference
            where the metric judges answers (``Terms.answers``), else several sets.
        by: what judges; its values stand in the report under its registered name.
        out: folder.
        reference: ``DATASET/SPLIT`` or a file; not needed where the metric looks at none.
        k: of answers, at most so many candidates of each target.
        train: the training set, ``DATASET/SPLIT`` or a file, to see whether the reference overlaps with it.
        requested: of answers, judge the rows of the reference alone that the samples carry as their targets, failed
            ones included, instead of counting all others as failures.

    Raises:
        KldmError: a file or the reference cannot be read, they do not belong together, or the samples do not carry
            their targets although only these are to be judged.
    """
    started = time.monotonic()
    _check(paths, by, reference, k, train, requested)
    if isinstance(by.metric, Prepares):
        by.metric.prepare()
    files = [read_file(record_of(path)) for path in paths]
    known = None if reference is None else read_reference(reference)
    notes = list(known.notes) if known else []
    if known and train:
        notes += overlap_note(of_structures(known.structures), of_structures(read_reference(train).structures), train)
    if known and terms_of(by.metric).answers:
        judgement = _answers(files, known, by, out, k, requested, notes)
    else:
        structures = known.structures if known else ()
        sets = [
            Samples(_numbered(file, seed), structures, known.name if known else "") for seed, file in enumerate(files)
        ]
        names = [file.names for file in files]
        judgement = judge({by.name: by}, sets, known, table=out / "results.csv", names=names, notes=notes)
    about: dict[str, Json] = {
        "kldm": __version__,
        "files": [str(path) for path in paths],
        "seconds": round(time.monotonic() - started, 1),
    }
    label = paths[0].stem if len(paths) == 1 else f"{len(paths)} files"
    report = Report(about=about, libraries=library_versions(), evaluation={label: judgement})
    report.write(out)
    return report


def _check(paths: Sequence[Path], by: Judge, reference: str | None, k: int | None, train: str, requested: bool) -> None:
    """Raises ``KldmError`` where what is asked for does not belong together."""
    terms = terms_of(by.metric)
    for path in paths:
        if paths.count(path) > 1:
            raise KldmError("is given twice", place=str(path), remedy="give every seed once")
    if reference is None and terms.needs_reference:
        raise KldmError(f"{by.name} needs a reference", place=str(paths[0]), remedy="add --reference mp_20/test")
    if reference is None and train:
        raise KldmError("says nothing without a reference", place="--train", remedy="add --reference, or leave it out")
    if not terms.answers:
        for option, given in {"--k": k is not None, "--requested": requested}.items():
            if given:
                problem = f"says nothing with {by.name}, whose candidates answer no rows of a reference"
                raise KldmError(problem, place=option, remedy="leave it out")


def _answers(
    files: Sequence[SampleFile],
    reference: Reference,
    by: Judge,
    out: Path,
    k: int | None,
    requested: bool,
    notes: Sequence[str],
) -> Judgement:
    """Every sample at the row of the reference that it answers."""
    rows = _requested(files) if requested else range(len(reference))
    placed = align(files, reference, len(rows))
    kept = tuple(one for one in placed.candidates if k is None or one.candidate < k)
    left_out = len(placed.candidates) - len(kept)
    added = list(placed.notes)
    if len(rows) < len(reference):
        added.append(f"{len(rows)} of {len(reference)} rows of the reference are judged, those that were asked for.")
    if left_out:
        added.append(f"{left_out} samples beyond the first {k} of their target are left out.")
    if left_out and any(one.selected for one in placed.candidates):
        kept = tuple(attrs.evolve(one, selected=False) for one in kept)
        added.append("What the samples mark as selected was chosen among more candidates, and is not judged apart.")
    place = {row: number for number, row in enumerate(rows)}
    samples = Samples(
        tuple(attrs.evolve(one, target=place[one.target]) for one in kept),
        tuple(reference.structures[row] for row in rows),
        reference.name,
    )
    lost = [{"target": None, "candidate": one.candidate, "name": "", "reason": one.reason} for one in placed.unplaced]
    judgement = judge(
        {by.name: by},
        [samples],
        reference,
        table=out / "results.csv",
        names=[reference.ids],
        rows=rows,
        unplaced=lost,
        notes=[*notes, *added],
    )
    return attrs.evolve(judgement, alignment=placed.rule, unplaced=len(lost))


def _requested(files: Sequence[SampleFile]) -> list[int]:
    """The targets that the samples carry, in order."""
    for file in files:
        if not file.labelled:
            problem = "the file does not say which rows of the reference its samples answer"
            raise KldmError(problem, place=str(file.path), remedy="give every row a 'target', or leave --requested out")
    return sorted({one.target for file in files for one in file.candidates})


def _numbered(file: SampleFile, seed: int) -> tuple[Candidate, ...]:
    """The samples of a file, numbered by their position; the file is the candidate's number."""
    return tuple(
        attrs.evolve(candidate, target=position, candidate=seed) for position, candidate in enumerate(file.candidates)
    )
