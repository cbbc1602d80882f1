"""Python files of a user register their components; their errors are reported with file and line."""

import sys
from pathlib import Path

import pytest

from kldm.errors import KldmError
from kldm.interfaces import Schedule
from kldm.recipe import build, load_code
from kldm.registry import schedules

CODE = """
from __future__ import annotations
import attrs
from torch import Tensor
from kldm.registry import schedule

@attrs.frozen
class Knob:
    turn: int = 1

@schedule("user_code.v1")
@attrs.frozen(kw_only=True)
class Mine:
    knob: Knob = Knob(4)
    def alpha(self, s: Tensor) -> Tensor: return s
    def sigma(self, s: Tensor) -> Tensor: return s
    def beta(self, s: Tensor) -> Tensor: return s
"""


def test_a_loose_file_registers_and_may_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "my-schedule.py"
    path.write_text(CODE)
    module = load_code(path)
    assert sys.modules[module.__name__] is module
    _, complete = build({"@schedules": "user_code.v1"}, Schedule)
    assert complete == {"@schedules": "user_code.v1", "knob": {"turn": 4}}
    again = load_code(path)
    assert schedules.get("user_code.v1") is again.Mine
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "my-schedule.py"
    other.write_text(CODE)
    with pytest.raises(KldmError, match="another file of that name is loaded"):
        load_code(other)


def test_a_loose_file_never_hides_a_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("value = 3\n")
    import json

    assert load_code(path).value == 3
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\n\n1 / 0\n", r"faulty\.py:3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('a')\n\nf()\n", r"faulty\.py:2: KeyError: 'a'"),
        ("x = (\n", r"faulty\.py:1: SyntaxError: '\(' was never closed"),
        ("import absent_module\n", r"faulty\.py:1: ModuleNotFoundError"),
        (
            "from kldm.registry import schedules\nfrom kldm.errors import KldmError\n\nschedules.get('user_coed.v1')\n",
            r"faulty\.py:4: @schedules holds no 'user_coed\.v1'",
        ),
    ],
)
def test_faults_are_told_with_file_and_line(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "faulty.py"
    path.write_text(code)
    with pytest.raises(KldmError, match=message):
        load_code(path)
    assert "kldm_code_faulty" not in sys.modules


def test_a_missing_file_and_another_kind_of_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match="no such file"):
        load_code(tmp_path / "absent.py")
    (tmp_path / "recipe.cfg").write_text("[a]\n")
    with pytest.raises(KldmError, match="is not a Python file"):
        load_code(tmp_path / "recipe.cfg")
