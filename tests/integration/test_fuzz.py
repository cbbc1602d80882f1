"""Odd rows, recipes and checkpoints by the thousand: each is taken or refused in a sentence, and no row is lost.

The examples are the same in every run. ``pytest -m slow`` tries ten times as many.
"""

import copy
import csv
import io
import json
import math
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter

from kldm.errors import KldmError
from kldm.recipe import read_recipe
from kldm.runs.experiment import assemble
from kldm.training import checkpoint
from tests.small import OVERRIDES, RECIPES, kldm, options, small_model

NaN, INFINITY = math.nan, math.inf
LONGEST = timedelta(seconds=30)
"""An example that takes longer hangs."""

ODD: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e-300, 1e-3, 1e5, 1e10, -1e16, 1e308, NaN, INFINITY, -INFINITY),
    *(
        2**63,
        10**400,
        "",
        " ",
        "0",
        "1",
        "nan",
        "Na",
        "X",
        "Na+",
        "D",
        "H1000000000000",
        "\ud800",
        "\x00",
        "\x1b[2J\r\n",
    ),
    *([], [[]], [0], [NaN, 0, 0], [1, 2, 3, 4], ["a", "b", "c"], {}, {"a": {}}, [[[[[[]]]]]]),
    {"@module": "tests.integration.test_fuzz", "@class": "Imported"},
)
"""Values that stand where others are expected."""

HERE = ("--metric.time_limit", "null")
"""Without a limit the work is done in this process, which is quicker to begin with."""

IMPOSSIBLE = (NaN, INFINITY, -INFINITY, 1e308, -1e308)
"""Numbers that no key of a recipe takes."""

