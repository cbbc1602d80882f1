"""Reports of ``kldm evaluate`` and ``kldm run``, read for comparison: one column per set of samples."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.errors import KldmError
from kldm.evaluation.judging import flat

TASKS = ("csp", "dng", "stability")
"""Metrics that stand in a report even where it defines nothing."""

RESERVED = ("task", "value")
"""Headings of the written table, which no column may have for a name."""


@attrs.frozen
class Column:
    """What one report says of one set of samples.

    Attributes:
        name: of the report, with the label of the samples where it has several.
        path: of the report.
        metrics: values by metric (``csp``, ``dng``, ``stability``, or one of the user's) and dotted name.
        reference: what the samples were judged against: ``name``, ``rows``, ``whole``.
        requests: number of structures judged.
        not_built: how many of them there were not.
        definitions: by metric and dotted name.
        libraries: versions.
        notes: sentences that a reader of the values must see.
    """

    name: str
    path: Path
    metrics: Mapping[str, Mapping[str, float | None]]
    reference: Mapping[str, Any]
    requests: Any
    not_built: Any
    definitions: Mapping[str, Mapping[str, Any]]
    libraries: Mapping[str, str]
    notes: Sequence[str]


def read_reports(paths: Sequence[Path]) -> tuple[Column, ...]:
    """The columns of all reports; names that would be equal are replaced by paths.

    Raises:
        KldmError: no path, one given twice, or what is there is not a report with values.
    """
    if not paths:
        raise KldmError("there is nothing to compare", remedy="name at least one report or run folder")
    files = [path / "report.json" if path.is_dir() else path for path in paths]
    for path, times in Counter(file.resolve() for file in files).items():
        if times > 1:
            raise KldmError("the report is given twice", place=str(path), remedy="name each report once")
    columns = [column for file in files for column in _columns(file)]
    short = Counter(column.name for column in columns)
    return tuple(
        attrs.evolve(column, name=_long_name(column)) if short[column.name] > 1 or column.name in RESERVED else column
        for column in columns
    )


def _long_name(column: Column) -> str:
    label = column.name.partition("/")[2]
    return f"{column.path}/{label}" if label else str(column.path)


def _columns(file: Path) -> Iterable[Column]:
    """The columns of one report: one for ``kldm evaluate``, one for every set of samples of ``kldm run``."""
    report = _json(file)
    folder = file.resolve().parent
    name = folder.name if file.name == "report.json" else file.stem
    judged = report.get("evaluation")
    if judged is None:
        yield _column(name, file, report, report)
    elif not isinstance(judged, Mapping) or not judged:
        raise KldmError("the run is not evaluated", place=str(file), remedy=f"run kldm evaluate {file.parent}")
    else:
        for label, part in judged.items():
            yield _column(name if list(judged) == ["test"] else f"{name}/{label}", file, report, part)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "name a report.json, or the folder of kldm run or kldm evaluate that holds one"
        raise KldmError("there is no report", place=str(file), remedy=remedy) from error
    except OSError as error:
        raise KldmError(f"cannot read the file: {error.strerror or error}", place=str(file)) from error
    except ValueError as error:
        raise KldmError(f"the report is not JSON ({error})", place=str(file)) from error
    if not isinstance(report, Mapping):
        raise _no_report(file)
    return report


def _no_report(file: Path) -> KldmError:
    return KldmError("not a report of kldm evaluate or kldm run", place=str(file))


def _column(name: str, file: Path, report: Mapping[str, Any], judged: Any) -> Column:
    """One column; ``judged`` is the part of ``report`` that holds the values."""
    if not isinstance(judged, Mapping):
        raise _no_report(file)
    definitions = judged.get("definitions", {})
    reference, libraries, notes = judged.get("reference", {}), report.get("libraries", {}), judged.get("notes", [])
    if not (all(isinstance(part, Mapping) for part in (definitions, reference, libraries)) and isinstance(notes, list)):
        raise _no_report(file)
    metrics = [metric for metric in dict.fromkeys([*TASKS, *definitions]) if isinstance(judged.get(metric), Mapping)]
    if not metrics:
        raise _no_report(file)
    known = {metric: definitions[metric] for metric in metrics if isinstance(definitions.get(metric), Mapping)}
    for definition in known.values():  # of the day when the values were found, and of libraries that a metric alone has
        versions = definition.get("versions", {})
        if not isinstance(versions, Mapping):
            raise _no_report(file)
        libraries = {**libraries, **versions}
    return Column(
        name=name,
        path=file,
        metrics={metric: _numbers(file, metric, judged[metric]) for metric in metrics},
        reference=reference,
        requests=judged.get("requests"),
        not_built=judged.get("not_built"),
        definitions={metric: flat(definition) for metric, definition in known.items()},
        libraries=libraries,
        notes=[str(note) for note in notes],
    )


def _numbers(file: Path, metric: str, tree: Mapping[str, Any]) -> dict[str, float | None]:
    values: dict[str, Any] = flat(tree)
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise KldmError(f"{metric}.{name} is not a number", place=str(file))
    return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}
