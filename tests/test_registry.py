"""The shelves: what they take, what they refuse, and what mypy says about it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mypy import api

from kldm.errors import KldmError
from kldm.registry import SHELVES, codecs, schedules


def component(module: str, name: str) -> Callable[..., object]:
    def made() -> object:
        return None

    made.__module__, made.__qualname__ = module, name
    return made


def test_a_name_is_given_once_but_a_file_may_be_read_again() -> None:
    first, again = component("one", "Mine"), component("one", "Mine")
    assert schedules.put("registry_mine.v1", first) is first
    schedules.put("registry_mine.v1", again)
    assert schedules.get("registry_mine.v1") is again
    with pytest.raises(KldmError, match=r"two\.Mine: @schedules already holds 'registry_mine\.v1' \(from one\)"):
        schedules.put("registry_mine.v1", component("two", "Mine"))
    assert schedules.get("registry_mine.v1") is again
    codecs.put("registry_mine.v1", component("two", "Mine"))  # another shelf, another name


def test_a_name_of_kldms_own_is_refused_before_its_components_are_imported(tmp_path: Path) -> None:
    code = (
        "from kldm.registry import schedules\n"
        "def mine(): ...\n"
        "mine.__module__ = 'mine'\n"
        "schedules.put('linear.v1', mine)\n"
    )
    done = run(tmp_path, code)
    assert "KldmError: mine.mine: @schedules already holds 'linear.v1' (from kldm.processes.schedules)" in done.stderr


def test_an_unknown_name_suggests_the_nearest() -> None:
    schedules.put("registry_nearest.v1", component("one", "Nearest"))
    with pytest.raises(KldmError) as caught:
        schedules.get("registry_neerest.v1")
    assert str(caught.value) == "@schedules holds no 'registry_neerest.v1'; did you mean 'registry_nearest.v1'?"
    with pytest.raises(KldmError, match=r"it holds .*registry_nearest\.v1"):
        schedules.get("???")


PACKAGE = """
import attrs
from kldm.registry import schedule

@schedule("outside.v1")
@attrs.frozen
class Outside:
    level: float = 0.5
    def alpha(self, s): return s
    def sigma(self, s): return s
    def beta(self, s): return s
"""


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_installed_packages_register_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(PACKAGE)
    information = tmp_path / "outside-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        "[kldm_schedules]\noutside.v1 = outside:Outside\nshadowed.v1 = outside:Outside\n"
    )
    code = (
        "from kldm.registry import schedules\n"
        "print(schedules.get('outside.v1').__module__, schedules.names())\n"
        "schedules.put('shadowed.v1', dict)\n"
        "try: schedules.get('shadowed.v1')\n"
        "except Exception as error: print(error)\n"
    )
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    found, refused = done.stdout.splitlines()
    assert found.startswith("outside ")
    assert "'outside.v1'" in found
    assert refused.startswith("outside.Outside: @schedules already holds 'shadowed.v1' (from builtins)")


def test_every_shelf_has_an_entry_point_group() -> None:
    groups = {shelf._registry.entry_point_namespace for shelf in SHELVES.values()}
    kinds = (
        "processes",
        "networks",
        "samplers",
        "metrics",
        "codecs",
        "schedules",
        "augmentations",
        "potentials",
        "learning_rates",
    )
    assert groups == {f"kldm_{kind}" for kind in kinds}


TYPED = """\
from kldm.interfaces import Measurement, Samples
from kldm.registry import metric


@metric("right.v1")
class Right:
    def __init__(self, *, tolerance: float = 0.5) -> None:
        self.tolerance = tolerance

    def measure(self, samples: Samples) -> Measurement:
        return Measurement({})


@metric("wrong.v1")
class Wrong:
    def measure(self, samples: int) -> Measurement:
        return Measurement({})
"""

CONFIG = """\
[mypy]
strict = True
[mypy-torch.*,numpy.*,pymatgen.*,catalogue.*,ase.*]
follow_imports = skip
follow_imports_for_stubs = True
ignore_missing_imports = True
"""


def test_mypy_reports_a_component_that_does_not_fit_at_its_decorator(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TYPED)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path / "cache")]
    report, fault, _ = api.run([*options, str(tmp_path / "mine.py")])
    assert not fault
    mine = [line for line in report.splitlines() if "mine.py" in line and ": error:" in line]
    assert len(mine) == 1, report
    decorator = TYPED.splitlines().index('@metric("wrong.v1")') + 1
    number = int(mine[0].split("mine.py:")[1].split(":")[0])
    assert number in (decorator, decorator + 1)  # recent mypy counts a decorated class from its "class"
    assert "Wrong" in mine[0]
