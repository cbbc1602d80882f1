import gzip
import json
from pathlib import Path

import pytest
import torch

from kldm.data import Data, Parsed, read_prototypes
from kldm.data.convert import to_structure_or_reason
from kldm.data.prototypes import prototypes_file
from kldm.data.splits import reduced_compositions, split_rows
from kldm.errors import KldmError


@pytest.fixture(scope="module")
def parsed() -> Parsed:
    return read_prototypes(prototypes_file())


def test_all_are_read(parsed: Parsed) -> None:
    assert len(parsed.store) == 288
    assert parsed.skipped == ()
    assert len(set(parsed.store.ids)) == 288
    assert "Cinnabar-AB_hP6_154_a_b" in parsed.store.ids
    assert sum(size <= 20 for size in parsed.store.sizes) == 250
    assert ((parsed.store.species >= 1) & (parsed.store.species <= 100)).all()
    assert ((parsed.store.fractional >= 0) & (parsed.store.fractional < 1)).all()


def test_cinnabar(parsed: Parsed) -> None:
    """Mercury sulphide: a = 4.145, c = 9.496 angstrom, gamma = 120 degrees."""
    row = parsed.store.ids.index("Cinnabar-AB_hP6_154_a_b")
    crystal = parsed.store.batch([row])
    assert crystal.lattice[0, :3].tolist() == pytest.approx([4.145, 4.145, 9.496], rel=1e-6)
    assert torch.rad2deg(crystal.lattice[0, 3:]).tolist() == pytest.approx([90, 90, 120], abs=1e-4)
    assert crystal.species.tolist() == [80] * 3 + [16] * 3


def test_every_one_becomes_a_structure(parsed: Parsed) -> None:
    assert [reason for _, reason in to_structure_or_reason(parsed.store)] == [""] * 288


FIRST_VAL = ("alpha-A_oC8_64_f", "Stannite-A2BC4D_tI16_121_d_a_i_b", "Uranium_Silicide-AB3_tI16_140_b_ah")
FIRST_TEST = ("Cinnabar-AB_hP6_154_a_b", "A2B3C7D_oP13_47_t_aq_eqrs_h", "A6B_hR7_166_g_a")


def test_splits_are_the_same_everywhere_and_keep_compositions_apart() -> None:
    splits = {name: Data(name="aflow_prototypes").load(name) for name in ("train", "val", "test")}
    assert {name: len(store) for name, store in splits.items()} == {"train": 200, "val": 25, "test": 25}
    assert len({crystal for store in splits.values() for crystal in store.ids}) == 250
    seen = [set(reduced_compositions(store)) for store in splits.values()]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert splits["val"].ids[:3] == FIRST_VAL
    assert splits["test"].ids[:3] == FIRST_TEST


def test_split_does_not_depend_on_the_order(parsed: Parsed) -> None:
    ids = {parsed.store.ids[row] for row in split_rows(parsed.store)["train"]}
    turned = parsed.store.subset(range(287, -1, -1))
    again = {turned.ids[row] for row in split_rows(turned)["train"]}
    assert again == ids


def test_max_atoms() -> None:
    small = [Data(name="aflow_prototypes", max_atoms=4).load(split) for split in ("train", "val", "test")]
    assert max(size for store in small for size in store.sizes) == 4
    everything = [Data(name="aflow_prototypes", max_atoms=10_000).load(split) for split in ("train", "val", "test")]
    assert sum(len(store) for store in everything) == 288
    with pytest.raises(KldmError, match="max_atoms: must be at least 1, got 0"):
        Data(name="aflow_prototypes", max_atoms=0)


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "aflow_prototypes.json"
    path.write_text("[{}]")
    with pytest.raises(KldmError, match="cannot be read"):
        read_prototypes(path)
    packed = tmp_path / "aflow_prototypes.json.gz"
    packed.write_bytes(gzip.compress(json.dumps([]).encode())[:-4])
    with pytest.raises(KldmError, match="cannot be read"):
        read_prototypes(packed)
