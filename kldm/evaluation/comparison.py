"""Several reports side by side, beside the published figures whose definitions agree with theirs."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from kldm.evaluation.judging import number, parts
from kldm.evaluation.published import AT_K, VALUES, Figure, beside, published
from kldm.evaluation.reports import Column, read_reports
from kldm.evaluation.results import write_json, write_table

LIBRARIES = ("pymatgen", "smact", "matminer")
"""Those whose versions can change a metric."""

DEFINING = {
    "csp": {"tolerances": ("ltol", "stol", "angle_tol"), "longest edges allowed": ("longest_edge",)},
    "dng": {
        "sets of oxidation states": ("oxidation_states", "legacy"),
        "coverage cutoffs": ("coverage.cutoffs",),
        "structures that coverage counts": ("coverage.generated",),
        "numbers drawn for property distances": ("draw",),
    },
    "stability": {
        "potentials": ("potential.",),
        "relaxations": ("relaxation.",),
        "hulls": ("hull.sha256", "hull.entries", "hull.corrections"),
        "matchers": ("matcher.name",),
        "known structures": ("known.",),
    },
}
"""By task: what must be equal for values to be comparable, and the keys of the definition that say it; one that ends
with a dot stands for all keys below it."""

RULES = {
    "structural": "rule: structural",
    "full": "rule: full",
    "cdvae": "definitions of CDVAE",
    "mattergen": "definitions of MatterGen",
    "unstated": "rule not stated",
}

SHARES = (
    *("match_rate", "share_below_", "METRe"),
    *("struct_valid", "comp_valid", "valid", "cov_"),
    *("stable_", "unique", "novel", "sun_"),
)
"""Values of csp, dng and stability that begin so are shares, printed in percent."""


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
        tables = [_reported(metric, columns) for metric, columns in _by_metric(self.columns).items()]
        groups = dict.fromkeys((figure.task, figure.dataset) for figure in self.published)
        for task, dataset in groups:
            tables.append(_beside([f for f in self.published if (f.task, f.dataset) == (task, dataset)]))
        remarks = [f"note: {column.name}: {note}" for column in self.columns for note in column.notes]
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
            {"task": metric, "value": name, **{column.name: column.metrics[metric].get(name) for column in columns}}
            for metric, columns in _by_metric(self.columns).items()
            for name in _names(metric, columns)
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
    columns = read_reports(paths)
    agreed: dict[Figure, dict[str, None]] = {}
    reasons: dict[str, None] = {}
    for column in columns:
        for task in [metric for metric in column.metrics if metric in VALUES]:
            pairs, sentences = beside(
                task, column.reference, column.definitions.get(task, {}), column.metrics[task].keys()
            )
            for figure, name in pairs:
                agreed.setdefault(figure, {})[name] = None
            reasons.update(dict.fromkeys(f"{column.name}: {sentence}" for sentence in sentences))
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


def _warnings(columns: Sequence[Column]) -> Iterable[str]:
    """A sentence for every part of the definitions in which the reports differ."""
    for metric, group in _by_metric(columns).items():
        yield from _differing(f"{metric}: the references", group, _reference)
        if metric == "csp":
            yield from _differing("csp: the numbers of candidates", group, _candidates)
            selecting = [column for column in group if "selected" in column.definitions.get("csp", {})]
            yield from _differing("csp: the rules of selection", selecting, _stated("csp", ("selected",)))
        if metric in ("dng", "stability"):
            yield from _differing(f"{metric}: the numbers of structures", group, lambda column: str(column.requests))
        for what, keys in DEFINING.get(metric, {}).items():
            yield from _differing(f"{metric}: the {what}", group, _stated(metric, keys))
    for library in LIBRARIES:
        known = [column for column in columns if library in column.libraries]
        yield from _differing(f"the versions of {library}", known, _version(library))


def _differing(what: str, columns: Sequence[Column], of: Callable[[Column], str]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(of(column), []).append(column.name)
    if len(groups) > 1:
        parts = "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
        yield f"{what} differ: {parts}"


def _stated(metric: str, keys: Sequence[str]) -> Callable[[Column], str]:
    def text(column: Column) -> str:
        definition = column.definitions.get(metric, {})
        named: list[str] = []
        for key in keys:
            below = sorted(name for name in definition if key.endswith(".") and name.startswith(key))
            named += below or [key.removesuffix(".")]
        return ", ".join(f"{key} {_plain(definition[key]) if key in definition else 'not stated'}" for key in named)

    return text


def _version(library: str) -> Callable[[Column], str]:
    return lambda column: str(column.libraries[library])


def _plain(value: Any) -> str:
    """Equal values as equal texts: 10 is 10.0."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)


