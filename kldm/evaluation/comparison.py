"""Compares reports with each other, and with the published figures of the same definition."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from kldm.errors import KldmError
from kldm.evaluation.judging import EVALUATION
from kldm.evaluation.published import Figure, comparable, published
from kldm.evaluation.report import Finding, Judgement, Report
from kldm.evaluation.results import write_json, write_table
from kldm.evaluation.tables import number, parts, text_table
from kldm.interfaces import Terms

METRIC_LIBRARIES = ("pymatgen", "smact", "matminer")
"""Libraries whose version can change the value of a metric."""

T = TypeVar("T", bound="Column | Entry")

RULES = {
    "structural": "rule: structural",
    "full": "rule: full",
    "cdvae": "definitions of CDVAE",
    "mattergen": "definitions of MatterGen",
    "unstated": "rule not stated",
}

FILES = ("comparison.json", "comparison.csv", "published.csv")
"""What a written comparison consists of."""

HEADINGS = ("metric", "value")
"""Headings of the written table, which no column may have as its name."""


@attrs.frozen
class Column:
    """One set of samples in one report.

    Attributes:
        name: name of the report, followed by the label of the samples where the report has several sets.
        path: the file of the report.
        judgement: the judgement of the set of samples.
        libraries: versions of libraries, as the report and its metrics state them.
    """

    name: str
    path: Path
    judgement: Judgement
    libraries: Mapping[str, str]


@attrs.frozen
class Entry:
    """What one metric found in one set of samples.

    Attributes:
        name: name of the column, followed by the section where several sections of the report use this metric.
        column: the set of samples.
        finding: what the metric found.
    """

    name: str
    column: Column
    finding: Finding

    @property
    def values(self) -> Mapping[str, float | None]:
        return self.finding.values


@attrs.frozen
class Comparison:
    """Reports side by side.

    Attributes:
        columns: the sets of samples.
        published: published figures, each with the values whose definition agrees with a report.
        reasons: sentences that say why a report or a value has no published figure.
        warnings: sentences that say how the definitions of the reports differ.
    """

    columns: tuple[Column, ...]
    published: tuple[Figure, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        """Tables for the terminal: one per metric, then the published figures, then notes and warnings."""
        entries = _by_metric(self.columns)
        tables = [_values_table(metric, group) for metric, group in entries.items()]
        for metric, dataset in dict.fromkeys((figure.metric, figure.dataset) for figure in self.published):
            figures = [f for f in self.published if (f.metric, f.dataset) == (metric, dataset)]
            tables.append(_published_table(figures, _terms(entries[metric]).shares))
        remarks = [f"note: {column.name}: {note}" for column in self.columns for note in column.judgement.notes]
        remarks += [f"warning: {warning}" for warning in self.warnings]
        remarks += [f"not compared with published figures: {reason}" for reason in self.reasons]
        return "\n\n".join([*tables, *(["\n".join(remarks)] if remarks else [])])

    def write(self, folder: Path) -> None:
        """Write ``comparison.json`` (everything), ``comparison.csv`` (a row per value, a column per report) and
        ``published.csv`` (a row per published value). Numbers are not rounded, and shares lie in [0, 1].

        Raises:
            KldmError: a file cannot be written.
        """
        content = attrs.asdict(self)
        for column in content["columns"]:
            column["path"] = str(column["path"])
        write_json(folder / "comparison.json", content)
        rows = [
            {"metric": metric, "value": name, **{entry.name: entry.values.get(name) for entry in entries}}
            for metric, entries in _by_metric(self.columns).items()
            for name in _names(entries)
        ]
        write_table(folder / "comparison.csv", rows)
        write_table(folder / "published.csv", [row for figure in self.published for row in _figure_rows(figure)])


def compare(paths: Sequence[Path]) -> Comparison:
    """Read reports of ``kldm evaluate`` and ``kldm run`` and find the published figures that agree with them.

    Args:
        paths: reports, or folders with a ``report.json`` or evaluations, of which the newest counts.

    Raises:
        KldmError: no path is given, a path is given twice, or a file is not a report with values.
    """
    columns = report_columns(paths)
    agreed: dict[Figure, dict[str, None]] = {}
    reasons: dict[str, None] = {}
    for entries in _by_metric(columns).values():
        for entry in entries:
            pairs, sentences = comparable(entry.finding, entry.column.judgement.reference)
            for figure, name in pairs:
                agreed.setdefault(figure, {})[name] = None
            reasons.update(dict.fromkeys(f"{entry.name}: {sentence}" for sentence in sentences))
    figures = [
        attrs.evolve(
            figure,
            values={name: value for name, value in figure.values.items() if name in agreed[figure]},
            std={name: value for name, value in figure.std.items() if name in agreed[figure]},
        )
        for figure in published()
        if figure in agreed
    ]
    return Comparison(columns, tuple(figures), tuple(reasons), tuple(_warnings(columns)))


def report_columns(paths: Sequence[Path]) -> tuple[Column, ...]:
    """The columns of all reports. Names that would be equal are replaced by paths.

    Raises:
        KldmError: no path is given, a path is given twice, or a file is not a report with values.
    """
    if not paths:
        raise KldmError("there is nothing to compare", remedy="name at least one report or run folder")
    files = [_newest(path) if path.is_dir() else path for path in paths]
    for path, times in Counter(file.resolve() for file in files).items():
        if times > 1:
            raise KldmError("the report is given twice", place=str(path), remedy="name each report once")
    columns = [column for file in files for column in _columns(file)]
    taken = Counter(column.name for column in columns)
    return tuple(
        attrs.evolve(column, name=column.name.replace(_report_name(column.path), str(column.path), 1))
        if taken[column.name] > 1 or column.name in HEADINGS
        else column
        for column in columns
    )


def _newest(folder: Path) -> Path:
    """The report in a folder, of ``kldm run`` or of an evaluation, that was written last."""
    own, evaluations = folder / "report.json", folder.glob(f"{EVALUATION}-*/report.json")
    numbered = sorted(evaluations, key=lambda file: (len(file.parent.name), file.parent.name))
    reports = [*([own] if not numbered or _is_evaluated(own) else []), *numbered]
    return max(reversed(reports), key=lambda file: file.stat().st_mtime if file.exists() else 0.0)


def _is_evaluated(file: Path) -> bool:
    try:
        return bool(Report.read(file).evaluation)
    except KldmError:  # none, or that of ``kldm sample``
        return False


def _columns(file: Path) -> Iterable[Column]:
    """One column for each set of samples in a report."""
    report = Report.read(file)
    if not report.evaluation:
        raise KldmError("the run is not evaluated", place=str(file), remedy=f"run kldm evaluate {file.parent}")
    for label, judgement in report.evaluation.items():
        libraries = dict(report.libraries)
        for finding in judgement.metrics.values():  # these versions date from the day of measuring
            libraries |= {name: str(version) for name, version in finding.versions.items()}
        yield Column(
            _report_name(file) + (f"/{label}" if len(report.evaluation) > 1 else ""), file, judgement, libraries
        )


def _report_name(file: Path) -> str:
    """The name of its folder, or of the file where that is not called ``report.json``; a numbered evaluation stands
    behind the folder that it is in."""
    if file.name != "report.json":
        return file.stem
    folder = file.resolve().parent
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith(f"{EVALUATION}-") else folder.name


def _by_metric(columns: Sequence[Column]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for column in columns:
        metrics = column.judgement.metrics
        times = Counter(finding.metric for finding in metrics.values())
        for section, finding in metrics.items():
            name = column.name if times[finding.metric] == 1 else f"{column.name} ({section})"
            groups.setdefault(finding.metric, []).append(Entry(name, column, finding))
    return groups


def _terms(entries: Sequence[Entry]) -> Terms:
    """The terms of a metric; where those of the reports differ, all of them together."""
    terms = [entry.finding.terms for entry in entries]
    agree = {part: keys for stated in reversed(terms) for part, keys in stated.agree.items()}
    shares = tuple(dict.fromkeys(name for stated in terms for name in stated.shares))
    return attrs.evolve(terms[0], agree=agree, shares=shares)


def _warnings(columns: Sequence[Column]) -> Iterable[str]:
    """One sentence for each part of the definitions in which the reports differ."""
    for metric, group in _by_metric(columns).items():
        terms = _terms(group)
        yield from _differing(f"{metric}: the references", group, _reference)
        if terms.answers:
            yield from _differing(f"{metric}: the numbers of candidates", group, _candidates)
        else:
            yield from _differing(f"{metric}: the numbers of structures", group, _requests)
        for part, keys in terms.agree.items():
            optional = [key.removesuffix("?") for key in keys if key.endswith("?")]
            stating = [entry for entry in group if all(key in entry.finding.stated for key in optional)]
            yield from _differing(f"{metric}: the {part}", stating, _stated([key.removesuffix("?") for key in keys]))
    for library in METRIC_LIBRARIES:
        known = [column for column in columns if library in column.libraries]
        yield from _differing(f"the versions of {library}", known, _version(library))


def _differing(subject: str, items: Sequence[T], text: Callable[[T], str]) -> Iterable[str]:
    """A sentence that lists the texts of the items, if there is more than one text."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(text(item), []).append(item.name)
    if len(groups) > 1:
        yield f"{subject} differ: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())


