"""Published figures with their definitions and sources, and which of them a result may be compared with."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import attrs

from kldm.evaluation.report import Finding, JudgedReference
from kldm.recipe import build

FigureRule = Literal["structural", "full", "cdvae", "unstated", "mattergen"]
"""The definition behind a figure: a validity rule of crystal structure prediction (``structural``, ``full``), the
definitions of CDVAE for de-novo generation (``cdvae``), MatterGen's pipeline for stability (``mattergen``), or
``unstated`` where the source does not say."""


@attrs.frozen(kw_only=True, eq=False)
class Figure:
    """The published values of one system under one definition.

    Attributes:
        system: name of the system in its paper.
        source: the paper and its table, and the paper that quotes it, if any.
        metric: registered name of the metric that measures the same.
        dataset: name of the data set in ``kldm.data``; for stability, the data set of the training.
        split: split of the data set.
        rule: see ``FigureRule``.
        values: values by their names in reports, without the rule: ``match_rate@1``. Shares lie in [0, 1].
        std: published standard deviations over sampling seeds, by the same names.
        k: number of candidates per target, where a target may have several.
        note: anything else that a reader must know.
    """

    system: str
    source: str
    metric: str
    dataset: str
    split: str
    rule: FigureRule
    values: Mapping[str, float]
    std: Mapping[str, float] = attrs.field(factory=dict)
    k: int | None = None
    note: str = ""


@cache
def published() -> tuple[Figure, ...]:
    """All published figures. Those of one metric and data set are in the order of their papers."""
    return tuple(_figure(record) for record in _content()["figures"])


@cache
def whole_splits() -> Mapping[str, int]:
    """Number of rows in the test split of each data set that has published figures."""
    return dict(_content()["test_rows"])


def definitions(metric: str) -> Mapping[str, Mapping[str, Any]]:
    """What the definition of a report must say so that its values can be compared with published figures.

    Returns:
        For each beginning of a value's name (the empty one stands for all values), the keys of the definition with the
        list of allowed values, or with the least number as ``at_least``.
    """
    required: Mapping[str, Mapping[str, Any]] = _content()["definitions"].get(metric, {})
    return required


def comparable(finding: Finding, reference: JudgedReference | None) -> tuple[list[tuple[Figure, str]], list[str]]:
    """The published values that may be compared with the values of one metric, and why others may not.

    A published value agrees if the report has the same data set, the whole of the same split, the same rule, the same k
    and the same ``definitions``. A value of unstated rule agrees with every rule. Metrics listed under
    ``any_reference`` in the file are compared whatever the reference is.

    Returns:
        Pairs of a figure and the name of a value in it; and sentences that continue the name of a report.
    """
    figures = [figure for figure in published() if figure.metric == finding.metric]
    if not figures:
        return [], []
    if finding.metric not in _content()["any_reference"]:
        name = (reference and reference.name) or "an unnamed reference"
        figures = [figure for figure in figures if figure.dataset == name.partition("/")[0]]
        if not figures:
            return [], [f"there are no published figures for {finding.metric} on {name}"]
        if reference and (reason := _other_reference(reference, name)):
            return [], [reason]
    if differing := _differing_keys(finding, "", ""):
        return [], [f"published figures of {finding.metric} are by another definition ({differing})"]
    agreed: list[tuple[Figure, str]] = []
    reasons: dict[str, None] = {}
    for figure in figures:
        for name in figure.values:
            if not _has_value(finding, figure, name):
                continue
            if differing := _differing_keys(finding, name, figure.dataset):
                reasons[f"published values of {name} are by another definition ({differing})"] = None
            else:
                agreed.append((figure, name))
    known = {figure.k for figure in figures if figure.k is not None}
    for k in sorted({int(match[1]) for name in finding.values if (match := re.search(r"@(\d+)", name))} - known):
        reasons[f"there are no published figures for k = {k}"] = None
    return agreed, list(reasons)


def _has_value(finding: Finding, figure: Figure, name: str) -> bool:
    """Whether the report has this value under the rule of the figure."""
    if figure.rule == "unstated":
        return any(value == name or value.endswith(f".{name}") for value in finding.values)
    return name in finding.values or f"{figure.rule}.{name}" in finding.values


def _other_reference(reference: JudgedReference, name: str) -> str:
    """Why the reference is not that of published figures; empty if it is."""
    dataset, _, split = name.partition("/")
    if split != "test":
        return f"it is judged against {name}, and published figures against the test split"
    whole = whole_splits()[dataset]
    if not reference.whole or reference.rows != whole:
        return (
            f"it is judged against {reference.rows} rows of {dataset}/test, and published figures against all {whole}"
        )
    return ""


def _differing_keys(finding: Finding, name: str, dataset: str) -> str:
    """The keys of the report's definition that differ, with their published values; empty where all agree.

    Args:
        name: name of a value; empty for the keys that concern all values.
        dataset: the data set that ``<dataset>`` in the file stands for.
    """
    stated, differing = finding.stated, []
    for beginning, keys in definitions(finding.metric).items():
        if bool(beginning) != bool(name) or not name.startswith(beginning):
            continue
        for key, allowed in keys.items():
            value = stated.get(key)
            if isinstance(allowed, Mapping):
                least = allowed["at_least"]
                if not (isinstance(value, int | float) and value >= least):
                    differing.append(f"{key} of at least {least}")
                continue
            values = [dataset if choice == "<dataset>" else choice for choice in allowed]
            if value not in values:
                differing.append(f"{key} {json.dumps(values[0])}")
    return ", ".join(differing)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        files("kldm.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    )
    return content


def _figure(record: Mapping[str, Any]) -> Figure:
    sources = _content()["sources"]
    source = sources[record["source"]]
    if "quoted_in" in record:
        source += f"; as quoted in {sources[record['quoted_in']]}"
    if "place" in record:
        source += f", {record['place']}"
    rest = {key: value for key, value in record.items() if key not in ("quoted_in", "place")}
    return build({**rest, "source": source}, Figure)[0]
