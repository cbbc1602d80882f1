"""What every registered network must do, whatever its architecture."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import kldm.networks  # noqa: F401  (fills the shelf)
from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface
from kldm.registry import networks
from tests.networks.cases import INTERFACES, MIXED, case

# Options that make a network small enough for tests; a network that is not here is built with its defaults.
OVER_PAIRS = {"hidden": 24, "layers": 2, "time_features": 8, "frequencies": 6}
SMALL: dict[str, dict[str, Any]] = {"cspvnet.v1": OVER_PAIRS, "cspnet.v1": OVER_PAIRS}
OURS = [name for name in networks.names() if networks.get(name).__module__.startswith("kldm.")]


def build(name: str, interface: Interface) -> torch.nn.Module:
    torch.manual_seed(0)
    module = networks.get(name)(interface, **SMALL.get(name, {}))
    assert isinstance(module, torch.nn.Module)
    return module.double()


@pytest.fixture(params=[(name, title) for name in OURS for title in INTERFACES], ids=lambda p: f"{p[0]}-{p[1]}")
def built(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, Interface]:
    name, title = request.param
    try:
        return build(name, INTERFACES[title]), INTERFACES[title]
    except KldmError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("name", OURS)
def test_takes_structure_prediction_or_no_velocity(name: str) -> None:
    accepted = []
    for title in ("structure prediction", "no velocity"):
        try:
            accepted.append(build(name, INTERFACES[title]))
        except KldmError:
            continue
    assert accepted


@pytest.mark.parametrize("sizes", [MIXED, (1, 1), (5,)], ids=str)
def test_predicts_what_it_declares(built: tuple[torch.nn.Module, Interface], sizes: tuple[int, ...]) -> None:
    network, interface = built
    latent, s, layout = case(interface, sizes)
    prediction = network(latent, s, layout)
    assert set(prediction) == {channel.name for channel in interface.predicts}
    for channel in interface.predicts:
        rows = layout.total if channel.per == "atom" else len(layout)
        assert prediction[channel.name].shape == (rows, channel.width)
        assert prediction[channel.name].dtype == torch.float64
        assert prediction[channel.name].isfinite().all()


def test_translation_of_each_crystal(built: tuple[torch.nn.Module, Interface]) -> None:
    network, interface = built
    latent, s, layout = case(interface, MIXED)
    shift = torch.rand(len(layout), 3, dtype=torch.float64)
    moved = dict(latent)
    for channel in interface.reads:
        if channel.kind == "periodic":
            moved[channel.name] = (latent[channel.name] + layout.per_atom(shift)) % 1
    before, after = network(latent, s, layout), network(moved, s, layout)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-10, rtol=1e-10)


def test_rotation_of_matrices(built: tuple[torch.nn.Module, Interface]) -> None:
    """Rotated crystal: matrices turn, in what is read and in what is predicted, and nothing else does."""
    network, interface = built
    latent, s, layout = case(interface, MIXED)
    by = torch.linalg.qr(torch.randn(len(layout), 3, 3, dtype=torch.float64)).Q
    by[::2] *= -1  # a reflection is no less a change of axes

    def turned(channels: tuple[Channel, ...], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kinds = {channel.name: channel.kind for channel in channels}
        return {
            name: (value.reshape(-1, 3, 3) @ by).flatten(1) if kinds[name] == "matrix" else value
            for name, value in values.items()
        }

    before, after = network(latent, s, layout), network(turned(interface.reads, latent), s, layout)
    for name, value in turned(interface.predicts, before).items():
        torch.testing.assert_close(after[name], value, atol=1e-10, rtol=1e-10)


def test_permutation_of_atoms(built: tuple[torch.nn.Module, Interface]) -> None:
    network, interface = built
    latent, s, layout = case(interface, MIXED)
    order = torch.argsort(layout.owner + torch.rand(layout.total) * 0.9)
    assert not torch.equal(order, torch.arange(layout.total))
    per_atom = {channel.name for channel in interface.reads if channel.per == "atom"}
    permuted = {name: value[order] if name in per_atom else value for name, value in latent.items()}
    before, after = network(latent, s, layout), network(permuted, s, layout)
    for channel in interface.predicts:
        expected = before[channel.name][order] if channel.per == "atom" else before[channel.name]
        torch.testing.assert_close(after[channel.name], expected, atol=1e-10, rtol=1e-10)


def test_independent_of_the_rest_of_the_batch(built: tuple[torch.nn.Module, Interface]) -> None:
    network, interface = built
    latent, s, layout = case(interface, MIXED)
    together = network(latent, s, layout)
    per = {channel.name: channel.per for channel in (*interface.reads, *interface.predicts)}
    for b, size in enumerate(MIXED):
        rows = {"atom": slice(int(layout.ptr[b]), int(layout.ptr[b]) + size), "crystal": slice(b, b + 1)}
        alone = network({n: v[rows[per[n]]] for n, v in latent.items()}, s[b : b + 1], Layout.of([size]))
        for name, value in alone.items():
            torch.testing.assert_close(value, together[name][rows[per[name]]], atol=1e-10, rtol=1e-10)


def test_every_input_matters(built: tuple[torch.nn.Module, Interface]) -> None:
    """Equivariance is also had by ignoring the input."""
    network, interface = built
    latent, s, layout = case(interface, (4, 6))
    other, later, _ = case(interface, (4, 6), seed=1)
    before = network(latent, s, layout)
    changes = [(later, latent)] + [(s, {**latent, c.name: other[c.name]}) for c in interface.reads]
    for times, changed in changes:
        after = network(changed, times, layout)
        assert all((after[name] - before[name]).abs().max() > 1e-8 for name in before)


def test_gradient_reaches_every_parameter(built: tuple[torch.nn.Module, Interface]) -> None:
    network, interface = built
    latent, s, layout = case(interface, MIXED)
    values = network(latent, s, layout).values()
    torch.autograd.backward([value.square().sum() for value in values])
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_saved_and_loaded(built: tuple[torch.nn.Module, Interface]) -> None:
    """All that decides the prediction is in the state dict, random features included."""
    network, interface = built
    name = next(name for name in OURS if networks.get(name) is type(network))
    latent, s, layout = case(interface, (3, 5))
    torch.manual_seed(1)
    twin = networks.get(name)(interface, **SMALL.get(name, {})).double()
    assert any((a - b).abs().max() > 0 for a, b in zip(twin.parameters(), network.parameters(), strict=True))
    twin.load_state_dict(network.state_dict())
    for channel, value in network(latent, s, layout).items():
        torch.testing.assert_close(twin(latent, s, layout)[channel], value, atol=0, rtol=0)
