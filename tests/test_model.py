"""The joint model: channels merged, one network call, losses weighted."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from kldm.crystals import Crystals, Layout
from kldm.errors import KldmError
from kldm.execution import Precision
from kldm.interfaces import STAYING, Channel, Interface, Latent, Move, Noised, Prediction
from kldm.model import JointModel
from kldm.networks import CSPVNet
from kldm.processes import Given, LogTan, TorusFlow, TrivializedTorus, VPEuclidean, WrappedVE
from kldm.training import set_precision
from tests.oracles import random_crystals
from tests.small import random_store, small_dng_model, small_model

BATCH = random_store((3, 1, 2)).batch([0, 1, 2])
TIMES = torch.tensor([0.2, 0.5, 0.9])
LATTICE = VPEuclidean(codec=LogTan(standardise=False))
NETWORK = partial(CSPVNet, hidden=8, layers=1, frequencies=4, time_features=8)


@attrs.frozen
class Volume:
    """A condition on the crystal, which predicts nothing."""

    @property
    def reads(self) -> tuple[Channel, ...]:
        return (Channel("volume", 1, "crystal", "real"),)

    @property
    def predicts(self) -> tuple[Channel, ...]:
        return ()

    @property
    def moves(self) -> Mapping[str, Move]:
        return STAYING

    def _latent(self, crystals: Crystals) -> Latent:
        return {"volume": crystals.lattice[:, :3].prod(-1, keepdim=True).log()}

    def prior(self, given: Crystals, rng: torch.Generator) -> Latent:
        return self._latent(given)

    def noise(self, clean: Crystals, s: Tensor, rng: torch.Generator) -> Noised:
        return Noised(self._latent(clean), {})

    def loss(self, prediction: Prediction, noised: Noised, s: Tensor, layout: Layout) -> Tensor:
        raise AssertionError("nothing was predicted")

    def decode(self, latent: Latent, into: Crystals) -> Crystals:
        return into


def model(**options: Any) -> JointModel:
    usual: dict[str, Any] = {
        "coordinates": TrivializedTorus(),
        "lattice": LATTICE,
        "species": Given(),
        "network": NETWORK,
    }
    return JointModel(**{**usual, **options})


def test_the_interface_is_that_of_all_processes() -> None:
    merged = model(conditions={"volume": Volume()}).interface
    assert [channel.name for channel in merged.reads] == ["fractional", "velocity", "lattice", "species", "volume"]
    coordinates = TrivializedTorus().predicts
    assert merged.predicts == (*coordinates, *LATTICE.predicts)


def test_two_processes_of_one_channel_are_refused() -> None:
    with pytest.raises(KldmError, match=r"volume: another process already has the channel 'lattice'"):
        model(conditions={"volume": LATTICE})


def test_a_condition_cannot_take_the_place_of_a_modality() -> None:
    with pytest.raises(KldmError, match=r"conditions.lattice"):
        model(conditions={"lattice": Volume()})


def test_each_process_gets_its_own_prediction_and_all_of_the_network_s_input() -> None:
    seen: list[Latent] = []

    class Network(nn.Module):
        def __init__(self, interface: Interface) -> None:
            super().__init__()
            self.interface = interface

        def forward(self, latent: Latent, s: Tensor, layout: Layout) -> Mapping[str, Tensor]:
            seen.append(latent)
            return {
                channel.name: torch.full(
                    (layout.total if channel.per == "atom" else len(layout), channel.width), float(number)
                )
                for number, channel in enumerate(self.interface.predicts)
            }

    built = model(network=Network, conditions={"volume": Volume()})
    rng = torch.Generator().manual_seed(0)
    latents = {name: process.prior(BATCH, rng) for name, process in built.processes.items()}
    found = built.predict(latents, TIMES, BATCH.layout)
    assert set(seen[0]) == {"fractional", "velocity", "lattice", "species", "volume"}
    (coordinate,) = found["coordinates"].values()
    assert (coordinate == 0).all()
    assert (found["lattice"]["lattice"] == 1).all()
    assert found["species"] == found["volume"] == {}


def test_a_condition_has_no_loss() -> None:
    built = model(conditions={"volume": Volume()})
    losses = built.losses(BATCH, TIMES, torch.Generator().manual_seed(0))
    assert set(losses) == {"coordinates", "lattice"}
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())


def test_a_condition_changes_the_prediction() -> None:
    torch.manual_seed(0)
    built = model(conditions={"volume": Volume()})
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    rng = torch.Generator().manual_seed(0)
    latents = {name: process.prior(BATCH, rng) for name, process in built.processes.items()}
    predicted = built.predict(latents, TIMES, BATCH.layout)["lattice"]["lattice"]
    other = built.predict({**latents, "volume": {"volume": torch.zeros(3, 1)}}, TIMES, BATCH.layout)
    assert not torch.allclose(predicted, other["lattice"]["lattice"])


def test_the_total_is_the_weighted_mean() -> None:
    losses = {"coordinates": torch.tensor(2.0), "lattice": torch.tensor(5.0)}
    assert float(model().total(losses)) == pytest.approx(3.5)
    assert float(model(weights={"lattice": 3.0}).total(losses)) == pytest.approx((2 + 15) / 4)
    assert float(model(weights={"coordinates": 0.0, "species": 7.0}).total(losses)) == pytest.approx(5.0)


def test_a_weight_for_no_modality_is_refused() -> None:
    with pytest.raises(KldmError, match=r"weights.lattise: no such modality; did you mean 'lattice'\?"):
        model(weights={"lattise": 1.0})


@pytest.mark.parametrize(
    "weights", [{"lattice": -1.0}, {"lattice": 0.0, "coordinates": 0.0}, {"lattice": float("nan")}], ids=str
)
def test_weights_without_a_mean_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(KldmError, match="weights"):
        model(weights=weights)


def test_a_network_must_be_a_module() -> None:
    def network(interface: Interface) -> Any:
        return lambda latent, s, layout: {}

    with pytest.raises(KldmError, match=r"network: function is not a torch.nn.Module"):
        model(network=network)


def test_the_noise_follows_from_the_generator() -> None:
    built = small_model()
    first, again, other = (built.losses(BATCH, TIMES, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first["coordinates"], again["coordinates"])
    assert not torch.equal(first["coordinates"], other["coordinates"])


def test_autocast_keeps_predictions_in_the_precision_of_the_times() -> None:
    built = small_model()
    built.precision = "bf16"
    rng = torch.Generator().manual_seed(0)
    latents = {name: process.prior(BATCH, rng) for name, process in built.processes.items()}
    assert built.predict(latents, TIMES, BATCH.layout)["lattice"]["lattice"].dtype == torch.float32


@pytest.mark.parametrize("native", [True, False])
def test_a_precision_is_settled_where_the_model_is_called(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    built = small_model()
    rng = torch.Generator().manual_seed(0)
    latents = {name: process.prior(BATCH, rng) for name, process in built.processes.items()}

    def answer(precision: Precision) -> Tensor:
        set_precision(built, precision)
        return built.predict(latents, TIMES, BATCH.layout)["lattice"]["lattice"]

    monkeypatch.setattr("kldm.execution.multiplies_bfloat16", lambda device: native)
    assert torch.equal(answer("auto"), answer("bf16" if native else "fp32"))
    assert torch.equal(answer("tf32"), answer("fp32"))
    assert not torch.equal(answer("bf16"), answer("fp32"))


def test_a_network_that_is_shown_no_displacement_does_not_depend_on_it() -> None:
    """Velocity and coordinates moved together, so that f - tanh(t/2) v / (2 pi) stays."""
    torch.manual_seed(0)
    process = TrivializedTorus(shows="displacement_free", horizon=3.0)
    network = partial(NETWORK, time_embedding="log_noise")
    built = JointModel(coordinates=process, lattice=LATTICE, species=Given(), network=network).double()
    assert [channel.name for channel in built.interface.reads] == ["fractional", "lattice", "species"]
    batch, s = random_crystals((3, 1, 2), 0), TIMES.double()
    rng = torch.Generator().manual_seed(0)
    latents = {name: one.prior(batch, rng) for name, one in built.processes.items()}
    moved = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    gain = torch.tanh(batch.layout.per_atom(3.0 * s / 2)).unsqueeze(-1)
    before = latents["coordinates"]
    after = {
        "fractional": (before["fractional"] + gain * moved) % 1,
        "velocity": before["velocity"] + moved,
    }
    expected = built.predict(latents, s, batch.layout)
    found = built.predict({**latents, "coordinates": after}, s, batch.layout)
    torch.testing.assert_close(found["coordinates"]["velocity"], expected["coordinates"]["velocity"])
    one_sided = {**before, "velocity": after["velocity"]}
    other = built.predict({**latents, "coordinates": one_sided}, s, batch.layout)
    assert (other["coordinates"]["velocity"] - expected["coordinates"]["velocity"]).abs().max() > 1e-4


def test_time_features_of_the_noise_want_a_process_that_knows_it() -> None:
    network = partial(NETWORK, time_embedding="log_noise")
    with pytest.raises(KldmError, match="does not say what its noise is"):
        JointModel(coordinates=TorusFlow(), lattice=LATTICE, species=Given(), network=network)
    process = WrappedVE()
    built = JointModel(coordinates=process, lattice=LATTICE, species=Given(), network=network)
    assert isinstance(built.network, CSPVNet)
    features = built.network.nodes.time
    angle = (2 * torch.pi * process.sigma(TIMES)).log().unsqueeze(-1) / 4 * features.frequencies
    torch.testing.assert_close(features(TIMES), torch.cat([angle.sin(), angle.cos()], -1))


def test_a_weight_of_each_crystal_multiplies_its_gradient() -> None:
    """Crystal by crystal, whatever the loss of a modality; the losses are what they were."""
    built = small_dng_model()
    batch = random_store((2, 3)).batch([0, 1])
    noised = built.noised(batch, torch.tensor([0.4, 0.7]), torch.Generator().manual_seed(0))

    def gradient(weight: Tensor | None) -> tuple[list[Tensor], Tensor]:
        built.zero_grad()
        loss = built.total(built(attrs.evolve(noised, weight=weight)))
        loss.backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in built.parameters()], loss.detach()

    of_first, of_second = (gradient(torch.tensor(weight))[0] for weight in ([1.0, 0.0], [0.0, 1.0]))
    mixed, loss = gradient(torch.tensor([3.0, 0.5]))
    plain, expected = gradient(None)
    torch.testing.assert_close(loss, expected)
    for found, first, second, whole in zip(mixed, of_first, of_second, plain, strict=True):
        torch.testing.assert_close(found, 3 * first + 0.5 * second, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(whole, first + second, rtol=1e-4, atol=1e-6)
