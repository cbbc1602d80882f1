"""CSPVNet: the fast form against the readable one, the readable one against loops, and what both refuse."""

import math
import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from kldm.crystals import Layout
from kldm.errors import KldmError
from kldm.interfaces import Channel, Interface
from kldm.networks import CSPVNet, CSPVNetPlain
from kldm.networks.features import TimeFeatures, sinusoids
from kldm.networks.message import message_block
from kldm.networks.parts import Layer
from kldm.registry import networks
from tests.networks.cases import (
    CHARGE,
    FRACTIONAL,
    INTERFACES,
    LATTICE,
    MIXED,
    SCORE,
    SPECIES,
    VELOCITY,
    case,
    generator,
)

PREDICTION = INTERFACES["structure prediction"]
BATCHES = {"mixed": MIXED, "alone": (1, 1, 1), "large": (52,), "pair": (2,)}


def twins(interface: Interface, hidden: int = 48, layers: int = 3) -> tuple[CSPVNet, CSPVNetPlain]:
    """Both networks with the same weights."""
    torch.manual_seed(0)
    fast = CSPVNet(interface, hidden=hidden, layers=layers, time_features=16, frequencies=128)
    plain = CSPVNetPlain(interface, hidden=hidden, layers=layers, time_features=16, frequencies=128)
    plain.load_state_dict(fast.state_dict())
    return fast, plain


@cache
def double_twins() -> tuple[CSPVNet, CSPVNetPlain]:
    fast, plain = twins(PREDICTION, hidden=8, layers=2)
    return fast.double(), plain.double()


def loss(prediction: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.square().mean() for value in prediction.values()]).sum()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm().clamp(min=1e-30))


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("interface", INTERFACES.values(), ids=INTERFACES)
def test_fast_equals_plain(interface: Interface, sizes: tuple[int, ...]) -> None:
    fast, plain = twins(interface)
    latent, s, layout = case(interface, sizes, torch.float32)
    ours, theirs = fast(latent, s, layout), plain(latent, s, layout)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert value.norm() > 0
        assert relative(ours[name], value) < 1e-5, name
    torch.autograd.backward([loss(ours), loss(theirs)])
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in fast.named_parameters():
        reference = expected[name]
        assert parameter.grad is not None
        assert reference is not None
        assert relative(parameter.grad, reference) < 1e-4, name


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_fast_equals_plain_for_any_sizes(sizes: list[int], seed: int) -> None:
    fast, plain = double_twins()
    latent, s, layout = case(PREDICTION, sizes, seed=seed)
    ours, theirs = fast(latent, s, layout), plain(latent, s, layout)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-11, rtol=1e-9)


def test_same_gradient_with_respect_to_the_inputs() -> None:
    """Guidance differentiates through the network; also with respect to positions."""
    fast, plain = (network.double() for network in twins(PREDICTION, hidden=16, layers=2))
    latent, s, layout = case(PREDICTION, (3, 5))
    inputs = [latent[name].requires_grad_() for name in ("fractional", "velocity", "lattice")]
    ours = torch.autograd.grad(loss(fast(latent, s, layout)), inputs)
    theirs = torch.autograd.grad(loss(plain(latent, s, layout)), inputs)
    for found, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 0
        assert relative(found, expected) < 1e-9


def test_plain_layer_by_loops() -> None:
    """One layer, written as the paper's sum over j, atom by atom; the mean excludes the atom itself."""
    _, plain = twins(PREDICTION, hidden=8, layers=1)
    plain = plain.double()
    sizes = (3, 1, 2)
    latent, _, layout = case(PREDICTION, sizes)
    nodes = torch.randn(layout.total, 8, generator=generator(), dtype=torch.float64)
    layer = plain.layers[0]
    assert isinstance(layer, Layer)
    assert layer.velocity is not None
    normed, expected = layer.norm(nodes), []
    k = torch.arange(128)
    for i, crystal in enumerate(layout.owner.tolist()):
        messages = []
        for j in range(layout.total):
            if j == i or layout.owner[j] != crystal:
                continue
            phase = 2 * math.pi * (latent["fractional"][j] - latent["fractional"][i]).unsqueeze(-1) * k
            moving = layer.velocity(latent["velocity"][j] - latent["velocity"][i])
            waves = (phase.sin().flatten(), phase.cos().flatten())
            edge = torch.cat([normed[i], normed[j], latent["lattice"][crystal], moving, *waves])
            messages.append(silu(layer.message_out(silu(layer.message_in(edge)))))
        mean = torch.stack(messages).mean(0) if messages else torch.zeros(8, dtype=torch.float64)
        update = torch.cat([normed[i], mean])
        expected.append(nodes[i] + silu(layer.update_out(silu(layer.update_in(update)))))
    found = plain.evaluate(nodes, latent["fractional"], latent["velocity"], latent["lattice"], layout)
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-11, rtol=1e-9)