def _stated(keys: Sequence[str]) -> Callable[[Entry], str]:
    """What a definition states under some keys; a key with a final dot stands for a whole section."""

    def text(entry: Entry) -> str:
        definition = entry.finding.stated
        names: list[str] = []
        for key in keys:
            inside = sorted(name for name in definition if key.endswith(".") and name.startswith(key))
            names += inside or [key.removesuffix(".")]
        return ", ".join(
            f"{name} {_value_text(definition[name]) if name in definition else 'not stated'}" for name in names
        )

    return text


def _version(library: str) -> Callable[[Column], str]:
    return lambda column: column.libraries[library]


def _value_text(value: Any) -> str:
    """The same text for equal values: 10 and 10.0 both become ``10``."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def _reference(entry: Entry) -> str:
    reference = entry.column.judgement.reference
    if reference is None:
        return "none"
    name = reference.name or "not stated"
    return name if reference.whole else f"{name}, {'?' if reference.rows is None else reference.rows} rows"


def _requests(entry: Entry) -> str:
    return str(entry.column.judgement.requests)


def _candidates(entry: Entry) -> str:
    numbers = {int(match[1]) for name in entry.values if (match := re.search(r"@(\d+)$", name))}
    return "k = " + ", ".join(map(str, sorted(numbers)))


def _names(entries: Sequence[Entry]) -> list[str]:
    """The names of the values of all entries; those of one rule stand together."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.values))
    rules = list(dict.fromkeys(tuple(parts(name)[:-1]) for name in names))
    return sorted(names, key=lambda name: rules.index(tuple(parts(name)[:-1])))


