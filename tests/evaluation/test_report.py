"""Reports: what is written is read back, what kldm 0.1.0 wrote too, and nothing else."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kldm.evaluation.report import Finding, JudgedReference, Judgement, Report, terms_of
from kldm.evaluation.tables import judgements_table
from kldm.interfaces import Measurement, Samples, Terms
from kldm.metrics import MatchRate, Stability

WEIGHTS = Path(__file__).parents[2] / "weights"

NUMBERS = st.none() | st.integers(-(2**53), 2**53).map(float) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
VALUES = st.dictionaries(TEXTS, NUMBERS, max_size=4)
FINDINGS = st.builds(
    Finding,
    metric=TEXTS,
    terms=st.builds(
        Terms,
        answers=st.booleans(),
        needs_reference=st.booleans(),
        agree=st.dictionaries(TEXTS, st.lists(TEXTS, max_size=2).map(tuple), max_size=2),
        shares=st.lists(TEXTS, max_size=2).map(tuple),
    ),
    values=VALUES,
    definition=st.dictionaries(TEXTS, JSON, max_size=3),
    seeds=st.lists(VALUES, max_size=2).map(tuple),
)
JUDGEMENTS = st.builds(
    Judgement,
    reference=st.none()
    | st.builds(JudgedReference, name=st.none() | TEXTS, rows=st.none() | st.integers(0, 9), whole=st.booleans()),
    requests=st.integers(0, 9),
    not_built=st.integers(0, 9),
    metrics=st.dictionaries(TEXTS, FINDINGS, max_size=2),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    alignment=st.none() | TEXTS,
    unplaced=st.none() | st.integers(0, 9),
    seconds=st.none() | st.floats(0, 1e6),
)
REPORTS = st.builds(
    Report,
    about=st.dictionaries(st.sampled_from(["recipe", "files", "seeds"]), JSON, max_size=3),
    libraries=st.dictionaries(TEXTS, TEXTS, max_size=2),
    evaluation=st.dictionaries(TEXTS, JUDGEMENTS, max_size=2),
)


@given(report=REPORTS)
def test_what_is_written_is_read_back(report: Report) -> None:
    with TemporaryDirectory() as folder:
        report.write(Path(folder))
        assert Report.read(Path(folder) / "report.json") == report


def test_what_is_undefined_is_none() -> None:
    found = Finding(metric="mine.v1", values={"a": math.nan, "b": -math.inf, "c": None, "d": 2})
    assert found.values == {"a": None, "b": None, "c": None, "d": 2}


def test_a_metric_has_its_terms_or_the_defaults() -> None:
    class Plain:
        def measure(self, samples: Samples) -> Measurement:
            return Measurement({})

    assert terms_of(Plain()) == Terms(answers=False, needs_reference=True)
    assert terms_of(MatchRate()).answers
    assert terms_of(Stability()).needs_reference
    assert not terms_of(Stability(known=("mp_20/train",))).needs_reference


def test_the_table_has_a_column_for_each_set_of_samples() -> None:
    found = Finding(metric="mine.v1", values={"n_good": 3.0, "share": 0.25})
    judged = Judgement(
        reference=JudgedReference(name="mine", rows=4), requests=5, not_built=1, metrics={"mine": found}, notes=("So.",)
    )
    other = attrs.evolve(
        judged, reference=None, metrics={"mine": attrs.evolve(found, values={"share": None, "more": 1.5})}
    )
    lines = judgements_table({"a": judged, "b": other}).splitlines()
    assert [line.split() for line in lines if "---" not in line] == [
        ["a", "b"],
        ["reference", "4", "none"],
        ["requests", "5", "5"],
        ["not", "built", "1", "1"],
        ["mine.n_good", "3", "-"],
        ["mine.share", "0.2500", "none"],
        ["mine.more", "-", "1.5000"],
        ["note:", "So."],
    ]


@pytest.mark.parametrize("name", ["perov5_small", "perov5_dng_small", "perov5_small/predictor_corrector"])
def test_reports_of_the_first_release_are_read(name: str) -> None:
    """Every number and definition that stands in the file is found again, under the metric's registered name."""
    raw = json.loads((WEIGHTS / name / "report.json").read_text())
    report = Report.read(WEIGHTS / name / "report.json")
    (judged,) = report.evaluation.values()
    ((section, found),) = judged.metrics.items()
    assert (section, found.metric) in (("csp", "match_rate.v1"), ("dng", "de_novo.v1"))
    assert judged.reference is not None
    assert (judged.reference.name, judged.reference.rows) == (raw["reference"]["name"], raw["reference"]["rows"])
    assert found.definition == raw["definitions"][section]
    assert found.terms.answers is (section == "csp")
    assert list(found.values.values()) == [
        value for part in raw[section].values() for value in (part.values() if isinstance(part, dict) else [part])
    ]
