"""The figures that papers report, their definitions and sources, and which of them may stand beside a result."""

import json
import re
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

import attrs

Rule = Literal["structural", "full", "cdvae", "unstated", "mattergen"]
"""What a figure's definition is: a validity rule of crystal structure prediction (``structural``, ``full``); the
definitions of CDVAE (``cdvae``) for de-novo generation; MatterGen's pipeline (``mattergen``) for stability;
``unstated`` where the source does not say."""

AT_K = ("match_rate", "rmse")
"""Values of which a report has one for each k, such as ``match_rate@20``."""

VALUES = {
    "csp": (*AT_K, "METRe"),
    "dng": (*("struct_valid", "comp_valid", "cov_recall", "cov_precision", "wdist_density", "wdist_num_elements"),),
    "stability": ("rmsd_mattergen", "avg_e_above_hull", "stable_100meV", "sun_100meV"),
}
"""What the figures of a task may hold; shares lie in [0, 1]."""

STABILITY = {
    "potential.label": ("mattersim-v1.0.0-1M.pth",),
    "relaxation.fmax": (0.05,),
    "relaxation.cell": ("frechet", "exp"),
    "hull.entries": (845_997,),
    "hull.corrections": ("mp2020",),
    "matcher.name": ("disordered",),
    "known.structures": (845_997,),
}
"""What a report must say to stand beside published figures of stability: MatterSim-v1-1M, and Alex-MP as hull and as
what is known."""

FEWEST_STEPS = 500
"""Steps after which a relaxation may be given up: in the published figures practically never."""

TOLERANCES = {"ltol": 0.3, "stol": 0.5, "angle_tol": 10}
"""Of the matcher, behind all published match rates."""


@attrs.frozen(kw_only=True, eq=False)
class Figure:
    """The published values of one system under one definition.

    Attributes:
        system: as its paper calls it.
        source: the paper, and the one that quotes it, with the table.
        task: ``csp``, ``dng`` or ``stability``.
        dataset: as ``kldm.data`` names it; of stability, what was trained on.
        split: of the data set.
        rule: see ``Rule``.
        values: by the names that reports have, ``match_rate@1``.
        std: standard deviations over sampling seeds, by the same names, where they were published.
        k: candidates per target (csp).
        states: set of oxidation states behind ``comp_valid`` (dng).
        legacy: whether they are used as smact 2.2.1 does.
        cutoffs: the data set whose coverage cutoffs are used (dng).
        note: what else a reader must know.
    """

    system: str
    source: str
    task: Literal["csp", "dng", "stability"]
    dataset: str
    split: str
    rule: Rule
    values: Mapping[str, float]
    std: Mapping[str, float]
    k: int | None = None
    states: str | None = None
    legacy: bool | None = None
    cutoffs: str | None = None
    note: str = ""


@cache
def published() -> tuple[Figure, ...]:
    """All published figures, those of a task and data set in the order of their papers."""
    content = _content()
    return tuple(_figure(record, content["sources"]) for record in content["figures"])


@cache
def whole_splits() -> Mapping[str, int]:
    """Number of rows of the test split of every data set with published figures."""
    return dict(_content()["test_rows"])


def beside(
    task: str, reference: Mapping[str, Any], definition: Mapping[str, Any], names: Collection[str]
) -> tuple[list[tuple[Figure, str]], list[str]]:
    """What may stand beside the values of one report, and why other figures may not.

    A published value agrees where data set, split (the whole of it), tolerances, rule and k are the report's. A value
    whose rule is unstated is given beside those of any rule. ``comp_valid`` also wants the same oxidation states, and
    coverage the same cutoffs. Stability wants the same potential, hull and matcher, and is beside figures of any data.

    Args:
        reference: ``name``, ``rows`` and ``whole`` of the report's reference.
        definition: of the task's values, by dotted name.
        names: the report's values, with their rules: ``structural.match_rate@1``.

    Returns:
        Pairs of a figure and the name of a value in it; and sentences that go after the name of a report.
    """
    if task == "stability":
        return _beside_stability(definition, names)
    dataset = str(reference.get("name")).partition("/")[0]
    found = [f for f in published() if (f.task, f.dataset) == (task, dataset)]
    if not found:
        return [], [f"there are no published figures for {task} on {reference.get('name', 'an unnamed reference')}"]
    reasons = _other_reference(reference) + (_other_tolerances(definition) if task == "csp" else [])
    if reasons:
        return [], reasons
    agreed: list[tuple[Figure, str]] = []
    lost: dict[str, None] = {}
    for figure in found:
        for name in figure.values:
            if not _has(names, figure, name):
                continue
            reason = _other_value(figure, name, definition)
            if reason:
                lost[reason] = None
            else:
                agreed.append((figure, name))
    for k in sorted(_numbers_of_candidates(names) - {figure.k for figure in found if figure.k is not None}):
        lost[f"there are no published figures for k = {k}"] = None
    return agreed, list(lost)


