"""Networks over pairs of atoms: the fast form against the readable one, the readable one against loops, refusals."""

import math
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu
from torch.utils._python_dispatch import TorchDispatchMode

from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface
from kldm.networks import pair_network
from kldm.networks.pair_network import PairNetwork
from kldm.networks.parts import Layer
from kldm.networks.rounds import rounds
from kldm.registry import networks
from tests.networks.cases import (
    FRACTIONAL,
    INTERFACES,
    LATTICE,
    MATRIX,
    MIXED,
    SCORE,
    SPECIES,
    VELOCITY,
    case,
    generator,
)
from tests.networks.twins import FAMILIES, loss, relative, twins

PREDICTION = INTERFACES["structure prediction"]
BATCHES = {"mixed": MIXED, "alone": (1, 1, 1), "large": (52,), "pair": (2,)}

each_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def double_twins(family: str) -> tuple[PairNetwork, PairNetwork]:
    fast, plain = twins(family, INTERFACES["several matrices"], hidden=8, layers=2)
    return fast.double(), plain.double()


@each_family
def test_a_cpu_s_parts_are_the_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = double_twins(family)[0]
    latent, s, layout = case(INTERFACES["several matrices"], (3, 1, 20, 2, 7, 1, 4))
    whole = network(latent, s, layout)
    counted: list[int] = []

    def count(*arguments: Any, **options: Any) -> Tensor:
        counted.append(len(arguments[1]))
        return rounds(*arguments, **options)

    monkeypatch.setattr(pair_network, "rounds", count)
    monkeypatch.setattr(network, "bytes_in_cache", 8 * 8 * 50)
    with torch.no_grad():
        found = network(latent, s, layout)
    assert counted == [4, 20, 10, 4], "at most 50 edges of eight doubles each, or one crystal"
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value.detach(), atol=1e-12, rtol=1e-12)
    network(latent, s, layout)
    assert counted[4:] == [38], "with gradients in one go"


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


class Factors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the right factors of all products whose left one has so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.found: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) and len(args[-2]) == self.rows:
            self.found.append(args[-1])
        return func(*args, **(kwargs or {}))


@each_family
def test_products_of_pairs_are_aligned(family: str) -> None:
    """As a GPU's fast products want them: rows of the weights at multiples of 16 bytes."""
    fast, _ = twins(family, INTERFACES["structure prediction"], hidden=16, layers=2)
    latent, s, layout = case(INTERFACES["structure prediction"], (3, 5), torch.float32)
    with Factors(len(layout.pairs.i)) as factors:
        fast(latent, s, layout)
    assert len(factors.found) == 4
    for weight in factors.found:
        assert weight.data_ptr() % 16 == 0
        assert 4 * max(weight.stride()) % 16 == 0


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
    nodes = torch.randn(layout.total, 8, generator=generator(), dtype=torch.float64)
    layer = plain.layers[0]
    assert isinstance(layer, Layer)
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
    tensors = (nodes, latent["fractional"], latent["velocity"], latent["lattice"])
    found = plain.evaluate(*tensors, layout, torch.float64)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(
    ("reads", "predicts", "words"),
    [
        ((SPECIES, LATTICE), (LATTICE,), "exactly one periodic channel and got 0"),
        ((FRACTIONAL, Channel("f2", 3, "atom", "periodic")), (SCORE,), "exactly one periodic channel and got 2"),
        ((FRACTIONAL, VELOCITY, SCORE), (VELOCITY,), "at most one tangent channel and got 'velocity', 'score'"),
        ((Channel("f", 2, "atom", "periodic"),), (SCORE,), "'f' has width 2 per atom"),
        ((FRACTIONAL, Channel("v", 3, "crystal", "tangent")), (SCORE,), "'v' has width 3 per crystal"),
        ((FRACTIONAL, Channel("m", 9, "atom", "matrix")), (SCORE,), "'m' has width 9 per atom"),
        ((FRACTIONAL, Channel("m", 6, "crystal", "matrix")), (SCORE,), "'m' has width 6 per crystal"),
        ((FRACTIONAL,), (MATRIX,), "predicts the matrix channel 'lattice' as a multiple .* it reads none; let the"),
        ((FRACTIONAL, LATTICE), (MATRIX,), "predicts the matrix channel 'lattice'"),
        ((FRACTIONAL, Channel("group", 230, "crystal", "token")), (SCORE,), "'group' per crystal is not supported"),
        ((FRACTIONAL,), (Channel("group", 230, "crystal", "token"),), "'group' per crystal is not supported"),
        ((FRACTIONAL,), (FRACTIONAL,), "cannot predict the periodic channel 'fractional'"),
    ],
)
@each_family
def test_refused_interfaces(family: str, reads: tuple[Channel, ...], predicts: tuple[Channel, ...], words: str) -> None:
    for build in FAMILIES[family]:
        with pytest.raises(KldmError, match=words):
            build(Interface(reads, predicts), hidden=8, layers=1)


@each_family
def test_refused_sizes(family: str) -> None:
    build, _ = FAMILIES[family]
    with pytest.raises(KldmError, match="hidden is 0"):
        build(PREDICTION, hidden=0)
    with pytest.raises(KldmError, match="layers is -1"):
        build(PREDICTION, layers=-1)
    with pytest.raises(KldmError, match="frequencies is 0"):
        build(PREDICTION, frequencies=0)
    with pytest.raises(KldmError, match="time_features is 7"):
        build(PREDICTION, time_features=7)


def test_on_the_shelf_without_torch_geometric() -> None:
    """Only using a readable network imports torch-geometric, which takes seconds."""
    for family, builds in FAMILIES.items():
        assert (networks.get(f"{family}.v1"), networks.get(f"{family}_plain.v1")) == builds
    check = "import sys, kldm.networks; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