THIRD = 1 / 3
CRYSTALS: Sequence[Structure] = tuple(
    Structure(lattice, elements, np.array(coordinates))
    for lattice, elements, coordinates in (
        (Lattice.cubic(4.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        (Lattice.hexagonal(3, 3.26), ["Al", "B", "B"], [[0, 0, 0], [THIRD, -THIRD, 0.5], [-THIRD, THIRD, 0.5]]),
        (Lattice.from_parameters(3.1, 4.2, 5.3, 80, 95, 101), ["Li", "O", "O"], np.eye(3) * 0.37),
        (
            Lattice.tetragonal(3.9, 4.1),
            ["Ba", "Ti", "O", "O"],
            [[0, 0, 0], [0.5, 0.5, 0.51], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
    )
)

Edit = tuple[int, tuple[Any, ...], Any]
"""A row, the path to a value in it, and what stands there instead; ``...`` takes the value away."""

SITE = ("structure", "sites", 0)
PATHS: Sequence[tuple[Any, ...]] = (
    ("structure",),
    *(("structure", key) for key in ("lattice", "sites", "charge", "properties", "@module", "@class", "id")),
    *(("structure", "lattice", key) for key in ("matrix", "a", "alpha", "pbc", "volume")),
    *(("structure", "lattice", "matrix", *rest) for rest in ((0,), (1, 1), (2, 0))),
    *((*SITE, *rest) for rest in ((), ("species",), ("species", 0), ("abc",), ("abc", 1), ("xyz",), ("properties",))),
    *((*SITE, "species", 0, key) for key in ("element", "occu", "oxidation_state", "spin")),
)
LABELS = ("target", "candidate", "reason", "species", "selected", "material_id", "cif")
"""Keys beside the structure. An odd target spoils the whole file, so that these are tried apart."""

edits = st.tuples(st.integers(0, 19), st.sampled_from(PATHS), st.sampled_from([..., *ODD]))
relabelled = st.tuples(st.integers(0, 19), st.sampled_from(LABELS).map(lambda key: (key,)), st.sampled_from(ODD))
records = st.lists(edits, min_size=1, max_size=19) | st.lists(relabelled, min_size=1, max_size=2)
WAYS = ("drop", "double", "token", "cut", "bytes", "swap")
scratches = st.tuples(st.integers(0, 19), st.sampled_from(WAYS), st.integers(0, 2**32))
scratched_rows = st.lists(scratches, min_size=1, max_size=19)


def thorough(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same examples in every run, each within the time."""
    health = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=LONGEST, suppress_health_check=health
    )


def changed(row: dict[str, Any], path: Sequence[Any], value: Any) -> dict[str, Any]:
    """A copy of the row with another value at the path; unchanged if the path is not there."""
    row = copy.deepcopy(row)
    inner: Any = row
    with suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        elif len(path) == 1 or isinstance(inner, dict) or path[-1] < len(inner):
            inner[path[-1]] = value
    return row


def scratched(text: str, how: str, seed: int) -> str:
    """The text as a careless hand or a bad disk might leave it."""
    draw, lines = random.Random(seed), text.splitlines(keepends=True)
    if not lines:
        return text
    at = draw.randrange(len(lines))
    if how == "drop":
        del lines[at]
    elif how == "double":
        lines.insert(at, lines[at])
    elif how == "swap":
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif how == "cut":
        lines = [*lines[:at], lines[at][: draw.randrange(len(lines[at]))].rstrip("\n") + "\n"]
    elif how == "bytes":
        place = draw.randrange(max(1, len(lines[at]) - 1))  # not the end of the line, which may be that of a frame
        lines[at] = lines[at][:place] + chr(draw.choice([0, 10, 13, 27, 127, 233, 0x2028])) + lines[at][place + 1 :]
    elif tokens := re.findall(r"\S+", lines[at]):
        lines[at] = lines[at].replace(draw.choice(tokens), str(draw.choice(ODD)).replace("\ud800", "?"), 1)
    return "".join(lines)


def is_sentence(result: Result) -> str:
    """The message of a command that refuses its input as it does a user's mistake."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    (message,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", message), repr(message)
    assert not re.fullmatch(r".*: \w*(Error|Exception)", message), f"{message} says nothing"
    return message


def judged(path: Path, out: Path, reference: Path | None, rows: int, untouched: Sequence[int]) -> None:
    """Judge a file of ``rows`` samples; with a reference, those that are untouched answer the row of their number, and
    match."""
    matching = ("--reference", reference, "--metric.rules", '["structural"]', *HERE) if reference else ()
    metric = "match_rate.v1" if reference else "validity.v1"
    result = kldm("evaluate", path, "--metric", metric, *matching, "--out", out)
    if result.exit_code:
        is_sentence(result)
        return
    assert result.exception is None
    report = json.loads((out / "report.json").read_text())
    (evaluation,) = report["evaluation"].values()
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    known = evaluation["requests"] + (evaluation.get("unplaced") or 0)
    assert known >= rows, "a row is lost"
    assert len(table) == known
    for value in evaluation["metrics"][metric]["values"].values():
        assert value is None or math.isfinite(value)
    if reference:
        matched = {int(row["target"]) for row in table if row["target"] and row["rms"] and float(row["rms"]) < 1e-3}
        assert matched >= set(untouched), "an intact row does not match"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    path.write_text(json.dumps([CRYSTALS[n % 4].as_dict() for n in range(20)]))
    return path


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("fuzz")


def try_records(folder: Callable[[], Path], reference: Path | None, wanted: Sequence[Edit], lines: bool) -> None:
    rows = [{"target": n, "structure": CRYSTALS[n % 4].as_dict()} for n in range(20)]
    for number, keys, value in wanted:
        rows[number] = changed(rows[number], keys, value)
    here = folder()
    path = here / ("odd.jsonl" if lines else "odd.json")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    judged(path, here / "out", reference, len(rows), sorted(set(range(20)) - {number for number, _, _ in wanted}))


def try_texts(folder: Callable[[], Path], reference: Path | None, wanted: Sequence[Any], kind: str) -> None:
    texts = [(cif if kind in ("csv", "zip") else frame)(n) for n in range(20)]
    for number, how, seed in wanted:
        texts[number] = scratched(texts[number], how, seed)
    here = folder()
    path = here / f"odd.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for number, text in enumerate(texts):
                archive.writestr(f"{number}_0_x.cif", text.encode("utf-8", "replace"))
    elif kind == "csv":
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            table = csv.writer(file)
            table.writerows([["cif"], *([text] for text in texts)])
    else:
        path.write_bytes("".join(texts).encode("utf-8", "replace"))
    intact = sorted(set(range(20)) - {number for number, _, _ in wanted})
    judged(path, here / "out", reference, 20 if kind in ("csv", "zip") else 0, intact)


def cif(number: int) -> str:
    return str(CifWriter(CRYSTALS[number % 4]))


def frame(number: int) -> str:
    atoms = AseAtomsAdaptor.get_atoms(CRYSTALS[number % 4], msonable=False)
    atoms.info = {"target": number}
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()


matching = st.integers(0, 7).map(lambda number: number == 3)
"""Whether the intact rows must match a reference as well, which takes longer than to see whether they are valid."""


@thorough(40)
@given(wanted=records, lines=st.booleans(), match=matching)
def test_odd_records(folder: Callable[[], Path], reference: Path, wanted: list[Edit], lines: bool, match: bool) -> None:
    try_records(folder, reference if match else None, wanted, lines)


@pytest.mark.slow
@thorough(500)
@given(wanted=records, lines=st.booleans())
def test_many_odd_records(folder: Callable[[], Path], reference: Path, wanted: list[Edit], lines: bool) -> None:
    try_records(folder, reference, wanted, lines)


@thorough(60)
@given(wanted=scratched_rows, kind=st.sampled_from(["extxyz", "csv", "zip"]), match=matching)
def test_scratched_texts(
    folder: Callable[[], Path], reference: Path, wanted: list[Any], kind: str, match: bool
) -> None:
    try_texts(folder, reference if match else None, wanted, kind)


@pytest.mark.slow
@thorough(500)
@given(wanted=scratched_rows, kind=st.sampled_from(["extxyz", "csv", "zip"]))
def test_many_scratched_texts(folder: Callable[[], Path], reference: Path, wanted: list[Any], kind: str) -> None:
    try_texts(folder, reference, wanted, kind)


NAMES = ("quickstart", "quickstart_dng", "diffcsp_mp20_dng", "flowmm_mp20", "kldm_eps_pc_mp20", "kldm_x0_bits_mp20_dng")
"""Recipes that have, together, components of every kind."""


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a recipe, those of its sections included."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")


@cache
def keys() -> Sequence[tuple[str, str]]:
    """(name of a recipe, a key of it)."""
    complete = {name: assemble(read_recipe(RECIPES / f"{name}.cfg", {}))[1] for name in NAMES}
    return [(name, key) for name, tree in complete.items() for key in flat(tree)]


def try_recipe(name: str, key: str, value: Any) -> None:
    settings = {**OVERRIDES, "data.name": "aflow_prototypes", key: value}
    result = kldm("check", RECIPES / f"{name}.cfg", *options(settings))
    if result.exit_code:
        is_sentence(result)
    else:
        assert result.exception is None
        assert not any(value is number for number in IMPOSSIBLE), f"{key} = {value} is no number to train with"


recipes = {"place": st.deferred(lambda: st.sampled_from(keys())), "value": st.sampled_from(ODD)}


@thorough(100)
@given(**recipes)
def test_odd_recipes(place: tuple[str, str], value: Any) -> None:
    try_recipe(*place, value)


@pytest.mark.slow
@thorough(2500)
@given(**recipes)
def test_many_odd_recipes(place: tuple[str, str], value: Any) -> None:
    try_recipe(*place, value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    weights = {f"model.{name}": value for name, value in small_model().state_dict().items()}
    checkpoint.save(path, checkpoint.Checkpoint({"model": {}}, weights, {"step": 1}))
    return path


@thorough(300)
@given(seed=st.integers(0, 2**32), how=st.sampled_from(["bit", "byte", "cut", "longer", "swap", "zeros"]))
def test_damaged_checkpoints(saved: Path, seed: int, how: str) -> None:
    draw = random.Random(seed)
    content = bytearray(saved.read_bytes())
    at = draw.randrange(len(content)) if draw.random() < 0.5 else draw.randrange(2000)
    if how == "bit":
        content[at] ^= 1 << draw.randrange(8)
    elif how == "byte":
        content[at] = (content[at] + draw.randrange(1, 256)) % 256
    elif how == "cut":
        del content[at:]
    elif how == "longer":
        content += bytes(draw.randrange(1, 99))
    elif how == "swap":
        other = draw.randrange(len(content))
        content[at], content[other] = content[other], content[at]
    else:
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    damaged = saved.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    if bytes(content) == saved.read_bytes():
        return
    with pytest.raises(KldmError):
        checkpoint.load(damaged)
