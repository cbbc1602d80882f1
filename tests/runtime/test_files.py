"""Folders of results: nothing is replaced, and no two programs get the same one."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kldm.errors import KldmError
from kldm.runtime.files import fresh_folder
from kldm.runtime.locking import results_folder


def test_fresh_folders_are_counted_and_claimed(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path, "samples").name == "samples-1"
    (tmp_path / "samples-2").write_text("a file of somebody")
    (tmp_path / "samples-3").symlink_to("nowhere")
    assert fresh_folder(tmp_path, "samples").name == "samples-4"
    assert (tmp_path / "samples-4").is_dir()


def test_folders_claimed_at_once_are_different(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: fresh_folder(tmp_path, "samples"), range(64)))
    assert sorted(folder.name for folder in folders) == sorted(f"samples-{number}" for number in range(1, 65))


def test_a_folder_of_failed_work_is_removed_if_it_is_new_and_empty(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for out, stays in ((None, False), (tmp_path / "new", False), (tmp_path / "old", True)):
        assert failed_work(out, tmp_path, "").exists() == stays
    assert (failed_work(None, tmp_path, "half of the work") / "a").exists()


def failed_work(out: Path | None, parent: Path, text: str) -> Path:
    """The folder of work that fails, after it has written the text, if there is one."""
    with suppress(ZeroDivisionError), results_folder(out, parent, "results", ["a"]) as folder:
        assert folder.is_dir()
        if text:
            (folder / "a").write_text(text)
        raise ZeroDivisionError
    return folder


def test_what_is_there_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "report.json").symlink_to("nowhere")
    wanted = ("results.csv", "report.json")
    with (
        pytest.raises(KldmError, match=r"a file report.json already.* another --out, or remove report.json"),
        results_folder(tmp_path, Path(), "results", wanted),
    ):
        pytest.fail("the work began")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for out in (None, tmp_path, tmp_path / "below"):
        with pytest.raises(KldmError, match="choose another"), results_folder(out, tmp_path, "results", []):
            pytest.fail("the work began")
