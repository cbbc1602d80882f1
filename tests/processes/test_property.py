"""A property as conditioning: what the network is shown of it, known or not, and that nothing changes it."""

from functools import partial

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kldm.crystals import Crystals
from kldm.errors import KldmError
from kldm.interfaces import Step
from kldm.model import JointModel, statistics
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, Property, TrivializedTorus, VPEuclidean
from tests.oracles import random_crystals
from tests.small import NETWORK, random_store, small_conditional_model

FITTED = Property(column="energy", fit={"mean": -1.0, "std": 2.0})
S = torch.tensor([0.2, 0.9])


def of(*values: float) -> Crystals:
    crystals = random_crystals((2, 1) * (len(values) // 2) + (3,) * (len(values) % 2), 0)
    return attrs.evolve(crystals, per_crystal={"energy": torch.tensor(values), "gap": -torch.tensor(values)})


def test_the_channel_is_the_standard_value_and_whether_it_is_known() -> None:
    crystals = of(3.0, torch.nan)
    (channel,) = FITTED.reads
    assert (channel.name, channel.width, channel.per, channel.kind) == ("energy", 2, "crystal", "real")
    for latent in (FITTED.prior(crystals, torch.Generator()), FITTED.noise(crystals, S, torch.Generator()).latent):
        assert latent["energy"].tolist() == [[2.0, 1.0], [0.0, 0.0]]
        assert latent["energy"].dtype == crystals.lattice.dtype
    wide = attrs.evolve(crystals, per_crystal={"energy": torch.tensor([[3.0], [torch.nan]])})
    assert torch.equal(FITTED.known(wide)["energy"], FITTED.known(crystals)["energy"])


@given(st.lists(st.one_of(st.just(torch.nan), st.floats(-50, 50, width=32)), min_size=2, max_size=9))
@settings(deadline=None)
def test_fitted_to_the_known_values_they_have_mean_0_and_deviation_1(values: list[float]) -> None:
    store = attrs.evolve(random_store((1, 2, 3) * 3).subset(range(len(values))), per_crystal={})
    store = attrs.evolve(store, per_crystal={"energy": torch.tensor(values)})
    known = torch.tensor(values, dtype=torch.float64)
    known = known[~known.isnan()]
    if not len(known):
        with pytest.raises(KldmError, match="no crystal of the training split has a value in the column 'energy'"):
            Property(column="energy").fitted(store)
        return
    fitted = Property(column="energy").fitted(store)
    assert fitted == Property(column="energy", **fitted.statistics())  # type: ignore[arg-type]
    assert fitted.fit is not None
    if known.std(correction=0) > 1e-3:
        shown = (known - fitted.fit["mean"]) / fitted.fit["std"]
        assert float(shown.mean()) == pytest.approx(0, abs=1e-6)
        assert float(shown.std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", range(1, 12))
def test_equal_values_are_not_divided_by_their_rounding(count: int) -> None:
    values = torch.full((count,), 0.1)
    store = attrs.evolve(random_store((1,) * count), per_crystal={"energy": values})
    assert Property(column="energy").fitted(store).fit == {"mean": pytest.approx(float(values[0])), "std": 1.0}


def test_no_move_changes_it() -> None:
    crystals, rng = of(3.0, torch.nan), torch.Generator().manual_seed(0)
    latent = FITTED.prior(crystals, rng)
    step = Step(S, S / 2, S, crystals.layout, rng)
    for name in ("denoise", "exponential", "flow_given", "correct"):
        assert FITTED.moves[name](latent, {}, step) is latent
    assert FITTED.estimate(latent, {}, S, crystals.layout) is latent
    assert FITTED.decode(latent, crystals) is crystals


def test_targets_may_lack_the_column_but_not_what_is_learnt_from() -> None:
    crystals = attrs.evolve(of(1.0, 2.0), per_crystal={"gap": torch.zeros(2)})
    assert FITTED.prior(crystals, torch.Generator())["energy"].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(KldmError, match=r"no column 'energy' per crystal; .*Data\(columns=...\).* gap"):
        FITTED.noise(crystals, S, torch.Generator())


def test_what_is_no_property_is_refused() -> None:
    crystals = of(1.0, 2.0)
    with pytest.raises(KldmError, match="'energy' is used before it is fitted"):
        Property(column="energy").prior(crystals, torch.Generator())
    vectors = attrs.evolve(crystals, per_crystal={"energy": torch.zeros(2, 3)})
    with pytest.raises(KldmError, match=r"'energy' has the shape \(2, 3\), not one number per crystal"):
        FITTED.prior(vectors, torch.Generator())
    for fit in ({"mean": 0.0}, {"mean": 0.0, "std": 0.0}, {"mean": 0.0, "std": torch.nan}, {}):
        with pytest.raises(KldmError, match="fit: must hold a mean and a std above 0"):
            Property(column="energy", fit=fit)


def test_the_network_sees_the_value_and_whether_it_is_known() -> None:
    model = small_conditional_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    crystals = attrs.evolve(random_crystals((3, 2), 0, torch.float32), per_crystal={"energy": torch.tensor([1.0, 1.0])})
    rng = torch.Generator().manual_seed(0)
    latents = {name: process.prior(crystals, rng) for name, process in model.processes.items()}
    one = model.predict(latents, S, crystals.layout)

    def other(value: float) -> list[float]:
        """How far the predictions move for each crystal where the second one has another value."""
        changed = attrs.evolve(crystals, per_crystal={"energy": torch.tensor([1.0, value])})
        shown = {**latents, "formation": model.processes["formation"].prior(changed, rng)}
        moved = model.predict(shown, S, crystals.layout)["lattice"]["lattice"] - one["lattice"]["lattice"]
        return [float(row.abs().max()) for row in moved.detach()]

    assert other(1.0) == [0, 0]
    for value in (2.0, torch.nan, -0.5):  # the last is the mean, which differs from what is not known by the flag
        first, second = other(value)
        assert first < 1e-6 < 1e-3 < second
    assert other(-0.5) != other(torch.nan)


def test_several_properties_condition_one_model() -> None:
    model = JointModel(
        coordinates=TrivializedTorus(),
        lattice=VPEuclidean(codec=LogTan(standardise=False)),
        species=Given(),
        conditions={"a": Property(column="energy"), "b": Property(column="gap")},
        network=partial(CSPVNet, **NETWORK),
    )
    assert model.columns == ("energy", "gap")
    assert [channel.name for channel in model.interface.reads][-2:] == ["energy", "gap"]
    store = attrs.evolve(
        random_store((1, 2)), per_crystal={"energy": torch.tensor([1.0, 3.0]), "gap": torch.tensor([0.0, 8.0])}
    )
    assert statistics(model.fitted(store)) == {
        "conditions.a": {"fit": {"mean": 2.0, "std": 1.0}},
        "conditions.b": {"fit": {"mean": 4.0, "std": 4.0}},
    }
