"""Several reports side by side, beside the published figures whose definitions agree with theirs."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from kldm.errors import KldmError
from kldm.evaluation.published import Figure, beside, published
from kldm.evaluation.report import Finding, Judgement, Report
from kldm.evaluation.results import write_json, write_table
from kldm.evaluation.tables import number, parts, text_table
from kldm.interfaces import Terms

METRIC_LIBRARIES = ("pymatgen", "smact", "matminer")
"""Those whose versions can change a metric."""

T = TypeVar("T", bound="Column | Entry")

RULES = {
    "structural": "rule: structural",
    "full": "rule: full",
    "cdvae": "definitions of CDVAE",
    "mattergen": "definitions of MatterGen",
    "unstated": "rule not stated",
}

HEADINGS = ("metric", "value")
"""Of the written table; no column may have them for a name."""


@attrs.frozen
class Column:
    """What one report says of one set of samples.

    Attributes:
        name: of the report, with the label of the samples where it has several.
        path: of the report.
        judgement: of the set of samples.
        libraries: versions, those of the report and those that the metrics state.
    """

    name: str
    path: Path
    judgement: Judgement
    libraries: Mapping[str, str]


@attrs.frozen
class Entry:
    """What one metric found in one set of samples.

    Attributes:
        name: of the column, with the section where several sections of the report are of this metric.
        column: the set of samples.
        found: by the metric.
    """

    name: str
    column: Column
    found: Finding

    @property
    def values(self) -> Mapping[str, float | None]:
        return self.found.values


@attrs.frozen
class Comparison:
    """Reports side by side.

    Attributes:
        columns: the reports.
        published: figures with those of their values that agree in definition with one of the reports.
        reasons: sentences on why there is no published figure beside a report or a value.
        warnings: sentences on how the reports' definitions differ.
    """

    columns: tuple[Column, ...]
    published: tuple[Figure, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        """Tables for the terminal: one per metric, then the published figures, then what a reader must know."""
        entries = _by_metric(self.columns)
        tables = [_reported(metric, group) for metric, group in entries.items()]
        for metric, dataset in dict.fromkeys((figure.metric, figure.dataset) for figure in self.published):
            figures = [f for f in self.published if (f.metric, f.dataset) == (metric, dataset)]
            tables.append(_beside(figures, _terms(entries[metric]).shares))
        remarks = [f"note: {column.name}: {note}" for column in self.columns for note in column.judgement.notes]
        remarks += [f"warning: {warning}" for warning in self.warnings]
        remarks += [f"not compared with published figures: {reason}" for reason in self.reasons]
        return "\n\n".join([*tables, *(["\n".join(remarks)] if remarks else [])])

    def write(self, folder: Path) -> None:
        """Write ``comparison.json`` (everything), ``comparison.csv`` (a row per value, a column per report) and
        ``published.csv`` (a row per published value). Numbers are unrounded, shares in [0, 1].

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
        write_table(folder / "published.csv", [row for figure in self.published for row in _long(figure)])


def compare(paths: Sequence[Path]) -> Comparison:
    """Read reports of ``kldm evaluate`` and ``kldm run`` and see which published figures agree with them.

    Args:
        paths: of reports, or of folders with a ``report.json``.

    Raises:
        KldmError: no path, one given twice, or what is there is not a report with values.
    """
    columns = report_columns(paths)
    agreed: dict[Figure, dict[str, None]] = {}
    reasons: dict[str, None] = {}
    for entries in _by_metric(columns).values():
        for entry in entries:
            pairs, sentences = beside(entry.found, entry.column.judgement.reference)
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
    taken = Counter(column.name for column in columns)
    return tuple(
        attrs.evolve(column, name=column.name.replace(_stem(column.path), str(column.path), 1))
        if taken[column.name] > 1 or column.name in HEADINGS
        else column
        for column in columns
    )


def _columns(file: Path) -> Iterable[Column]:
    """The columns of one report: one for every set of samples."""
    report = Report.read(file)
    if not report.evaluation:
        raise KldmError("the run is not evaluated", place=str(file), remedy=f"run kldm evaluate {file.parent}")
    for label, judgement in report.evaluation.items():
        libraries = dict(report.libraries)
        for found in judgement.metrics.values():  # of the day when the values were found
            libraries |= {name: str(version) for name, version in found.versions.items()}
        yield Column(_stem(file) + (f"/{label}" if len(report.evaluation) > 1 else ""), file, judgement, libraries)


def _stem(file: Path) -> str:
    """What a report is called: as its folder, unless it has a name of its own."""
    return file.resolve().parent.name if file.name == "report.json" else file.stem


