"""The figures that papers report, their definitions and sources, and which of them may stand beside a result."""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import attrs

from kldm.evaluation.report import Against, Finding
from kldm.recipe import build

FigureRule = Literal["structural", "full", "cdvae", "unstated", "mattergen"]
"""What a figure's definition is: a validity rule of crystal structure prediction (``structural``, ``full``); the
definitions of CDVAE (``cdvae``) for de-novo generation; MatterGen's pipeline (``mattergen``) for stability;
``unstated`` where the source does not say."""


@attrs.frozen(kw_only=True, eq=False)
class Figure:
    """The published values of one system under one definition.

    Attributes:
        system: as its paper calls it.
        source: the paper, and the one that quotes it, with the table.
        metric: registered name of the metric that measures the like.
        dataset: as ``kldm.data`` names it; of stability, what was trained on.
        split: of the data set.
        rule: see ``FigureRule``.
        values: by the names that reports have, without their rule: ``match_rate@1``. Shares lie in [0, 1].
        std: standard deviations over sampling seeds, by the same names, where they were published.
        k: candidates per target, where there may be several.
        note: what else a reader must know.
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
    """All published figures, those of a metric and data set in the order of their papers."""
    return tuple(_figure(record) for record in _content()["figures"])


@cache
def whole_splits() -> Mapping[str, int]:
    """Number of rows of the test split of every data set with published figures."""
    return dict(_content()["test_rows"])


def definitions(metric: str) -> Mapping[str, Mapping[str, Any]]:
    """By the beginning of a value's name, empty for all values: the keys that a report's definition must have to stand
    beside published figures, each with all that it may be, or ``at_least`` a number."""
    found: Mapping[str, Mapping[str, Any]] = _content()["definitions"].get(metric, {})
    return found


def beside(found: Finding, reference: Against | None) -> tuple[list[tuple[Figure, str]], list[str]]:
    """What may stand beside the values of one metric, and why other figures may not.

    A published value agrees where data set, split (the whole of it), rule, k, and ``definitions``
    are the report's. A value whose rule is unstated is given beside those of any rule. Metrics of ``any_reference`` in
    the file are compared whatever the data.

    Returns:
        Pairs of a figure and the name of a value in it; and sentences that go after the name of a report.
    """
    figures = [figure for figure in published() if figure.metric == found.metric]
    if not figures:
        return [], []
    if found.metric not in _content()["any_reference"]:
        name = (reference and reference.name) or "an unnamed reference"
        figures = [figure for figure in figures if figure.dataset == name.partition("/")[0]]
        if not figures:
            return [], [f"there are no published figures for {found.metric} on {name}"]
        if reference and (reason := _other_reference(reference, name)):
            return [], [reason]
    if others := _others(found, "", ""):
        return [], [f"published figures of {found.metric} are by another definition ({others})"]
    agreed: list[tuple[Figure, str]] = []
    lost: dict[str, None] = {}
    for figure in figures:
        for name in figure.values:
            if not _has(found, figure, name):
                continue
            if others := _others(found, name, figure.dataset):
                lost[f"published values of {name} are by another definition ({others})"] = None
            else:
                agreed.append((figure, name))
    known = {figure.k for figure in figures if figure.k is not None}
    for k in sorted({int(at[1]) for name in found.values if (at := re.search(r"@(\d+)", name))} - known):
        lost[f"there are no published figures for k = {k}"] = None
    return agreed, list(lost)


def _has(found: Finding, figure: Figure, name: str) -> bool:
    """Whether the report has this value under the rule of the figure."""
    if figure.rule == "unstated":
        return any(value == name or value.endswith(f".{name}") for value in found.values)
    return name in found.values or f"{figure.rule}.{name}" in found.values


def _other_reference(reference: Against, name: str) -> str:
    dataset, _, split = name.partition("/")
    if split != "test":
        return f"it is judged against {name}, and published figures against the test split"
    whole = whole_splits()[dataset]
    if not reference.whole or reference.rows != whole:
        return (
            f"it is judged against {reference.rows} rows of {dataset}/test, and published figures against all {whole}"
        )
    return ""


def _others(found: Finding, name: str, dataset: str) -> str:
    """The keys of the report's definition that are not as published, as these have them; empty where all agree.

    Args:
        name: of a value; empty for what concerns all values.
        dataset: what the file writes ``<dataset>`` for.
    """
    stated, differing = found.stated, []
    for beginning, keys in definitions(found.metric).items():
        if bool(beginning) != bool(name) or not name.startswith(beginning):
            continue
        for key, allowed in keys.items():
            value = stated.get(key)
            if isinstance(allowed, Mapping):
                least = allowed["at_least"]
                if not (isinstance(value, int | float) and value >= least):
                    differing.append(f"{key} of at least {least}")
                continue
            wanted = [dataset if one == "<dataset>" else one for one in allowed]
            if value not in wanted:
                differing.append(f"{key} {json.dumps(wanted[0])}")
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
