import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from attrs import evolve
from pymatgen.core.lattice import Lattice
from pymatgen.core.periodic_table import Element
from pymatgen.core.structure import Structure

from kldm.data import SOURCES, Data, Parsed, save_store, settings
from kldm.data.published import read_columns
from kldm.data.sources import find
from kldm.data.splits import reduced_compositions
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
    seen = [set(reduced_compositions(store)) for store in splits]
    assert len(set.union(*seen)) == sum(len(ids) for ids in seen) == 10


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
    with pytest.raises(KldmError, match="split valid: no such split; take one of train, val, test"):
        Data(name="mp_20").load("valid")


def with_energies(path: Path, cifs: list[str], energies: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cif", "energy"])
        writer.writerows(zip(cifs, energies, strict=True))
    return path


def test_columns_go_with_their_crystals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that cannot be read and crystals that are too large are left out of the columns too, and crystals are
    parsed once, with columns or without."""
    monkeypatch.setattr("kldm.data.parsing.MOST_SKIPPED", 0.2)
    cifs = [cubic("Po"), "broken", pair(), cubic("Na"), cubic("Li"), cubic("K")]
    with_energies(tmp_path / "train.csv", cifs, ["-1", "-2", "-3", "", "-5", "-6"])
    plain = Data(name=str(tmp_path)).load("train")
    assert plain.per_crystal == plain.per_atom == {}
    monkeypatch.setattr(settings, "read_csv", None)  # whatever is parsed from now on is an error
    store = Data(name=str(tmp_path), columns=("energy",), max_atoms=1).load("train")
    assert store.species.tolist() == [84, 11, 3, 19]
    assert store.per_crystal["energy"].nan_to_num(9).tolist() == [-1, 9, -5, -6]
    assert Data(name=str(tmp_path)).load("train").per_crystal == {}


def test_columns_of_one_file_are_split_with_it(tmp_path: Path) -> None:
    path = with_energies(tmp_path / "own.csv", [cubic(name) for name in ELEMENTS], [str(n) for n in range(10)])
    for split in ("train", "val", "test"):
        store = Data(name=str(path), columns=("energy",)).load(split)
        numbers = [ELEMENTS.index(str(Element.from_Z(z))) for z in store.species.tolist()]
        assert store.per_crystal["energy"].tolist() == numbers


def test_columns_of_a_store(tmp_path: Path) -> None:
    with_energies(tmp_path / "train.csv", [cubic("Po"), pair()], ["-1", ""])
    store = Data(name=str(tmp_path), columns=("energy",)).load("train")
    place = tmp_path / "stores"
    save_store(place / "train.safetensors", Parsed(evolve(store, per_atom={"moment": torch.tensor([1.0, 2.0, 3.0])})))
    both = Data(name=str(place), columns=("moment", "energy")).load("train")
    assert both.per_crystal["energy"].nan_to_num(9).tolist() == [-1, 9]
    assert both.per_atom["moment"].tolist() == [1, 2, 3]
    assert Data(name=str(place), columns=("moment",)).load("train").per_crystal == {}
    with pytest.raises(KldmError, match=r"there is no column 'momment'; did you mean 'moment'\?"):
        Data(name=str(place), columns=("momment",)).load("train")
    with pytest.raises(KldmError, match="there is no column 'energy'; it has none"):
        Data(name="aflow_prototypes", columns=("energy",)).load("train")


def test_the_published_property(real_data: Path) -> None:
    """The first rows of MP-20's test split, as its CSV prints them."""
    found = read_columns(real_data / "mp_20" / "test.csv.gz", ["formation_energy_per_atom", "spacegroup.number"])
    assert len(found["formation_energy_per_atom"]) == 9046
    assert float(found["formation_energy_per_atom"][0]) == pytest.approx(-0.57509235)
    assert float(found["spacegroup.number"][0]) == 194
