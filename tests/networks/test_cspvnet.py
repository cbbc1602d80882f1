"""CSPVNet: inputs, settings and refusals, and how it fares in low precision. It is computed as it is written:
``test_twins``."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import kept
from kldm.errors import KldmError
from kldm.execution import Execution, Messages
from kldm.interfaces import Channel, Interface
from kldm.networks import CSPVNet
from kldm.networks.features import TimeFeatures, sinusoids
from kldm.testing.crystals import generator
from kldm.testing.networks import FRACTIONAL, INTERFACES, LATTICE, MATRIX, MIXED, SCORE, SPECIES, VELOCITY, case
from tests.networks.twins import relative, twins

PREDICTION = INTERFACES["structure prediction"]


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
    difference = torch.rand(200, 3, generator=generator(0)) - 0.5
    sin, cos = sinusoids(difference, 128)
    mirrored = sinusoids(-difference, 128)
    assert torch.equal(mirrored[0], -sin)
    assert torch.equal(mirrored[1], cos)
    whole = torch.randint(-2, 3, (200, 3), generator=generator(0))
    moved = sinusoids(difference.double() + whole, 128)
    assert (moved[0] - sin).abs().max() < 1e-4
    assert (moved[0] - sinusoids(difference.double(), 128)[0]).abs().max() < 1e-11


def test_phases_keep_float32_under_autocast() -> None:
    difference = torch.rand(50, 3, generator=generator(0))
    expected = sinusoids(difference, 128)
    fast, _ = twins("cspvnet", PREDICTION)
    latent, s, layout = case(PREDICTION, MIXED, torch.float32)
    exact = fast(latent, s, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinusoids(difference, 128)[0], expected[0])
        rounded = fast(latent, s, layout)
    for name, value in exact.items():
        assert 1e-5 < relative(rounded[name].float(), value) < 3e-2


@pytest.mark.parametrize("messages", ["autograd", "manual"])
def test_autocast_rounds_the_products_of_the_layers_alone(messages: Messages) -> None:
    """Rows of the products by the type of their factors: inputs and heads keep float32, and what is of a crystal."""
    rows: dict[torch.dtype, set[int]] = {torch.bfloat16: set(), torch.float32: set()}

    class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                rows[args[-1].dtype].add(len(args[-2]))
            return func(*args, **(kwargs or {}))

    fast, _ = twins("cspvnet", PREDICTION)
    fast.execute(Execution(messages=messages))
    latent, s, layout = case(PREDICTION, MIXED, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Products():  # type: ignore[no-untyped-call]
        prediction = fast(latent, s, layout)
    pairs = len(layout.pairs.i)
    assert {layout.total, pairs} <= rows[torch.bfloat16] <= {layout.total, pairs, 2 * pairs}
    assert {layout.total, len(layout)} <= rows[torch.float32]
    assert not rows[torch.float32] & {pairs, 2 * pairs}
    assert all(value.dtype == torch.float32 for value in prediction.values())


@pytest.mark.parametrize("messages", ["plain", "autograd"])
@pytest.mark.parametrize("hidden", [4, 40])
def test_a_network_can_be_differentiated_twice(hidden: int, messages: Messages) -> None:
    """By its coordinates and its lattice; the means over the atoms of 4 and of 40 numbers are computed in two ways."""
    network = CSPVNet(PREDICTION, hidden=hidden, layers=1, time_features=4, frequencies=2).double()
    network.execute(Execution(messages=messages))
    latent, s, layout = case(PREDICTION, (2, 1))
    names = ("fractional", "lattice")

    def answers(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(network({**latent, **dict(zip(names, values, strict=True))}, s, layout).values())

    assert torch.autograd.gradgradcheck(answers, [latent[name].requires_grad_() for name in names])


def test_phases_keep_float32_with_weights_of_less() -> None:
    fast, _ = twins("cspvnet", PREDICTION)
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


def test_velocities_count_through_differences_alone() -> None:
    """Exact for a common velocity of a crystal's atoms; the process decides whether to remove the mean."""
    fast, _ = twins("cspvnet", PREDICTION)
    latent, s, layout = case(PREDICTION, MIXED)
    drift = layout.per_atom(torch.randn(len(layout), 3, generator=generator(0), dtype=torch.float64))
    before = fast.double()(latent, s, layout)
    after = fast({**latent, "velocity": latent["velocity"] + drift}, s, layout)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-10, rtol=1e-10)


