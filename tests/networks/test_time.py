"""The time of a network call: embedded once where all crystals have the same, as in a step of a sampler."""

import pytest
import torch
from torch import Tensor, nn

from kldm.networks.features import TimeFeatures, distinct
from kldm.networks.pair_network import PairNetwork
from tests.networks.cases import INTERFACES, MIXED, case
from tests.networks.twins import FAMILIES, twins

each_title = pytest.mark.parametrize("title", INTERFACES)


def network(title: str, family: str = "cspvnet") -> PairNetwork:
    return twins(family, INTERFACES[title], hidden=8, layers=1)[0].double()


def seen_by(module: nn.Module) -> list[int]:
    """Filled with the number of times that the module is called with."""
    counts: list[int] = []
    module.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


@pytest.mark.parametrize("family", FAMILIES)
@each_title
def test_one_time_for_all_gives_what_equal_times_give(title: str, family: str) -> None:
    built = network(title, family)
    latent, _, layout = case(INTERFACES[title], MIXED)
    counts = seen_by(built.nodes.time)
    one = torch.tensor(0.3, dtype=torch.float64).expand(len(layout))
    found, expected = built(latent, one, layout), built(latent, one.clone(), layout)
    assert counts == [1, len(layout)]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_same() -> None:
    gradients = []
    for spread in (lambda s: s, torch.clone):
        built = network("structure prediction")
        latent, _, layout = case(INTERFACES["structure prediction"], MIXED)
        found = built(latent, spread(torch.tensor(0.3, dtype=torch.float64).expand(len(layout))), layout)
        torch.stack([value.square().sum() for value in found.values()]).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in built.nodes.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "times", [torch.full((3,), 0.3), torch.rand(3), torch.rand(6)[::2]], ids=["equal", "any", "strided"]
)
def test_times_of_their_own_stay_apart(times: Tensor) -> None:
    assert torch.equal(distinct(times), times)


@pytest.mark.parametrize("count", [1, 4])
def test_one_time_is_told_by_its_stride(count: int) -> None:
    one = distinct(torch.tensor(0.3).expand(count))
    assert one.tolist() == pytest.approx([0.3])
    assert TimeFeatures(6, "sinusoidal")(one).shape == (1, 6)


def test_an_empty_batch_has_no_time() -> None:
    assert distinct(torch.tensor(0.3).expand(0)).shape == (0,)
