import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors import safe_open

from kldm.crystals import CrystalStore
from kldm.data import Parsed, Skipped, cache, load_store, save_store
from kldm.errors import KldmError

STORE = CrystalStore(
    fractional=torch.rand(5, 3, generator=torch.Generator().manual_seed(0)),
    species=torch.tensor([1, 8, 100, 3, 26]),
    lattice=torch.tensor([[3.0, 4, 5, 1.5, 1.6, 1.7], [6.0, 7, 8, 1.4, 1.3, 2.0]]),
    sizes=(2, 3),
    ids=("mp-1", 'a "quoted"\nid, Ω'),
    per_crystal={"band gap, eV": torch.tensor([torch.nan, 1.5])},
    per_atom={"spacegroup.number": torch.arange(15.0).view(5, 3)},
)
PARSED = Parsed(STORE, (Skipped(1, "mp-2", "it is disordered"),))


def assert_same(a: CrystalStore, b: CrystalStore) -> None:
    assert torch.equal(a.fractional, b.fractional)
    assert torch.equal(a.lattice, b.lattice)
    assert torch.equal(a.species, b.species)
    assert a.species.dtype == b.species.dtype
    assert (a.sizes, a.ids) == (b.sizes, b.ids)
    for found, wanted in ((a.per_crystal, b.per_crystal), (a.per_atom, b.per_atom)):
        assert found.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=0, equal_nan=True)


class Parser:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> Parsed:
        self.calls += 1
        return PARSED


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_text("some text")
    return path


def files(home: Path) -> list[Path]:
    return sorted((home / "parsed").iterdir())


def test_round_trip(tmp_path: Path) -> None:
    save_store(tmp_path / "new" / "store.safetensors", PARSED)
    loaded = load_store(tmp_path / "new" / "store.safetensors")
    assert_same(loaded.store, STORE)
    assert loaded.skipped == PARSED.skipped
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_parsed_once_for_each_content(source: Path, home: Path) -> None:
    parse = Parser()
    for _ in range(2):
        assert_same(cache.cached(source, parse).store, STORE)
    assert (parse.calls, len(files(home))) == (1, 1)
    moved = source.rename(source.with_name("other.csv"))
    cache.cached(moved, parse)
    assert parse.calls == 1
    moved.write_text("some other text")
    cache.cached(moved, parse)
    assert (parse.calls, len(files(home))) == (2, 2)


def test_version_is_part_of_the_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key(source)
    monkeypatch.setattr(cache, "DATA_VERSION", cache.DATA_VERSION + 1)
    assert cache.key(source) != before


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "foreign"])
def test_broken_cache_is_made_anew(source: Path, home: Path, damage: str) -> None:
    parse = Parser()
    cache.cached(source, parse)
    [path] = files(home)
    whole = path.read_bytes()
    if damage == "foreign":
        from safetensors.torch import save_file

        save_file({"sizes": torch.zeros(1)}, path)
    else:
        path.write_bytes({"cut": whole[:-20], "garbage": b"\xff" * len(whole), "empty": b""}[damage])
    with pytest.raises(KldmError, match="cannot be read as crystals"):
        load_store(path)
    assert_same(cache.cached(source, parse).store, STORE)
    assert parse.calls == 2
    assert_same(load_store(path).store, STORE)


def test_files_from_before_there_were_columns_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        "fractional": STORE.fractional,
        "species": STORE.species.to(torch.uint8),
        "lattice": STORE.lattice,
        "sizes": torch.tensor(STORE.sizes, dtype=torch.int32),
    }
    metadata = {"format": "kldm.crystals.v1", "ids": json.dumps(STORE.ids), "skipped": "[]"}
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    assert_same(load_store(tmp_path / "old.safetensors").store, evolve(STORE, per_crystal={}, per_atom={}))


def test_a_column_that_does_not_belong_to_the_crystals(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_store(tmp_path / "good.safetensors", PARSED)
    with safe_open(tmp_path / "good.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "good.safetensors")
    save_file({**tensors, "per_crystal.x": torch.zeros(5)}, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(KldmError, match=r"cannot be read as crystals \(per_crystal\['x'\]: must have one row"):
        load_store(tmp_path / "bad.safetensors")


def test_arrays_that_do_not_belong_together(tmp_path: Path) -> None:
    save_store(tmp_path / "x.safetensors", Parsed(evolve(STORE, sizes=(2, 2))))
    with pytest.raises(KldmError, match="the sizes of its arrays disagree"):
        load_store(tmp_path / "x.safetensors")


def test_cache_that_cannot_be_written(source: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("a file where the folder should be")
    assert_same(cache.cached(source, Parser()).store, STORE)
    assert "not kept" in caplog.text


def test_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KldmError, match="cannot be read"):
        cache.cached(tmp_path / "absent.csv", Parser())


def test_what_was_parsed_loads_without_pymatgen(source: Path) -> None:
    """Imports are light, and a parsed CSV or a folder of stores needs no package that a training machine lacks."""
    save_store(source.parent / "val.safetensors", PARSED)
    cache.cached(source, Parser())
    absent = ("pymatgen", "ase", "joblib", "matplotlib", "torch_geometric")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent!r}))\n"
        "import kldm.data.convert\nfrom kldm.data import Data\n"
        f"print([len(Data(name={str(source.parent)!r}).load(split)) for split in ('train', 'val')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[2, 2]\n"