def _beside_stability(
    definition: Mapping[str, Any], names: Collection[str]
) -> tuple[list[tuple[Figure, str]], list[str]]:
    others = [f"{key} {values[0]}" for key, values in STABILITY.items() if definition.get(key) not in values]
    if not definition.get("relaxation.max_steps", 0) >= FEWEST_STEPS:
        others.append(f"relaxation.max_steps of at least {FEWEST_STEPS}")
    if others:
        wanted = ", ".join(others)
        return [], [f"published figures of stability are by another definition ({wanted})"]
    figures = [figure for figure in published() if figure.task == "stability"]
    return [(figure, name) for figure in figures for name in figure.values if name in names], []


def _numbers_of_candidates(names: Collection[str]) -> set[int]:
    return {int(at[1]) for name in names if (at := re.search(r"@(\d+)", name))}


def _has(names: Collection[str], figure: Figure, name: str) -> bool:
    """Whether a report with these values has this one under the rule of the figure."""
    rules = ("structural", "full") if figure.rule == "unstated" else (figure.rule,)
    return name in names or any(f"{rule}.{name}" in names for rule in rules)


def _other_reference(reference: Mapping[str, Any]) -> list[str]:
    dataset, _, split = str(reference["name"]).partition("/")
    if split != "test":
        return [f"it is judged against {reference['name']}, and published figures against the test split"]
    rows, whole = reference.get("rows"), whole_splits()[dataset]
    if reference.get("whole") is not True or rows != whole:
        return [f"it is judged against {rows} rows of {dataset}/test, and published figures against all {whole}"]
    return []


def _other_tolerances(definition: Mapping[str, Any]) -> list[str]:
    stated = {name: definition.get(name) for name in TOLERANCES}
    if stated == TOLERANCES:
        return []
    if None in stated.values():
        return ["it does not state all tolerances of the matcher"]
    used, common = (", ".join(f"{value:g}" for value in t.values()) for t in (stated, TOLERANCES))
    return [f"its tolerances ({', '.join(TOLERANCES)}) are {used}, and those of published figures {common}"]


def _other_value(figure: Figure, name: str, definition: Mapping[str, Any]) -> str:
    """Why one value of a figure is not comparable, or ``""``."""
    states = definition.get("oxidation_states"), definition.get("legacy")
    if name == "comp_valid" and states != (figure.states, figure.legacy):
        return "its comp_valid has not the oxidation states of published figures (smact14 in its legacy form)"
    if name.startswith("cov_") and definition.get("coverage.cutoffs") != figure.cutoffs:
        return f"its coverage has not the cutoffs of published figures ({figure.cutoffs})"
    return ""


def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        files("kldm.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    )
    return content


def _figure(record: Mapping[str, Any], sources: Mapping[str, str]) -> Figure:
    """A record of the file: its values and their ``_std`` lie among the attributes, its sources are keys."""
    assert record["rule"] in get_args(Rule)
    at = f"@{record['k']}" if "k" in record else ""
    names = {name: name + at if name in AT_K else name for name in VALUES[record["task"]]}
    source = sources[record["source"]]
    if "quoted_in" in record:
        source += f"; as quoted in {sources[record['quoted_in']]}"
    if "place" in record:
        source += f", {record['place']}"
    rest = record.keys() - {"quoted_in", "place", *names, *(f"{name}_std" for name in names)}
    return Figure(
        **{key: record[key] for key in rest}
        | {
            "source": source,
            "values": {name: record[key] for key, name in names.items() if key in record},
            "std": {name: record[f"{key}_std"] for key, name in names.items() if f"{key}_std" in record},
        }
    )
