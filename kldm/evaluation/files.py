"""Judges files of samples, written by any program, by any registered metric."""

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
"""The metric that judges files by default."""


@attrs.frozen(kw_only=True)
class _Judging:
    metric: Metric


def metric_called(name: str, keys: Mapping[str, Json], conveniences: Mapping[str, Json] = {}) -> Judge:
    """A registered metric with the given keys, which are checked like those of a recipe.

    Args:
        name: registered name of the metric.
        keys: values by dotted key, such as ``metric.cutoff``, as ``parse_overrides`` returns them.
        conveniences: keys of the metric that are options of the command, such as ``workers``.

    Raises:
        KldmError: the name or a key is wrong; the place is the option as the command line spells it.
    """
    for key in keys:
        if not key.startswith("metric."):
            remedy = "options with a dot are those of the metric: --metric.key value"
            raise KldmError("is no key of the metric", place=f"--{key}", remedy=remedy)
    try:
        known = parameters(registry.metrics.get(name))
    except KldmError as error:
        raise KldmError(error.problem, place="--metric", remedy=error.remedy) from error
    for key in conveniences:
        if key not in known:
            place = f"--{key.replace('_', '-')}"
            raise KldmError(f"does not apply to {name}, which has no key {key}", place=place, remedy="leave it out")
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
        paths: files in any format of ``kldm.reading``. Several files are several candidates of each target if the
            metric judges answers to a reference (``Terms.answers``), and several sets of samples otherwise.
        by: the metric; its values stand in the report under its registered name.
        out: the folder to write to.
        reference: ``DATASET/SPLIT`` or a file; not needed if the metric uses no reference.
        k: at most this many candidates of each target are judged; for metrics that judge answers.
        train: the training set, ``DATASET/SPLIT`` or a file. Its overlap with the reference is reported.
        requested: judge only the rows of the reference that the samples name as their targets, failed samples
            included, instead of counting all other rows as failures; for metrics that judge answers.

    Raises:
        KldmError: a file or the reference cannot be read, they do not fit together, or the samples do not name their
            targets although ``requested`` needs them.
    """
    started = time.monotonic()
    _check(paths, by, reference, k, train, requested)
    if isinstance(by.metric, Prepares):
        by.metric.prepare()
    files = [read_file(record_of(path)) for path in paths]
    read = [
        _counted(str(path), [c.structure for c in file.candidates]) for path, file in zip(paths, files, strict=True)
    ]
    rows = None if reference is None else read_reference(reference)
    notes = [note for file in files for note in file.notes]
    if rows is not None:
        notes += rows.notes()
        read.append(_counted(rows.name, rows.structures))
    if rows is not None and train:
        trained = read_reference(train, "--train")
        notes += trained.notes("training set")
        notes += overlap_note(of_structures(rows.structures), of_structures(trained.structures), train)
        read.append(_counted(train, trained.structures))
    if rows is not None and terms_of(by.metric).answers:
        judgement = _judge_answers(files, rows, by, out, k, requested, notes)
    else:
        structures, name = (rows.structures, rows.name) if rows else ((), "")
        sets = [Samples(_numbered(file, seed), structures, name) for seed, file in enumerate(files)]
        names = [file.names for file in files]
        judgement = judge({by.name: by}, sets, rows, table=out / "results.csv", names=names, notes=notes)
    about: dict[str, Json] = {
        "kldm": __version__,
        "files": [str(path) for path in paths],
        "read": read,
        "seconds": round(time.monotonic() - started, 1),
    }
    label = paths[0].stem if len(paths) == 1 else f"{len(paths)} files"
    report = Report(about=about, libraries=library_versions(), evaluation={label: judgement})
    report.write(out)
    return report


def _check(paths: Sequence[Path], by: Judge, reference: str | None, k: int | None, train: str, requested: bool) -> None:
    """Raises ``KldmError`` where the options do not fit together or the metric."""
    terms = terms_of(by.metric)
    for path in paths:
        if paths.count(path) > 1:
            raise KldmError("is given twice", place=str(path), remedy="give every seed once")
    if reference is None and terms.needs_reference:
        raise KldmError(
            f"{by.name} needs a reference", place=str(paths[0]), remedy="add --reference, such as mp_20/test"
        )
    if reference is None and train:
        raise KldmError(
            "has no meaning without a reference", place="--train", remedy="add --reference, or leave it out"
        )
    if not terms.answers:
        for option, given in {"--k": k is not None, "--requested": requested}.items():
            if given:
                problem = f"does not apply to {by.name}, whose candidates answer no rows of a reference"
                raise KldmError(problem, place=option, remedy="leave it out")


def _judge_answers(
    files: Sequence[SampleFile],
    reference: Reference,
    by: Judge,
    out: Path,
    k: int | None,
    requested: bool,
    notes: Sequence[str],
) -> Judgement:
    """Judge every sample against the row of the reference that it answers."""
    alignment = align(files, reference, requested)
    rows = alignment.rows
    judged = tuple(candidate for candidate in alignment.candidates if k is None or candidate.candidate < k)
    left_out = len(alignment.candidates) - len(judged)
    added = list(alignment.notes)
    if len(rows) < len(reference):
        added.append(f"{len(rows)} of {len(reference)} rows of the reference are judged, those that were asked for.")
    if left_out:
        added.append(f"{left_out} samples beyond the first {k} of their target are left out.")
    if left_out and any(candidate.selected for candidate in alignment.candidates):
        judged = tuple(attrs.evolve(candidate, selected=False) for candidate in judged)
        added.append("What the samples mark as selected was chosen among more candidates, and is not judged apart.")
    positions = {row: position for position, row in enumerate(rows)}
    samples = Samples(
        tuple(attrs.evolve(candidate, target=positions[candidate.target]) for candidate in judged),
        tuple(reference.structures[row] for row in rows),
        reference.name,
    )
    unplaced = [
        {
            "target": None,
            "candidate": candidate.candidate,
            "name": "",
            "reason": candidate.reason,
            "source": candidate.source,
        }
        for candidate in alignment.unplaced
    ]
    judgement = judge(
        {by.name: by},
        [samples],
        reference,
        table=out / "results.csv",
        names=[reference.ids],
        rows=rows,
        unplaced=unplaced,
        notes=[*notes, *added],
    )
    return attrs.evolve(judgement, alignment=alignment.rule, unplaced=len(unplaced))


def _counted(name: str, structures: Sequence[object]) -> dict[str, Json]:
    """What was read: the number of structures, those that failed included."""
    return {"file": name, "structures": len(structures), "failed": sum(structure is None for structure in structures)}


def _numbered(file: SampleFile, seed: int) -> tuple[Candidate, ...]:
    """The samples of a file: the target is the position in the file, the candidate the number of the file."""
    return tuple(
        attrs.evolve(candidate, target=position, candidate=seed) for position, candidate in enumerate(file.candidates)
    )
