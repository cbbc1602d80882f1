"""The layers through torch.compile: the same function, few shapes, shared by copies of a network."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.network import MP20_SIZES
from kldm.crystals import Layout
from kldm.execution import Execution
from kldm.networks import CSPVNet
from kldm.networks.fast.compiled import PAIRS, _compiled
from kldm.testing.crystals import generator, random_latent
from kldm.testing.networks import INTERFACES, MIXED, case
from tests.networks.twins import FAMILIES, loss, relative
from tests.small import needs_gpu

Compile = Callable[..., Callable[..., Tensor]]
each_family = pytest.mark.parametrize("family", FAMILIES)
OF_FAMILY = {"cspvnet": INTERFACES["structure prediction"], "cspnet": INTERFACES["diffcsp"]}


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """What is compiled, with a compiler that takes no time: it runs the graph as it is."""
    torch._dynamo.reset()
    compiled: list[tuple[int, ...]] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(max(tuple(i.shape) for i in inputs if isinstance(i, Tensor) and i.dtype == torch.int64))
        return graph.forward

    compile_: Compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=note, **options))
    _compiled.cache_clear()
    yield compiled
    _compiled.cache_clear()
    torch._dynamo.reset()


def pair(family: str) -> tuple[CSPVNet, CSPVNet]:
    """Compiled and not, with the same weights."""
    torch.manual_seed(0)
    plain = FAMILIES[family](OF_FAMILY[family], hidden=8, layers=1, frequencies=6, time_features=8)
    compiled = copy.deepcopy(plain)
    compiled.execute(Execution(compile=True))
    return compiled, plain


@each_family
def test_same_function_and_gradients(family: str, shapes: list[tuple[int, ...]]) -> None:
    compiled, plain = (network.double() for network in pair(family))
    for sizes in (MIXED, (1, 1, 1)):
        latent, s, layout = case(OF_FAMILY[family], sizes)
        found, expected = compiled(latent, s, layout), plain(latent, s, layout)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12)
        for network in (compiled, plain):
            network.zero_grad()
        torch.autograd.backward([loss(found), loss(expected)])
        for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-10)
    assert shapes


@each_family
def test_rounded_products(family: str, shapes: list[tuple[int, ...]]) -> None:
    compiled, plain = pair(family)
    plain.execute(Execution(messages="autograd"))
    latent, s, layout = case(OF_FAMILY[family], MIXED, torch.float32)
    exact = plain(latent, s, layout)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(latent, s, layout), plain(latent, s, layout)
    torch.autograd.backward([loss(found), loss(expected)])
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert relative(found[name], value) < 0.1 * relative(value, exact[name])
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative(ours.grad, theirs.grad) < 1e-2
    assert shapes


def test_few_shapes_and_none_anew_for_a_copy(shapes: list[tuple[int, ...]]) -> None:
    network, _ = pair("cspvnet")
    other = copy.deepcopy(network)
    rng = generator(0)
    with torch.no_grad():
        for module in (network, other):
            rng.manual_seed(0)
            for _ in range(8):
                sizes = 1 + torch.multinomial(MP20_SIZES.double(), 256, True, generator=rng)
                layout = Layout.of(sizes.tolist())
                latent = random_latent(OF_FAMILY["cspvnet"], layout, rng, torch.float32)
                module(latent, torch.rand(256, generator=rng), layout)
    assert 2 <= len(shapes) <= 9, "batches of MP-20 have 14,000 to 19,000 pairs: six multiples of 1024"
    assert all(size % PAIRS == 0 for (size,) in shapes)


def test_a_copy_has_weights_of_its_own(shapes: list[tuple[int, ...]]) -> None:
    network, _ = pair("cspvnet")
    latent, s, layout = case(OF_FAMILY["cspvnet"], (3, 4), torch.float32)
    before = network(latent, s, layout)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    changed, after = other(latent, s, layout), network(latent, s, layout)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=0, rtol=0)
        assert relative(changed[name], value) > 1e-2


@each_family
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 12, 1, 3), marks=pytest.mark.slow),
        # 2,048 pairs and 512 atoms, at which sums into rows that the compiler sees are read before they are made.
        (5, 6, 8, 2, 9, 7, 10, 3) * 8,
    ],
    ids=len,
)
def test_with_the_real_compiler(family: str, sizes: tuple[int, ...], device: str) -> None:
    torch._dynamo.reset()
    _compiled.cache_clear()
    compiled, plain = (network.to(device) for network in pair(family))
    latent, s, layout = case(OF_FAMILY[family], sizes, torch.float32)
    latent, s, layout = {name: value.to(device) for name, value in latent.items()}, s.to(device), layout.to(device)
    found, expected = compiled(latent, s, layout), plain(latent, s, layout)
    torch.autograd.backward([loss(found), loss(expected)])
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-5
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative(ours.grad, theirs.grad) < 1e-5
