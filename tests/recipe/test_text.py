"""Recipes are read from text, merged, overridden, interpolated and written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kldm.errors import KldmError
from kldm.interfaces import Json
from kldm.recipe import parse_overrides, read_recipe, recipe_text, write_recipe

BASE = """
# a comment
[training]
epochs = 20
rate = 1e-6
names = ["a", "b"]
nothing = null

[model.lattice]
@processes = "vp.v1"
beta_max = 20

[model.lattice.schedule]
@schedules = "linear.v1"
"""


def put(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_sections_nest_without_their_parents_being_spelt_out(tmp_path: Path) -> None:
    assert read_recipe(put(tmp_path, "base.cfg", BASE)) == {
        "training": {"epochs": 20, "rate": 1e-6, "names": ["a", "b"], "nothing": None},
        "model": {"lattice": {"@processes": "vp.v1", "beta_max": 20, "schedule": {"@schedules": "linear.v1"}}},
    }


def test_references_keep_their_type_and_see_overrides(tmp_path: Path) -> None:
    text = '[data]\nepochs = ${training.epochs}\ntext = "run ${training.epochs}"\nlist = [${training.rate},\n  1]\n'
    text += BASE + '[more]\npart = ${model.lattice}\nprice = "$5 and $${training.epochs}"\n'
    tree = read_recipe(put(tmp_path, "base.cfg", text), {"training.epochs": 3, "training.rate": "${training.epochs}"})
    assert tree["data"] == {
        "epochs": 3,
        "text": "run 3",
        "list": [3, 1],
    }
    assert tree["more"] == {"part": tree["model"]["lattice"], "price": "$5 and ${training.epochs}"}
    assert tree["training"]["rate"] == 3


def test_extended_recipes_are_merged_in_order_and_this_file_comes_last(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    put(tmp_path, "base.cfg", BASE)
    put(tmp_path / "parts", "short.cfg", '[recipe]\nextends = "../base.cfg"\n[training]\nepochs = 2\nseed = 1\n')
    put(tmp_path, "other.cfg", "[training]\nseed = 5\n[model.lattice]\nbeta_max = 7\n")
    top = '[recipe]\nextends = ["parts/short.cfg", "other.cfg"]\n[training]\nrate = ${training.seed}\n'
    tree = read_recipe(put(tmp_path, "top.cfg", top))
    assert "recipe" not in tree
    assert tree["training"] == {"epochs": 2, "rate": 5, "names": ["a", "b"], "nothing": None, "seed": 5}
    assert tree["model"]["lattice"]["beta_max"] == 7
    assert tree["model"]["lattice"]["@processes"] == "vp.v1"


def test_another_component_takes_none_of_the_old_ones_arguments(tmp_path: Path) -> None:
    put(tmp_path, "base.cfg", BASE)
    top = '[recipe]\nextends = "base.cfg"\n[model.lattice]\n@processes = "given.v1"\nwidth = 3\n'
    path = put(tmp_path, "top.cfg", top)
    assert read_recipe(path)["model"] == {"lattice": {"@processes": "given.v1", "width": 3}}
    same: dict[str, Json] = {"model.lattice.@processes": "given.v1", "model.lattice.deep.new": True}
    assert read_recipe(path, same)["model"]["lattice"] == {
        "@processes": "given.v1",
        "width": 3,
        "deep": {"new": True},
    }
    changed: dict[str, Json] = {"model.lattice.@processes": "vp.v1", "model.lattice.beta_max": 1}
    assert read_recipe(path, changed)["model"]["lattice"] == {"@processes": "vp.v1", "beta_max": 1}


def test_a_diamond_is_no_cycle_but_a_cycle_is(tmp_path: Path) -> None:
    put(tmp_path, "base.cfg", BASE)
    for name in ("left", "right"):
        put(tmp_path, f"{name}.cfg", '[recipe]\nextends = "base.cfg"\n')
    assert read_recipe(put(tmp_path, "top.cfg", '[recipe]\nextends = ["left.cfg", "right.cfg"]\n'))["training"]
    put(tmp_path, "one.cfg", '[recipe]\nextends = "two.cfg"\n')
    put(tmp_path, "two.cfg", '[recipe]\nextends = "one.cfg"\n')
    with pytest.raises(KldmError, match=r"one\.cfg -> two\.cfg -> one\.cfg"):
        read_recipe(tmp_path / "one.cfg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3\n", r"bad\.cfg:1: 'epochs = 3' is not in a section"),
        ("[a]\nx = 1\n\nnonsense\n", r"bad\.cfg:4: cannot read 'nonsense"),
        ("[a]\nx = 1\nx = 2\n", r"bad\.cfg:3: 'x' is given twice in \[a\]"),
        ("[a]\nx = 1\n[a]\n", r"bad\.cfg:3: \[a\] is there twice"),
        ("[a.b]\nx = 1\nnonsense\n[a]\n", r"bad\.cfg:3: cannot read 'nonsense"),
        ("x = 1\n[a.b]\n", r"bad\.cfg:1: 'x = 1' is not in a section"),
        ("[a]\nb = 1\n[a.b]\nc = 1\n", r"bad\.cfg: a\.b: found conflicting"),
        ("[a]\nx = ${b.seeds}\n[b]\nseed = 1\n", r"a\.x: \$\{b\.seeds\} refers to nothing; did you mean 'b\.seed'\?"),
        ("[a]\nx = ${a.y}\ny = ${a.x}\n", r"a\.[xy]: refers to itself"),
        ("[a]\nx = ${a}\n", r"a\.x: refers to a section that holds it"),
        ('[recipe]\nextends = "badd.cfg"\n', r"badd\.cfg: cannot read the recipe .*bad\.cfg extends.*'bad\.cfg'"),
        ("[recipe]\nextends = 3\n", r"bad\.cfg: recipe\.extends: wants"),
        ('[recipe]\nextend = "bad.cfg"\n', r"recipe\.extend: unknown key"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(KldmError, match=message):
        read_recipe(put(tmp_path, "bad.cfg", text))


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    put(tmp_path, "quickstart.cfg", BASE)
    with pytest.raises(KldmError, match=r"No such file.*did you mean 'quickstart\.cfg'"):
        read_recipe(tmp_path / "quickstar.cfg")
    with pytest.raises(KldmError, match="cannot read the recipe"):
        read_recipe(tmp_path / "absent" / "folder.cfg")
    (tmp_path / "binary.cfg").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KldmError, match="is not UTF-8 text"):
        read_recipe(tmp_path / "binary.cfg")


def test_overrides_are_json_or_text() -> None:
    arguments = ["--a.b", "-2.5", "--a.c=[1, 2]", "--x.y.z", "matrix", "--a.d=", "--a.e", "null", "--a.f=k=v"]
    assert parse_overrides(arguments) == {
        "a.b": -2.5,
        "a.c": [1, 2],
        "x.y.z": "matrix",
        "a.d": "",
        "a.e": None,
        "a.f": "k=v",
    }


@pytest.mark.parametrize("arguments", [["--a.b"], ["--a.b", "--a.c", "1"], ["a.b", "1"], ["--seed", "1"]])
def test_overrides_without_key_or_value_are_refused(arguments: list[str]) -> None:
    with pytest.raises(KldmError):
        parse_overrides(arguments)


def test_an_override_outside_a_section_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "base.cfg", BASE)
    for key in ("seed", "training.", ".seed"):
        with pytest.raises(KldmError, match=r"write section\.key"):
            read_recipe(path, {key: 1})


NAMES = st.from_regex(r"@?[a-zA-Z_][\w-]{0,6}", fullmatch=True)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.text(alphabet="$${}.ab\\\"'\n #;=[]u0024", max_size=10)
    | st.sampled_from(
        ["1", "1e-6", "null", "None", "True", "${a.b}", "$${a.b}", "'quoted'", "[1, 2]", "\\u0024", "%(x)s"]
    )
)
KEYS = NAMES | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.dictionaries(NAMES, VALUES, max_size=4)
TREES = st.dictionaries(NAMES.filter(lambda name: name not in ("DEFAULT", "recipe")), SECTIONS, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES)
@example({"a": {"empty": {}, "list": [], "deep": {"deeper": {}}, "tiny": 1e-6, "many": [{"a": {}, "$": "$x"}]}})
@example({"a": {"odd": {"x:y": 1, "": {"b": "${a.b}"}}, "DEFAULT": {"*": [1]}, "inf": float("inf")}})
def test_what_is_written_is_read_back(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = tmp_path / "recipe.cfg"
    write_recipe(tree, path)
    back = read_recipe(path)
    assert back == tree
    assert json.dumps(back, sort_keys=True) == json.dumps(tree, sort_keys=True)  # 1 == 1.0 == True, yet not here


@pytest.mark.parametrize("tree", [{"seed": 1}, {"DEFAULT": {}}, {"recipe": {}}, {"a b": {}}, {"a": {"x": object()}}])
def test_what_cannot_be_read_back_is_not_written(tree: dict[str, Any]) -> None:
    with pytest.raises(KldmError):
        recipe_text(tree)


def test_a_section_that_is_none_is_left_out() -> None:
    assert recipe_text({"a": {"x": None}, "b": None}) == "[a]\nx = null"


def test_writing_is_atomic_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = put(tmp_path, "run.cfg", BASE)
    with pytest.raises(KldmError):
        write_recipe({"a": {"x": object()}}, path)
    assert path.read_text(encoding="utf-8") == BASE
    with pytest.raises(KldmError, match="cannot write the file"):
        write_recipe({"a": {}}, path / "run.cfg")
    write_recipe({"a": {}}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.cfg"]


def _doubling(value: str) -> str:
    lines = [f"v{n} = {value.replace('X', f'${{a.v{n - 1}}}')}" for n in range(1, 12)]
    return "\n".join(['[a]\nv0 = "xxxxxxxxxx"', *lines])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[a]\nx = " + "[" * 900 + "]" * 900, "is nested too deeply"),
        ("[" + ".".join("a" * 100_000) + "]\nx = 1", "sections, or more than 16 in each other"),
        ("".join(f"[a{n}]\n" for n in range(2000)), "has more than 1000 sections"),
        (_doubling('"' + "X" * 10 + '"'), "more than 1,048,576 characters, with what its references stand for"),
        (_doubling("[" + ", ".join(["X"] * 10) + "]"), "with what its references stand for"),
        ("[a]\nx = [" + ",".join("1" * 2**20) + "]", "is longer than 1,048,576 characters"),
        ('[recipe]\nextends = "a\\u0000b"', "wants names of recipes"),
        ("version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer, not a recipe; run git lfs pull"),
        ("<!DOCTYPE html>", "is a web page, not a recipe"),
    ],
    ids=["lists", "sections", "many", "text", "references", "long", "zero", "pointer", "page"],
)
def test_bombs_are_refused_at_once(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "bomb.cfg").write_text(text)
    with pytest.raises(KldmError, match=told):
        read_recipe(tmp_path / "bomb.cfg")


def test_a_recipe_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(KldmError, match="is not a file"):
            read_recipe(path)


def test_recipes_that_extend_many_are_read_once(tmp_path: Path) -> None:
    for number in range(30):
        text = f'[recipe]\nextends = ["{number + 1}.cfg", "{number + 1}.cfg"]\n[a]\nx = {number}\n'
        (tmp_path / f"{number}.cfg").write_text(text)
    (tmp_path / "30.cfg").write_text("[a]\ny = 1\n")
    assert read_recipe(tmp_path / "14.cfg") == {"a": {"x": 14, "y": 1}}  # 2**16 ways
    with pytest.raises(KldmError, match="more than 16 recipes extend each other"):
        read_recipe(tmp_path / "0.cfg")