def test_node_input_is_a_linear_map_of_the_concatenation() -> None:
    interface = Interface((SPECIES, CHARGE, Channel("bits", 7, "atom", "real"), FRACTIONAL), (SCORE,))
    nodes = twins(interface, hidden=8, layers=1)[0].double().nodes
    latent, s, layout = case(interface, (2, 1, 4))
    parts = [embedding(latent[c.name]) for c, embedding in zip(nodes.channels, nodes.embeddings, strict=True)]
    whole = nodes.combine(torch.cat([*parts, layout.per_atom(nodes.time(s))], -1))
    torch.testing.assert_close(nodes(latent, s, layout), whole, atol=1e-12, rtol=1e-10)


def test_sinusoids() -> None:
    difference = torch.tensor([[0.25, -0.4, 0.1], [0.0, 0.5, -0.9]], dtype=torch.float64)
    sin, cos = sinusoids(difference, 5)
    assert sin.shape == cos.shape == (2, 15)
    for row in range(2):
        for axis in range(3):
            for k in range(5):
                angle = 2 * math.pi * k * float(difference[row, axis])
                assert float(sin[row, 5 * axis + k]) == pytest.approx(math.sin(angle), abs=1e-14)
                assert float(cos[row, 5 * axis + k]) == pytest.approx(math.cos(angle), abs=1e-14)


def test_sinusoids_are_exactly_odd_even_and_periodic() -> None:
    difference = torch.rand(200, 3, generator=generator()) - 0.5
    sin, cos = sinusoids(difference, 128)
    mirrored = sinusoids(-difference, 128)
    assert torch.equal(mirrored[0], -sin)
    assert torch.equal(mirrored[1], cos)
    whole = torch.randint(-2, 3, (200, 3), generator=generator())
    moved = sinusoids(difference.double() + whole, 128)
    assert (moved[0] - sin).abs().max() < 1e-4
    assert (moved[0] - sinusoids(difference.double(), 128)[0]).abs().max() < 1e-11


def test_phases_keep_float32_under_autocast() -> None:
    difference = torch.rand(50, 3, generator=generator())
    expected = sinusoids(difference, 128)
    fast, _ = twins(PREDICTION)
    latent, s, layout = case(PREDICTION, MIXED, torch.float32)
    exact = fast(latent, s, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinusoids(difference, 128)[0], expected[0])
        rounded = fast(latent, s, layout)
    for name, value in exact.items():
        assert 1e-5 < relative(rounded[name].float(), value) < 3e-2


def test_phases_keep_float32_with_weights_of_less() -> None:
    fast, _ = twins(PREDICTION)
    with torch.no_grad():  # let the sinusoids speak louder than the rounding of everything else
        for name, weight in fast.named_parameters():
            if name.endswith("message_in.weight"):
                weight[:, -2 * 3 * 128 :] *= 20
            elif name.endswith(("message_out.weight", "update_in.weight", "update_out.weight")):
                weight.mul_(4)
    fast = fast.bfloat16()
    latent, s, layout = case(PREDICTION, (8, 12), torch.float32)
    rounded = fast(latent, s, layout)
    exact = fast.float()(latent, s, layout)
    errors = {name: relative(rounded[name].float(), value) for name, value in exact.items()}
    assert max(errors.values()) < 0.03, errors


def test_time_features() -> None:
    s = torch.tensor([0.0, 0.3])
    fourier = TimeFeatures(256, "fourier")
    # Frequencies w / 2 pi have unit variance; for 128 of them the estimate is good to about 6 %.
    assert float((fourier.frequencies / (2 * math.pi)).square().mean()) == pytest.approx(1, abs=0.4)
    assert "frequencies" in fourier.state_dict()
    assert torch.equal(fourier(s)[0], torch.cat([torch.zeros(128), torch.ones(128)]))
    sinusoidal = TimeFeatures(6, "sinusoidal")(s.double())[1]
    angles = [300.0, 3.0, 0.03]
    expected = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
    torch.testing.assert_close(sinusoidal.float(), expected, atol=1e-4, rtol=1e-4)


