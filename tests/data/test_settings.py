from functools import partial
from pathlib import Path

import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from kldm.data import SOURCES, Data, settings
from kldm.data.sources import find
from kldm.data.splits import compositions
from kldm.errors import KldmError
from tests.data.conftest import Server
from tests.data.test_published import write

ELEMENTS = ["Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba"]


def cubic(element: str) -> str:
    return str(Structure(Lattice.cubic(3), [element], [[0, 0, 0]]).to(fmt="cif"))


def pair() -> str:
    return str(Structure(Lattice.cubic(4), ["Na", "Cl"], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]).to(fmt="cif"))


def test_folder_with_splits(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [cubic("Po")])
    write(tmp_path / "val.csv.gz", [cubic("Na")])
    assert Data(name=str(tmp_path)).load("train").species.tolist() == [84]
    assert Data(name=str(tmp_path)).load("val").species.tolist() == [11]
    with pytest.raises(KldmError, match=r"the split 'test' is not here; put it there as test.csv"):
        Data(name=str(tmp_path)).load("test")


def test_one_file_is_split_by_composition(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", [cubic(element) for element in ELEMENTS for _ in range(2)])
    splits = [Data(name=str(path)).load(split) for split in ("train", "val", "test")]
    assert [len(store) for store in splits] == [16, 2, 2]
    seen = [set(compositions(store)) for store in splits]
    assert len(set.union(*seen)) == sum(len(one) for one in seen) == 10


def test_root_and_max_atoms(tmp_path: Path) -> None:
    (tmp_path / "mp_20").mkdir()
    write(tmp_path / "mp_20" / "train.csv", [cubic("Po"), pair()])
    assert Data(name="mp_20", root=str(tmp_path)).load("train").sizes == (1, 2)
    small = Data(name="mp_20", root=str(tmp_path), max_atoms=1).load("train")
    assert (small.sizes, small.ids) == ((1,), ("mp-0",))
    write(tmp_path / "val.csv", [pair()])
    with pytest.raises(KldmError, match="no crystal has at most 1 atoms; raise max_atoms"):
        Data(name=str(tmp_path), max_atoms=1).load("val")


def test_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "perov_5").mkdir()
    write(tmp_path / "perov_5" / "test.csv.gz", [pair()])
    monkeypatch.setenv("KLDM_DATA", str(tmp_path))
    assert Data(name="perov_5").load("test").sizes == (2,)


def test_download_that_is_not_as_published(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["perov_5"]
    server.files[source.url("train", "")] = b"cif\nforged\n"
    monkeypatch.setattr(settings, "find", partial(find, base=server.url))
    with pytest.raises(KldmError, match="did not arrive as published"):
        Data(name="perov_5").load("train")


def test_unknown_names() -> None:
    with pytest.raises(KldmError, match=r"'mp20' is neither .*; did you mean 'mp_20'\?"):
        Data(name="mp20").load("train")
    with pytest.raises(KldmError, match="known are perov_5, carbon_24, mp_20, mpts_52, aflow_prototypes"):
        Data(name="/nowhere").load("train")
    with pytest.raises(KldmError, match="no split is called 'valid'; take one of train, val, test"):
        Data(name="mp_20").load("valid")
