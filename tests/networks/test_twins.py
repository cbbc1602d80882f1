"""The networks as they are computed against the networks as they are written, and those against loops."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from kldm.interfaces import Interface
from kldm.networks import CSPVNet
from kldm.testing.crystals import generator
from kldm.testing.networks import INTERFACES, MIXED, case
from tests.networks.twins import FAMILIES, loss, relative, twins

PREDICTION = INTERFACES["structure prediction"]
BATCHES = {"mixed": MIXED, "alone": (1, 1, 1), "large": (52,), "pair": (2,)}

each_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def double_twins(family: str) -> tuple[CSPVNet, CSPVNet]:
    fast, plain = twins(family, INTERFACES["several matrices"], hidden=8, layers=2)
    return fast.double(), plain.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES)
@each_family
def test_fast_equals_plain(family: str, interface: Interface, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    fast, plain = (network.to(dtype) for network in twins(family, interface, hidden=24, layers=2))
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    latent, s, layout = case(interface, sizes, dtype)
    ours, theirs = fast(latent, s, layout), plain(latent, s, layout)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.norm() > 0
        assert relative(ours[name], value) < bound, name
    torch.autograd.backward([loss(ours), loss(theirs)])
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in fast.named_parameters():
        reference = expected[name]
        assert parameter.grad is not None
        assert reference is not None
        assert relative(parameter.grad, reference) < bound, name


@each_family
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_fast_equals_plain_for_any_sizes(family: str, sizes: list[int], seed: int) -> None:
    fast, plain = double_twins(family)
    latent, s, layout = case(INTERFACES["several matrices"], sizes, seed=seed)
    ours, theirs = fast(latent, s, layout), plain(latent, s, layout)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("title", ["structure prediction", "several matrices"])
@each_family
def test_same_gradient_with_respect_to_the_inputs(family: str, title: str) -> None:
    """Guidance differentiates through the network; also with respect to positions."""
    fast, plain = (network.double() for network in twins(family, INTERFACES[title], hidden=16, layers=2))
    latent, s, layout = case(INTERFACES[title], (3, 5))
    inputs = [latent[name].requires_grad_() for name in ("fractional", "velocity", "lattice")]
    ours = torch.autograd.grad(loss(fast(latent, s, layout)), inputs)
    theirs = torch.autograd.grad(loss(plain(latent, s, layout)), inputs)
    for found, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 0
        assert relative(found, expected) < 1e-9


@each_family
def test_plain_layer_by_loops(family: str) -> None:
    """One layer, written as the papers' mean over j, atom by atom; i is among the j in CSPNet alone."""
    _, plain = twins(family, PREDICTION, hidden=8, layers=1)
    plain = plain.double()
    latent, _, layout = case(PREDICTION, (3, 1, 2))
    nodes = torch.randn(layout.total, 8, generator=generator(0), dtype=torch.float64)
    layer = plain.layers[0]
    assert layer.velocity is not None
    normed, expected = layer.norm(nodes), []
    k = torch.arange(128)
    for i, crystal in enumerate(layout.owner.tolist()):
        messages = []
        for j in range(layout.total):
            if (j == i and family == "cspvnet") or layout.owner[j] != crystal:
                continue
            phase = 2 * math.pi * (latent["fractional"][j] - latent["fractional"][i]).unsqueeze(-1) * k
            moving = layer.velocity(latent["velocity"][j] - latent["velocity"][i])
            waves = (phase.sin().flatten(), phase.cos().flatten())
            edge = torch.cat([normed[i], normed[j], latent["lattice"][crystal], moving, *waves])
            messages.append(silu(layer.message_out(silu(layer.message_in(edge)))))
        mean = torch.stack(messages).mean(0) if messages else torch.zeros(8, dtype=torch.float64)
        update = torch.cat([normed[i], mean])
        expected.append(nodes[i] + silu(layer.update_out(silu(layer.update_in(update)))))
    tensors = (nodes, latent["fractional"], latent["velocity"], layout.per_atom(latent["lattice"]))
    found = layer(*tensors, plain.neighbours(layout))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-11, rtol=1e-9)


@each_family
def test_rounded_products_are_rounded_alike(family: str) -> None:
    """Under autocast both are as far from float32 as bfloat16 is, and in float32 between the products."""
    fast, plain = twins(family, PREDICTION, hidden=24, layers=2)
    latent, s, layout = case(PREDICTION, MIXED, torch.float32)
    exact = plain(latent, s, layout)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(latent, s, layout), plain(latent, s, layout)
    for name, value in exact.items():
        assert ours[name].dtype == theirs[name].dtype == torch.float32
        for found in (ours[name], theirs[name]):
            assert 1e-5 < relative(found, value) < 3e-2


@each_family
def test_the_plain_form_can_be_compiled(family: str) -> None:
    """As one graph, with a compiler that takes no time: it runs the graph as it is."""
    _, plain = (network.double() for network in twins(family, PREDICTION, hidden=8, layers=2))
    latent, s, layout = case(PREDICTION, MIXED)
    expected = plain(latent, s, layout)
    torch._dynamo.reset()
    found = torch.compile(plain, backend="eager", fullgraph=True)(latent, s, layout)
    torch._dynamo.reset()
    gradients = [torch.autograd.grad(loss(values), list(plain.parameters())) for values in (found, expected)]
    for ours, theirs in zip([*found.values(), *gradients[0]], [*expected.values(), *gradients[1]], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
