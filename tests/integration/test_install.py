"""kldm is found where Python would take a folder of that name for a namespace package: in the folder above a clone."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def clones() -> set[str]:
    """The URLs of the clones of which kldm is installed editable; other traces of a build have no such record."""
    records = [json.loads(found.read_text("direct_url.json") or "{}") for found in distributions(name="kldm")]
    return {record["url"] for record in records if record.get("dir_info", {}).get("editable")}


@pytest.mark.skipif(ROOT.as_uri() not in clones(), reason="kldm is not installed editable from this clone")
def test_kldm_is_imported_above_a_clone_called_kldm(tmp_path: Path) -> None:
    (tmp_path / "kldm" / "kldm").mkdir(parents=True)
    (tmp_path / "kldm" / "README.md").touch()
    done = subprocess.run(
        [sys.executable, "-c", "import kldm; kldm.load_run; print(kldm.__file__)"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kldm" / "__init__.py"