def test_message_block_of_lone_atoms_is_zero() -> None:
    pairs = Layout.of((1, 1)).pairs
    nodes, none = torch.randn(2, 4), torch.zeros(0, 4)
    total = message_block(nodes, nodes, none, none, torch.randn(4, 4), torch.randn(4), pairs)
    assert torch.equal(total, torch.zeros(2, 4))


def test_velocities_count_through_differences_alone() -> None:
    """Exact for a common velocity of a crystal's atoms; the process decides whether to remove the mean."""
    fast, _ = twins(PREDICTION)
    latent, s, layout = case(PREDICTION, MIXED)
    drift = layout.per_atom(torch.randn(len(layout), 3, generator=generator(), dtype=torch.float64))
    before = fast.double()(latent, s, layout)
    after = fast({**latent, "velocity": latent["velocity"] + drift}, s, layout)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-10, rtol=1e-10)


def test_paper_settings() -> None:
    with torch.device("meta"):
        fast, plain = CSPVNet(PREDICTION), CSPVNetPlain(PREDICTION)
    shapes = {name: value.shape for name, value in fast.state_dict().items()}
    assert shapes == {name: value.shape for name, value in plain.state_dict().items()}
    # 100 x 512 species, (512 + 256) -> 512 input, six layers, final norm, velocity and lattice heads.
    layer = 2 * 512 + 4 * 768 + (2 * 512 + 6 + 2 * 768 + 1) * 512 + 513 * 512 + 1025 * 512 + 513 * 512
    expected = 100 * 512 + 769 * 512 + 6 * layer + 2 * 512 + 513 * 512 + 512 * 3 + 512 * 6
    assert sum(parameter.numel() for parameter in fast.parameters()) == expected == 14_924_288


def test_heads_without_bias() -> None:
    names = set(twins(INTERFACES["generation, masked"])[0].state_dict())
    assert {name for name in names if name.startswith("heads")} == {
        "heads.0.0.weight",
        "heads.0.0.bias",
        "heads.0.2.weight",
        "heads.1.weight",
        "heads.2.weight",
        "heads.2.bias",
    }


@pytest.mark.parametrize(
    ("reads", "predicts", "words"),
    [
        ((SPECIES, LATTICE), (LATTICE,), "exactly one periodic channel and got 0"),
        ((FRACTIONAL, Channel("f2", 3, "atom", "periodic")), (SCORE,), "exactly one periodic channel and got 2"),
        ((FRACTIONAL, VELOCITY, SCORE), (VELOCITY,), "at most one tangent channel and got 'velocity', 'score'"),
        ((Channel("f", 2, "atom", "periodic"),), (SCORE,), "'f' has width 2 per atom"),
        ((FRACTIONAL, Channel("v", 3, "crystal", "tangent")), (SCORE,), "'v' has width 3 per crystal"),
        ((FRACTIONAL, Channel("group", 230, "crystal", "token")), (SCORE,), "'group' per crystal is not supported"),
        ((FRACTIONAL,), (Channel("group", 230, "crystal", "token"),), "'group' per crystal is not supported"),
        ((FRACTIONAL,), (FRACTIONAL,), "cannot predict the periodic channel 'fractional'"),
    ],
)
@pytest.mark.parametrize("build", [CSPVNet, CSPVNetPlain])
def test_refused_interfaces(
    build: type[CSPVNet] | type[CSPVNetPlain], reads: tuple[Channel, ...], predicts: tuple[Channel, ...], words: str
) -> None:
    with pytest.raises(KldmError, match=words):
        build(Interface(reads, predicts), hidden=8, layers=1)


def test_refused_sizes() -> None:
    with pytest.raises(KldmError, match="hidden is 0"):
        CSPVNet(PREDICTION, hidden=0)
    with pytest.raises(KldmError, match="layers is -1"):
        CSPVNet(PREDICTION, layers=-1)
    with pytest.raises(KldmError, match="frequencies is 0"):
        CSPVNet(PREDICTION, frequencies=0)
    with pytest.raises(KldmError, match="time_features is 7"):
        CSPVNet(PREDICTION, time_features=7)


def test_on_the_shelf_without_torch_geometric() -> None:
    """Only building the readable network imports torch-geometric, which takes seconds."""
    assert networks.get("cspvnet.v1") is CSPVNet
    assert networks.get("cspvnet_plain.v1") is CSPVNetPlain
    check = "import sys, kldm.networks; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
