"""What metrics found in sets of samples, as ``report.json`` keeps it: written by every command, read back once."""

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

SECTIONS_BEFORE = {"csp": "match_rate.v1", "dng": "de_novo.v1", "stability": "stability.v1"}
"""Reports of kldm 0.1.0 do not name the metrics; these sections of theirs are always of these metrics."""


def _numbers(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Plain numbers; None for one that is not finite, which JSON lacks."""
    return {
        name: None if value is None or not math.isfinite(value) else value if isinstance(value, int) else float(value)
        for name, value in values.items()
    }


@attrs.frozen(kw_only=True)
class Against:
    """What samples were judged against; None where a report does not say.

    Attributes:
        name: ``DATASET/SPLIT`` or a file.
        rows: of the reference, that were judged.
        failed: how many of them are no structures.
        whole: whether they are the whole split of a data set.
    """

    name: str | None = None
    rows: int | None = None
    failed: int | None = None
    whole: bool = False


@attrs.frozen(kw_only=True)
class Finding:
    """What one metric found in one set of samples.

    Attributes:
        metric: its registered name.
        terms: what the values may be compared with.
        values: by dotted name, ``structural.match_rate@1``; None where undefined.
        definition: the rules, tolerances and counts behind them.
        seeds: the values of every file where several were judged and ``values`` are their means.
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
        """The definition by dotted key."""
        return flat(self.definition)


@attrs.frozen(kw_only=True)
class Judgement:
    """What is known of one set of samples.

    Attributes:
        reference: what it was judged against, if anything.
        requests: number of structures asked for; None where a report does not say.
        not_built: how many of them there were not.
        metrics: what each found, by the name of its section.
        notes: sentences that a reader of the values must see.
        alignment: a sentence that says how the samples of files were placed on the rows of the reference.
        unplaced: samples of files that answer no row.
        seconds: that sampling and judging took.
    """

    reference: Against | None = None
    requests: int | None = None
    not_built: int | None = None
    metrics: Mapping[str, Finding]
    notes: tuple[str, ...] = ()
    alignment: str | None = None
    unplaced: int | None = None
    seconds: float | None = None


@attrs.frozen(kw_only=True)
class Report:
    """The content of ``report.json``.

    Attributes:
        about: what was done, by whom and how: of a run its recipe, device and training, of files their names.
        libraries: versions behind the values.
        evaluation: the judgements of all sets of samples, by label.
    """

    about: Mapping[str, Any] = attrs.field(factory=dict)
    libraries: Mapping[str, str]
    evaluation: Mapping[str, Judgement]

    def as_json(self) -> dict[str, Any]:
        """The content of the file; ``about`` lies beside the rest."""
        said: dict[str, Any] = attrs.asdict(self, filter=_is_said)
        content: dict[str, Any] = strict({**said.pop("about"), **said})
        return content

    def write(self, folder: Path) -> None:
        """Write ``report.json``. Raises ``KldmError`` where it cannot be written."""
        write_json(folder / "report.json", self.as_json())

    @classmethod
    def read(cls, file: Path) -> "Report":
        """Read a report, also one of kldm 0.1.0.

        Raises:
            KldmError: there is no file, or what it holds is not a report of ``kldm evaluate`` or ``kldm run``.
        """
        content = _json(file)
        try:
            return build(_arranged(content), cls)[0]
        except KldmError as error:
            problem = f"not a report of kldm evaluate or kldm run ({error})"
            raise KldmError(problem, place=str(file)) from error


def terms_of(metric: Metric) -> Terms:
    """What a metric states, or the defaults."""
    return metric.terms if isinstance(metric, StatesTerms) else Terms()


def flat(tree: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{place}{name}.") if isinstance(value, Mapping) else {place + name: value}
    return found


def _is_said(attribute: "attrs.Attribute[Any]", value: Any) -> bool:
    """What a report need not say where there is nothing to say."""
    return not (attribute.name in ("alignment", "unplaced", "seconds", "seeds", "failed") and value in (None, ()))


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        remedy = "name a report.json, or the folder of kldm run or kldm evaluate that holds one"
        raise KldmError("there is no report", place=str(file), remedy=remedy) from error
    except OSError as error:
        raise KldmError(f"cannot read the file: {error.strerror or error}", place=str(file)) from error
    except (ValueError, RecursionError) as error:
        raise KldmError(f"the report is not JSON ({error})", place=str(file)) from error


def _arranged(content: Any) -> Tree:
    """The content of a report as the fields of ``Report``, what kldm 0.1.0 wrote included."""
    if not isinstance(content, Mapping):
        raise KldmError("it is not an object")
    if "evaluation" not in content:  # files were judged, and theirs was the only judgement
        return {"libraries": content.get("libraries", {}), "evaluation": {"samples": _judgement(content)}}
    sets = content["evaluation"]
    judgements = {label: _judgement(one) for label, one in sets.items()} if isinstance(sets, Mapping) else sets
    about = {name: value for name, value in content.items() if name not in ("libraries", "evaluation")}
    return {"about": about, "libraries": content.get("libraries", {}), "evaluation": judgements}


def _judgement(content: Any) -> Any:
    """Where no metric is named, every section of values has its definition among those of all."""
    if not isinstance(content, Mapping) or "metrics" in content:
        return content
    definitions = content.get("definitions", {})
    if not isinstance(definitions, Mapping):
        raise KldmError("definitions is not a section")
    findings = {
        name: {
            "metric": SECTIONS_BEFORE.get(name, name),
            "terms": attrs.asdict(_terms_before(name)),
            "values": flat(content[name]) if isinstance(content[name], Mapping) else content[name],
            "definition": definitions.get(name, {}),
        }
        for name in dict.fromkeys([*SECTIONS_BEFORE, *definitions])
        if name in content
    }
    if not findings:
        raise KldmError("there are no values of a metric")
    kept = {field.name for field in attrs.fields(Judgement)} - {"metrics"}
    return {name: value for name, value in content.items() if name in kept} | {"metrics": findings}


def _terms_before(section: str) -> Terms:
    name = SECTIONS_BEFORE.get(section)
    return Terms() if name is None else terms_of(registry.metrics.get(name)())