def _by_metric(columns: Sequence[Column]) -> dict[str, list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for column in columns:
        metrics = column.judgement.metrics
        times = Counter(found.metric for found in metrics.values())
        for section, found in metrics.items():
            name = column.name if times[found.metric] == 1 else f"{column.name} ({section})"
            groups.setdefault(found.metric, []).append(Entry(name, column, found))
    return groups


def _terms(entries: Sequence[Entry]) -> Terms:
    """The terms of a metric: those of all reports together, should they differ."""
    terms = [entry.found.terms for entry in entries]
    agree = {what: keys for one in reversed(terms) for what, keys in one.agree.items()}
    shares = tuple(dict.fromkeys(name for one in terms for name in one.shares))
    return attrs.evolve(terms[0], agree=agree, shares=shares)


def _warnings(columns: Sequence[Column]) -> Iterable[str]:
    """A sentence for every part of the definitions in which the reports differ."""
    for metric, group in _by_metric(columns).items():
        terms = _terms(group)
        yield from _differing(f"{metric}: the references", group, _reference)
        if terms.answers:
            yield from _differing(f"{metric}: the numbers of candidates", group, _candidates)
        else:
            yield from _differing(f"{metric}: the numbers of structures", group, _requests)
        for what, keys in terms.agree.items():
            wanted = [key.removesuffix("?") for key in keys if key.endswith("?")]
            stating = [entry for entry in group if all(key in entry.found.stated for key in wanted)]
            plain = [key.removesuffix("?") for key in keys]
            yield from _differing(f"{metric}: the {what}", stating, _stated(plain))
    for library in METRIC_LIBRARIES:
        known = [column for column in columns if library in column.libraries]
        yield from _differing(f"the versions of {library}", known, _version(library))


def _differing(what: str, ones: Sequence[T], of: Callable[[T], str]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for one in ones:
        groups.setdefault(of(one), []).append(one.name)
    if len(groups) > 1:
        told = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
        yield f"{what} differ: {told}"


def _stated(keys: Sequence[str]) -> Callable[[Entry], str]:
    def text(entry: Entry) -> str:
        definition = entry.found.stated
        named: list[str] = []
        for key in keys:
            below = sorted(name for name in definition if key.endswith(".") and name.startswith(key))
            named += below or [key.removesuffix(".")]
        return ", ".join(f"{key} {_plain(definition[key]) if key in definition else 'not stated'}" for key in named)

    return text


def _version(library: str) -> Callable[[Column], str]:
    return lambda column: column.libraries[library]


def _plain(value: Any) -> str:
    """Equal values as equal texts: 10 is 10.0."""
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
    found = {int(at[1]) for name in entry.values if (at := re.search(r"@(\d+)$", name))}
    return "k = " + ", ".join(map(str, sorted(found)))


def _names(entries: Sequence[Entry]) -> list[str]:
    """The values of any entry, those of one rule together."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.values))
    rules = list(dict.fromkeys(tuple(parts(name)[:-1]) for name in names))
    return sorted(names, key=lambda name: rules.index(tuple(parts(name)[:-1])))


def _reported(metric: str, entries: Sequence[Entry]) -> str:
    """The values of one metric, one row each; a standard deviation stands beside its mean."""
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
    """The value whose standard deviation another one is."""
    stem = std.removesuffix("_std")
    return f"{stem}_mean" if f"{stem}_mean" in names else stem


def _count(value: int | None) -> str:
    return "-" if value is None else str(value)


def _cell(values: Mapping[str, float | None], name: str, std: float | None, share: bool) -> str:
    """A share in percent with one decimal, any other number with four."""
    if name not in values:
        return "-"
    value = values[name]
    if value is None:
        return "none"
    if share:
        return f"{100 * value:.1f} %" if std is None else f"{100 * value:.1f} ± {100 * std:.1f} %"
    return number(name, value) if std is None else f"{value:.4f} ± {std:.4f}"


def _beside(figures: Sequence[Figure], shares: tuple[str, ...]) -> str:
    """Published figures of one metric and data set: a row per system, grouped by rule; sources and notes below."""
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
    """Values at fewer candidates first, those of no number of candidates last."""
    at = re.search(r"@(\d+)$", name)
    return at is None, int(at[1]) if at else 0


def _source(figure: Figure) -> str:
    return figure.source + (f" ({figure.note})" if figure.note else "")


def _long(figure: Figure) -> Iterable[dict[str, Any]]:
    rest = attrs.asdict(figure, filter=lambda attribute, _: attribute.name not in ("values", "std", "k"))
    for name, value in figure.values.items():
        yield {"system": figure.system, "value": name, "number": value, "std": figure.std.get(name)} | rest