def test_paper_settings() -> None:
    with torch.device("meta"):
        network = CSPVNet(PREDICTION)
    # 100 x 512 species, (512 + 256) -> 512 input, six layers, final norm, velocity and lattice heads.
    layer = 2 * 512 + 4 * 768 + (2 * 512 + 6 + 2 * 768 + 1) * 512 + 513 * 512 + 1025 * 512 + 513 * 512
    expected = 100 * 512 + 769 * 512 + 6 * layer + 2 * 512 + 513 * 512 + 512 * 3 + 512 * 6
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 14_924_288


def test_heads_without_bias() -> None:
    names = set(twins("cspvnet", INTERFACES["generation, masked"])[0].state_dict())
    assert {name for name in names if name.startswith("heads")} == {
        "heads.0.0.weight",
        "heads.0.0.bias",
        "heads.0.2.weight",
        "heads.1.weight",
        "heads.2.weight",
        "heads.2.bias",
    }


def test_mpts52_at_batch_256_fits_into_10_gb() -> None:
    """Counted on a crystal of 20 atoms, which has more atoms per edge than MPTS-52; peaks: benchmarks.memory."""
    network = CSPVNet(PREDICTION)
    latent, s, layout = case(PREDICTION, (20,), torch.float32)
    found = kept(lambda: torch.stack([value.sum() for value in network(latent, s, layout).values()]).sum(), network)
    edges, largest = 2 * len(layout.pairs.i), 152_504  # of 500 random batches of 256 crystals of MPTS-52
    per_edge, width = found / edges, 4 * 512
    assert per_edge < 36_000
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    # Weights, gradients, three moments, the average; in the backward pass of a layer five more arrays of all edges.
    assert per_edge * largest + 6 * weights + 5 * width * largest < 10e9


@pytest.mark.parametrize(
    ("reads", "predicts", "words"),
    [
        ((SPECIES, LATTICE), (LATTICE,), "exactly one periodic channel, but got 0"),
        ((FRACTIONAL, Channel("f2", 3, "atom", "periodic")), (SCORE,), "exactly one periodic channel, but got 2"),
        ((FRACTIONAL, VELOCITY, SCORE), (VELOCITY,), "at most one tangent channel, but got 'velocity', 'score'"),
        ((Channel("f", 2, "atom", "periodic"),), (SCORE,), "'f' has width 2 per atom"),
        ((FRACTIONAL, Channel("v", 3, "crystal", "tangent")), (SCORE,), "'v' has width 3 per crystal"),
        ((FRACTIONAL, Channel("m", 9, "atom", "matrix")), (SCORE,), "'m' has width 9 per atom"),
        ((FRACTIONAL, Channel("m", 6, "crystal", "matrix")), (SCORE,), "'m' has width 6 per crystal"),
        ((FRACTIONAL,), (MATRIX,), "predicts the matrix channel 'lattice' as a multiple .* it reads none; let the"),
        ((FRACTIONAL, LATTICE), (MATRIX,), "predicts the matrix channel 'lattice'"),
        ((FRACTIONAL, Channel("group", 230, "crystal", "token")), (SCORE,), "the token channel 'group' per crystal"),
        ((FRACTIONAL,), (Channel("group", 230, "crystal", "token"),), "the token channel 'group' per crystal"),
        ((FRACTIONAL,), (FRACTIONAL,), "cannot predict the periodic channel 'fractional'"),
    ],
)
def test_refused_interfaces(reads: tuple[Channel, ...], predicts: tuple[Channel, ...], words: str) -> None:
    with pytest.raises(KldmError, match=words):
        CSPVNet(Interface(reads, predicts), hidden=8, layers=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden: must be from 1 to 100,000, got 0"),
        ({"layers": -1}, "layers: must be from 1 to 1,000, got -1"),
        ({"frequencies": 0}, "frequencies: must be from 1 to 100,000, got 0"),
        ({"time_features": 0}, "time_features: must be from 2 to 100,000, got 0"),
        ({"time_features": 7}, "time_features: must be even, got 7"),
        ({"time_embedding": "furier"}, "time_embedding: must be one of .*, got 'furier'; did you mean 'fourier'"),
        ({"tangent_head": "two"}, "tangent_head: must be one of mlp, linear, got 'two'"),
    ],
    ids=str,
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KldmError, match=f"^{message}"):
        CSPVNet(PREDICTION, **options)