def _values_table(metric: str, entries: Sequence[Entry]) -> str:
    """One row for each value of a metric; a standard deviation is printed beside its mean."""
    judgements = [entry.column.judgement for entry in entries]
    lines = [
        [metric, *(entry.name for entry in entries)],
        ["reference", *map(_reference, entries)],
        ["requests", *(_count(judgement.requests) for judgement in judgements)],
        ["not built", *(_count(judgement.not_built) for judgement in judgements)],
    ]
    names, shares = _names(entries), _terms(entries).shares
    spread_of = {_mean_of(name, names): name for name in names if name.endswith("_std")}
    for name in names:
        if name in spread_of.values() and _mean_of(name, names) in names:
            continue
        share = parts(name)[-1].startswith(shares)
        spread = spread_of.get(name, "")
        cells = [_cell(entry.values, name, entry.values.get(spread), share) for entry in entries]
        lines.append([" ".join(parts(name)), *cells])
    return text_table(lines)


def _mean_of(std: str, names: Sequence[str]) -> str:
    """The name of the value whose standard deviation is called ``std``."""
    stem = std.removesuffix("_std")
    return f"{stem}_mean" if f"{stem}_mean" in names else stem


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _cell(values: Mapping[str, float | None], name: str, std: float | None, share: bool) -> str:
    """A share in percent with one decimal, any other number with four decimals."""
    if name not in values:
        return "-"
    value = values[name]
    if value is None:
        return "none"
    if share:
        return f"{100 * value:.1f} %" if std is None else f"{100 * value:.1f} ± {100 * std:.1f} %"
    return number(name, value) if std is None else f"{value:.4f} ± {std:.4f}"


def _published_table(figures: Sequence[Figure], shares: tuple[str, ...]) -> str:
    """Published figures of one metric and data set: one row per system, grouped by rule, then the sources."""
    names = sorted(dict.fromkeys(name for figure in figures for name in figure.values), key=_candidates_of)
    lines = [[f"published: {figures[0].metric}, {figures[0].dataset}/{figures[0].split}", *names, "source"]]
    sources: dict[str, None] = {}
    for rule, title in RULES.items():
        systems: dict[tuple[str, str], list[Figure]] = {}
        for figure in figures:
            if figure.rule == rule:
                systems.setdefault((figure.system, _source(figure)), []).append(figure)
        if systems:
            lines.append([title, *[""] * (len(names) + 1)])
        for (system, source), group in systems.items():
            sources[source] = None
            values = {name: value for figure in group for name, value in figure.values.items()}
            std = {name: value for figure in group for name, value in figure.std.items()}
            cells = [_cell(values, name, std.get(name), name.startswith(shares)) for name in names]
            lines.append([f"  {system}", *cells, f"[{list(sources).index(source) + 1}]"])
    return "\n".join([text_table(lines), *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))])


def _candidates_of(name: str) -> tuple[bool, int]:
    """Sorts values by their number of candidates; those without a number come last."""
    match = re.search(r"@(\d+)$", name)
    return match is None, int(match[1]) if match else 0


def _source(figure: Figure) -> str:
    return figure.source + (f" ({figure.note})" if figure.note else "")


def _figure_rows(figure: Figure) -> Iterable[dict[str, Any]]:
    rest = attrs.asdict(figure, filter=lambda attribute, _: attribute.name not in ("values", "std", "k"))
    for name, value in figure.values.items():
        yield {"system": figure.system, "value": name, "number": value, "std": figure.std.get(name)} | rest
