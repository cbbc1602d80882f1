import gzip
from pathlib import Path

import attrs
import pytest

from kldm.data import cache
from kldm.data.download import blob_id
from kldm.data.sources import SOURCES, SPLITS, Source, find
from kldm.errors import KldmError
from tests.data.conftest import Server

PEROV = SOURCES["perov_5"]


def test_every_source_is_complete() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert tuple(source.blobs) == SPLITS
        assert all(len(bytes.fromhex(blob)) == 20 for blob in source.blobs.values())
        assert len(bytes.fromhex(source.commit)) == 20
    assert len({blob for source in SOURCES.values() for blob in source.blobs.values()}) == 12
    assert PEROV.url("val") == (
        "https://raw.githubusercontent.com/txie-93/cdvae/f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/data/perov_5/val.csv"
    )


def test_lookup_order(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, root = tmp_path / "shared", tmp_path / "root"
    own = home / "data" / "perov_5" / "val.csv"
    for path in (own, shared / "perov_5" / "val.csv.gz", root / "val.csv", root / "perov_5" / "val.csv"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert find(PEROV, "val") == own
    monkeypatch.setenv("KLDM_DATA", str(shared))
    assert find(PEROV, "val") == shared / "perov_5" / "val.csv.gz"
    assert find(PEROV, "val", root) == root / "perov_5" / "val.csv"
    (root / "perov_5" / "val.csv").unlink()
    assert find(PEROV, "val", root) == root / "val.csv"


def test_root_without_the_split_is_an_error_not_a_download(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match=r"the split 'test' is not here; put it there as test.csv, test.csv.gz"):
        find(PEROV, "test", tmp_path)


def test_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KLDM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "kldm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.folder() == Path("~/.cache/kldm").expanduser()


def test_download_into_the_cache_happens_once(server: Server, home: Path, tmp_path: Path) -> None:
    content = b",cif\n0,nothing\n"
    (tmp_path / "val.csv").write_bytes(content)
    source: Source = attrs.evolve(PEROV, blobs={"val": blob_id(tmp_path / "val.csv")})
    server.files[f"/{PEROV.repository}/{PEROV.commit}/data/perov_5/val.csv"] = content
    for _ in range(2):
        path = find(source, "val", base=server.url)
        assert path == home / "data" / "perov_5" / "val.csv"
        assert path.read_bytes() == content
    assert len(server.asked) == 1


@pytest.mark.parametrize("split", ["val", "test"])
def test_published_file_has_the_registered_blob_id(split: str, tmp_path: Path, real_data: Path) -> None:
    path = real_data / "perov_5" / f"{split}.csv.gz"
    if not path.exists():
        pytest.skip("no perov_5 there")
    (tmp_path / "plain").write_bytes(gzip.decompress(path.read_bytes()))
    assert blob_id(tmp_path / "plain") == PEROV.blobs[split]
