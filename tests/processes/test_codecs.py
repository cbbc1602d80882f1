import json
from math import pi

import attrs
import pytest
import torch

from kldm.crystals import Crystals, CrystalStore
from kldm.errors import KldmError
from kldm.interfaces import Codec, Fits
from kldm.processes import Identity, LogTan
from tests.oracles import random_crystals


def _store(sizes: tuple[int, ...], seed: int = 0) -> CrystalStore:
    crystals = random_crystals(sizes, seed, torch.float32)
    names = tuple(map(str, range(len(sizes))))
    return CrystalStore(crystals.fractional, crystals.species, crystals.lattice, sizes, names)


def _blank(crystals: Crystals) -> Crystals:
    return attrs.evolve(crystals, lattice=torch.full_like(crystals.lattice, torch.nan))


@pytest.mark.parametrize(
    "codec", [LogTan(standardise=False), LogTan().fitted(_store((3,) * 40 + (5,) * 4)), Identity()]
)
def test_decode_inverts_encode(codec: Codec) -> None:
    crystals = random_crystals((1, 3, 5, 90), 1)
    values = codec.encode(crystals)
    assert values.shape == (4, codec.channel.width)
    torch.testing.assert_close(codec.decode(values, _blank(crystals)).lattice, crystals.lattice, rtol=1e-12, atol=1e-12)


def test_raw_values_are_log_lengths_and_tangents_from_the_right_angle() -> None:
    crystals = attrs.evolve(
        random_crystals((2,), 0), lattice=torch.tensor([[1.0, 2.0, 4.0, pi / 2, pi / 4, 3 * pi / 4]])
    )
    found = LogTan(standardise=False).encode(crystals)[0].tolist()
    assert found == pytest.approx([0.0, 0.693147, 1.386294, 0.0, -1.0, 1.0], abs=1e-6)


def test_training_structures_of_each_size_are_standardised_on_their_own() -> None:
    small, large = _store((2,) * 60, 1), _store((7,) * 60, 2)
    lattice = torch.cat([small.lattice, large.lattice * torch.tensor([3.0, 3.0, 3.0, 1, 1, 1])])
    store = attrs.evolve(_store((2,) * 60 + (7,) * 60), lattice=lattice)
    codec = LogTan().fitted(store)
    values = codec.encode(store.batch(range(120)))
    for half in (values[:60], values[60:]):
        lengths = half[:, :3].sort(0).values[1:-1]  # 2.5 % of 60 is one at each end
        assert lengths.mean(0).abs().max() < 1e-5
        torch.testing.assert_close(lengths.std(0, correction=0), torch.ones(3), rtol=1e-4, atol=0.0)
    raw = LogTan(standardise=False).encode(store.batch([0]))
    torch.testing.assert_close(values[:1, 3:], raw[:, 3:] / 0.35)


def test_an_extreme_structure_does_not_move_the_statistics() -> None:
    store = _store((4,) * 100)
    wild = attrs.evolve(store, lattice=store.lattice.clone().index_fill_(0, torch.tensor([0, 1]), 1e4))
    fit, wild_fit = (LogTan().fitted(each).statistics()["fit"] for each in (store, wild))
    assert isinstance(fit, dict)
    assert isinstance(wild_fit, dict)
    assert wild_fit["std"]["4"] == pytest.approx(fit["std"]["4"], rel=0.1)


def test_rare_and_unseen_sizes_take_the_pooled_statistics() -> None:
    codec = LogTan().fitted(_store((2,) * 60 + (3,) * 19))
    crystals = random_crystals((3, 9, 2), 3)
    same = attrs.evolve(crystals, lattice=crystals.lattice[:1].expand(3, 6))
    values = codec.encode(same)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_one_structure_is_enough_to_fit() -> None:
    store = _store((6,))
    codec = LogTan().fitted(store)
    values = codec.encode(store.batch([0]))
    assert torch.isfinite(values).all()
    assert values[0, :3].abs().max() < 1e-4


def test_statistics_survive_json_and_rebuild_the_codec() -> None:
    codec = LogTan().fitted(_store((2,) * 60 + (3,) * 60))
    again = LogTan(**json.loads(json.dumps(codec.statistics())))
    assert again == codec
    crystals = random_crystals((2, 3, 4), 3)
    assert torch.equal(again.encode(crystals), codec.encode(crystals))
    assert isinstance(codec, Fits)
    assert not isinstance(Identity(), Fits)


def test_absurd_values_decode_to_finite_cells() -> None:
    crystals = random_crystals((1, 1), 0, torch.float32)
    values = torch.tensor([[1e30] * 6, [-1e30] * 6])
    for codec in (LogTan(standardise=False), LogTan().fitted(_store((1,) * 30))):
        lattice = codec.decode(values, crystals).lattice
        assert torch.isfinite(lattice).all()
        assert (lattice > 0).all()
        assert (lattice[:, 3:] < pi).all()


def test_use_before_fitting_and_broken_statistics_say_what_to_do() -> None:
    crystals = random_crystals((2,), 0)
    with pytest.raises(KldmError, match="before it is fitted; fit it on the training split"):
        LogTan().encode(crystals)
    with pytest.raises(KldmError, match="before it is fitted"):
        LogTan().decode(crystals.lattice, crystals)
    for fit in ({}, {"mean": {"pooled": [1, 2, 3]}, "std": {"pooled": [1, 0, 3]}}, {"mean": 3, "std": 4}):
        with pytest.raises(KldmError, match="fit: must hold means"):
            LogTan(fit=fit)