def _reference(column: Column) -> str:
    name = str(column.reference.get("name", "not stated"))
    return name if column.reference.get("whole") is True else f"{name}, {column.reference.get('rows', '?')} rows"


def _candidates(column: Column) -> str:
    found = {int(at[1]) for name in column.metrics["csp"] if (at := re.search(r"@(\d+)$", name))}
    return "k = " + ", ".join(map(str, sorted(found)))


def _by_metric(columns: Sequence[Column]) -> dict[str, list[Column]]:
    metrics = dict.fromkeys([*VALUES, *(metric for column in columns for metric in column.metrics)])
    groups = {metric: [column for column in columns if metric in column.metrics] for metric in metrics}
    return {metric: group for metric, group in groups.items() if group}


def _names(metric: str, columns: Sequence[Column]) -> list[str]:
    """The values of any column, those of one rule together."""
    names = list(dict.fromkeys(name for column in columns for name in column.metrics[metric]))
    rules = list(dict.fromkeys(tuple(parts(name)[:-1]) for name in names))
    return sorted(names, key=lambda name: rules.index(tuple(parts(name)[:-1])))


def _reported(metric: str, columns: Sequence[Column]) -> str:
    """The values of one metric, one row each; a standard deviation stands beside its mean."""
    lines = [
        [metric, *(column.name for column in columns)],
        ["reference", *map(_reference, columns)],
        ["requests", *(_count(column.requests) for column in columns)],
        ["not built", *(_count(column.not_built) for column in columns)],
    ]
    names = _names(metric, columns)
    for name in names:
        if name.endswith("_std") and f"{name.removesuffix('_std')}_mean" in names:
            continue
        spread = f"{name.removesuffix('_mean')}_std" if name.endswith("_mean") else ""
        share = metric in VALUES and parts(name)[-1].startswith(SHARES)
        cells = [_cell(column.metrics[metric], name, column.metrics[metric].get(spread), share) for column in columns]
        lines.append([" ".join(parts(name)), *cells])
    return _grid(lines)


def _count(value: Any) -> str:
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


def _beside(figures: Sequence[Figure]) -> str:
    """Published figures of one task and data set: a row per system, grouped by rule; sources and notes below."""
    known = {name for figure in figures for name in figure.values}
    at = sorted({figure.k for figure in figures if figure.k is not None})
    order = [f"{name}@{k}" for k in at for name in AT_K] + [n for n in VALUES[figures[0].task] if n not in AT_K]
    names = [name for name in order if name in known]
    lines = [[f"published: {figures[0].task}, {figures[0].dataset}/{figures[0].split}", *names, "source"]]
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
            cells = [_cell(values, name, std.get(name), name.startswith(SHARES)) for name in names]
            lines.append([f"  {system}", *cells, f"[{list(sources).index(source) + 1}]"])
    return "\n".join([_grid(lines), *(f"[{number}] {source}" for number, source in enumerate(sources, start=1))])


def _source(figure: Figure) -> str:
    return figure.source + (f" ({figure.note})" if figure.note else "")


def _long(figure: Figure) -> Iterable[dict[str, Any]]:
    rest = attrs.asdict(figure, filter=lambda attribute, _: attribute.name not in ("values", "std", "k"))
    for name, value in figure.values.items():
        yield {"system": figure.system, "value": name, "number": value, "std": figure.std.get(name)} | rest


def _grid(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as text, the first line as heading."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[1:]])
