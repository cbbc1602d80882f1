"""Two at once: one process writes to a folder, the other is told so; and nothing of a dead one stays in the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kldm.errors import KldmError
from kldm.runtime.locking import LOCK, check_place, writing_to

HOLD = """\
import sys, time
from pathlib import Path
from kldm.runtime.locking import writing_to
with writing_to(Path(sys.argv[1])):
    Path(sys.argv[1], ".tmp-0123456789ab-last.safetensors").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_and_a_killed_one_leaves_the_folder_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(KldmError, match=f"^another process is writing to {tmp_path}; wait"), writing_to(tmp_path):
            pass
        os.kill(other.pid, signal.SIGKILL)
    (tmp_path / ".tmp-notes").write_text("mine")
    with writing_to(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, ".tmp-notes"}


def test_a_folder_in_which_nothing_came_about_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match="refused"), writing_to(tmp_path / "a"):
        raise KldmError("refused")
    assert not (tmp_path / "a").exists()
    with writing_to(tmp_path / "b"):
        (tmp_path / "b" / "result").touch()
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file/run", "it is not a folder"),
        ("file", "it is not a folder"),
        ("n" * 300, "File name too long"),
        ("a\0b", "null byte"),
        ("locked/run", "not writable"),
    ],
)
def test_a_place_that_cannot_be_written_to(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    if name.startswith("locked") and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(KldmError, match=told):
        check_place(tmp_path / name)
    check_place(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
