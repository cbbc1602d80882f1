import hashlib
from pathlib import Path

import pytest

from kldm.data.download import blob_id, download
from kldm.errors import KldmError
from tests.data.conftest import Server

CONTENT = bytes(range(256)) * 2000
BLOB = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "into" / "train.csv"


@pytest.fixture
def url(server: Server) -> str:
    server.files["/train.csv"] = CONTENT
    return f"{server.url}/train.csv"


def part_of(target: Path) -> Path:
    return target.with_name("train.csv.part")


def leave_part(target: Path, content: bytes) -> None:
    target.parent.mkdir()
    part_of(target).write_bytes(content)


def test_blob_id_is_gits(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello\n")
    assert blob_id(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_whole(url: str, server: Server, target: Path) -> None:
    assert download(url, target, BLOB) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["train.csv"]
    assert server.asked == [("/train.csv", None)]


def test_goes_on_from_what_an_earlier_try_left(url: str, server: Server, target: Path) -> None:
    leave_part(target, CONTENT[:100_000])
    download(url, target, BLOB)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/train.csv", "bytes=100000-")]


def test_part_that_is_whole_already(url: str, target: Path) -> None:
    leave_part(target, CONTENT)
    download(url, target, BLOB)
    assert target.read_bytes() == CONTENT


def test_server_without_ranges(url: str, server: Server, target: Path) -> None:
    server.ranges = False
    leave_part(target, CONTENT[:100_000])
    download(url, target, BLOB)
    assert target.read_bytes() == CONTENT


def test_truncated_transfer_resumes_by_itself(url: str, server: Server, target: Path) -> None:
    server.cuts = [70_000]
    download(url, target, BLOB)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=70000-"]


def test_always_truncated_keeps_the_part_and_says_so(url: str, server: Server, target: Path) -> None:
    server.cuts = [1000] * 10
    with pytest.raises(KldmError, match=r"keeps ending early \(after 3000 of 512000 bytes\)"):
        download(url, target, BLOB)
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:3000]


def test_corrupted_content_is_refused_and_removed(url: str, server: Server, target: Path) -> None:
    server.files["/train.csv"] = CONTENT[:-1] + b"?"
    with pytest.raises(KldmError, match="did not arrive as published"):
        download(url, target, BLOB)
    assert list(target.parent.iterdir()) == []


def test_corrupted_part_is_thrown_away_and_the_whole_fetched(url: str, server: Server, target: Path) -> None:
    leave_part(target, b"?" * 5000)
    download(url, target, BLOB)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=5000-", None]


def test_offline_says_which_file_goes_where(target: Path) -> None:
    with pytest.raises(KldmError) as caught:
        download("http://127.0.0.1:9/data/train.csv", target, BLOB)
    message = str(caught.value)
    assert f"get train.csv from http://127.0.0.1:9/data/train.csv and put it into {target.parent}" in message
    assert "\n" not in message


def test_missing_on_the_server(server: Server, target: Path) -> None:
    with pytest.raises(KldmError, match=r"HTTP status 404\); get train.csv from"):
        download(f"{server.url}/nothing.csv", target, BLOB)
