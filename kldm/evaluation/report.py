"""The report of an evaluation: what metrics found in sets of samples, written to and read from ``report.json``."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from kldm import registry
from kldm.errors import KldmError
from kldm.evaluation.results import strict, write_json
from kldm.interfaces import Json, Metric, StatesTerms, Terms
from kldm.recipe import Tree, build
from kldm.runtime.opening import open_text

METRICS_OF_SECTIONS = {"csp": "match_rate.v1", "dng": "de_novo.v1", "stability": "stability.v1"}
"""The metrics of these sections in reports of kldm 0.1.0, which do not name them."""


def _numbers(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Python numbers; None for a value that is not finite, which JSON cannot hold."""
    return {
        name: None if value is None or not math.isfinite(value) else value if isinstance(value, int) else float(value)
        for name, value in values.items()
    }


@attrs.frozen(kw_only=True)
class JudgedReference:
    """The reference that samples were judged against; a value is None where a report does not state it.

    Attributes:
        name: ``DATASET/SPLIT`` or a file.
        rows: number of rows that were judged.
        failed: how many of these have no structure.
        whole: whether the rows are the whole split of a data set.
    """

    name: str | None = None
    rows: int | None = None
    failed: int | None = None
    whole: bool = False


@attrs.frozen(kw_only=True)
class Finding:
    """What one metric found in one set of samples.

    Attributes:
        metric: registered name of the metric.
        terms: what the values may be compared with.
        values: values by dotted name, such as ``structural.match_rate@1``; None where undefined.
        definition: rules, tolerances and counts behind the values.
        seeds: the values of each set, if several were judged and ``values`` holds their means.
    """

    metric: str
    terms: Terms = attrs.field(factory=Terms)
    values: Mapping[str, float | None] = attrs.field(converter=_numbers)
    definition: Mapping[str, Json] = attrs.field(factory=dict)
    seeds: tuple[Mapping[str, float | None], ...] = ()

    @property
    def versions(self) -> Mapping[str, Json]:
        """The versions of libraries that the definition states."""
        versions = self.definition.get("versions")
        return versions if isinstance(versions, Mapping) else {}

    @property
    def stated(self) -> dict[str, Any]:
        """The values of the definition by dotted key."""
        return flat(self.definition)


@attrs.frozen(kw_only=True)
class Judgement:
    """How one set of samples was judged.

    Attributes:
        reference: what the samples were judged against, if anything.
        requests: number of structures asked for; None where a report does not state it.
        not_built: number of requests without a structure.
        metrics: what each metric found, by the name of its section.
        notes: sentences that a reader of the values must see.
        alignment: a sentence that says how the samples of files were assigned to the rows of the reference.
        unplaced: number of samples in files that answer no row.
        seconds: time that sampling and judging took.
        failure: a sentence with the reason, if not one of the structures could be judged.
    """

    reference: JudgedReference | None = None
    requests: int | None = None
    not_built: int | None = None
    metrics: Mapping[str, Finding]
    notes: tuple[str, ...] = ()
    alignment: str | None = None
    unplaced: int | None = None
    seconds: float | None = None
    failure: str | None = None


@attrs.frozen(kw_only=True)
class Report:
    """The content of ``report.json``.

    Attributes:
        about: what was judged, and how it came about: recipe, device and training of a run, or the names of files.
        libraries: versions of libraries behind the values.
        evaluation: the judgement of each set of samples, by label.
    """

    about: Mapping[str, Any] = attrs.field(factory=dict)
    libraries: Mapping[str, str]
    evaluation: Mapping[str, Judgement]

    def as_json(self) -> dict[str, Any]:
        """The content of the file, in which the keys of ``about`` stand beside the others."""
        fields: dict[str, Any] = attrs.asdict(self, filter=_is_stated)
        content: dict[str, Any] = strict({**fields.pop("about"), **fields})
        return content

    def write(self, folder: Path) -> None:
        """Write ``report.json``. Raises ``KldmError`` if it cannot be written."""
        write_json(folder / "report.json", self.as_json())

    @classmethod
    def read(cls, file: Path) -> "Report":
        """Read a report, including those that kldm 0.1.0 wrote.

        Raises:
            KldmError: the file is missing, or is not a report of ``kldm evaluate`` or ``kldm run``.
        """
        content = _read_json(file)
        try:
            return build(_as_fields(content), cls)[0]
        except KldmError as error:
            problem = f"not a report of kldm evaluate or kldm run ({error})"
            raise KldmError(problem, place=str(file)) from error


def terms_of(metric: Metric) -> Terms:
    """The terms that a metric states, or the defaults."""
    return metric.terms if isinstance(metric, StatesTerms) else Terms()


def flat(tree: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted name."""
    values: dict[str, Any] = {}
    for name, value in tree.items():
        values |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {place + name: value}
    return values


def _is_stated(attribute: "attrs.Attribute[Any]", value: Any) -> bool:
    """Whether the report has the field; these are left out where they are empty."""
    return not (
        attribute.name in ("alignment", "unplaced", "seconds", "failure", "seeds", "failed") and value in (None, ())
    )


def _read_json(file: Path) -> Any:
    try:
        with open_text(file, errors="strict") as text:
            return json.load(text, parse_constant=lambda _: None)  # NaN of old reports
    except FileNotFoundError as error:
        remedy = "name a report.json, or the folder of kldm run or kldm evaluate that holds one"
        raise KldmError("there is no report", place=str(file), remedy=remedy) from error
    except OSError as error:
        raise KldmError(f"cannot read the file: {error.strerror or error}", place=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise KldmError(f"the report is not JSON ({error})", place=str(file)) from error


def _as_fields(content: Any) -> Tree:
    """The content of a report, today's or that of kldm 0.1.0, as the fields of ``Report``."""
    if not isinstance(content, Mapping):
        raise KldmError("it is not an object")
    if "evaluation" not in content:  # kldm 0.1.0 wrote the judgement of files at the top
        return {"libraries": content.get("libraries", {}), "evaluation": {"samples": _judgement(content)}}
    sets = content["evaluation"]
    judgements = (
        {label: _judgement(judgement) for label, judgement in sets.items()} if isinstance(sets, Mapping) else sets
    )
    about = {name: value for name, value in content.items() if name not in ("libraries", "evaluation")}
    return {"about": about, "libraries": content.get("libraries", {}), "evaluation": judgements}


def _judgement(content: Any) -> Any:
    """The fields of a ``Judgement``. In kldm 0.1.0 each section of values had its definition under ``definitions``."""
    if not isinstance(content, Mapping) or "metrics" in content:
        return content
    definitions = content.get("definitions", {})
    if not isinstance(definitions, Mapping):
        raise KldmError("definitions is not a section")
    findings = {
        name: {
            "metric": METRICS_OF_SECTIONS.get(name, name),
            "terms": attrs.asdict(_terms_of_section(name)),
            "values": flat(content[name]) if isinstance(content[name], Mapping) else content[name],
            "definition": definitions.get(name, {}),
        }
        for name in dict.fromkeys([*METRICS_OF_SECTIONS, *definitions])
        if name in content
    }
    if not findings:
        raise KldmError("it holds no values of any metric")
    others = {field.name for field in attrs.fields(Judgement)} - {"metrics"}
    return {name: value for name, value in content.items() if name in others} | {"metrics": findings}


def _terms_of_section(section: str) -> Terms:
    name = METRICS_OF_SECTIONS.get(section)
    return Terms() if name is None else terms_of(registry.metrics.get(name)())
