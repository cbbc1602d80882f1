"""What is computed once: the time where all crystals have the same, as in a step of a sampler; and a batch in parts."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kldm.interfaces import Channel, Interface
from kldm.networks import CSPVNet
from kldm.networks.fast import encoding
from kldm.networks.fast.encoding import distinct, embed
from kldm.networks.fast.rounds import rounds
from kldm.networks.features import TimeFeatures
from kldm.testing.networks import CHARGE, FRACTIONAL, INTERFACES, MIXED, SCORE, SPECIES, case
from tests.networks.twins import FAMILIES, twins

each_title = pytest.mark.parametrize("title", INTERFACES)


def network(title: str, family: str = "cspvnet") -> CSPVNet:
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
    times = torch.tensor(0.3, dtype=torch.float64).expand(len(layout))
    found, expected = built(latent, times, layout), built(latent, times.clone(), layout)
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
    for expanded, cloned in zip(*gradients, strict=True):
        assert expanded is not None
        assert expanded.abs().max() > 0
        torch.testing.assert_close(expanded, cloned, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "times", [torch.full((3,), 0.3), torch.rand(3), torch.rand(6)[::2]], ids=["equal", "any", "strided"]
)
def test_times_of_their_own_stay_apart(times: Tensor) -> None:
    assert torch.equal(distinct(times), times)


@pytest.mark.parametrize("count", [1, 4])
def test_one_time_is_told_by_its_stride(count: int) -> None:
    times = distinct(torch.tensor(0.3).expand(count))
    assert times.tolist() == pytest.approx([0.3])
    assert TimeFeatures(6, "sinusoidal")(times).shape == (1, 6)


def test_an_empty_batch_has_no_time() -> None:
    assert distinct(torch.tensor(0.3).expand(0)).shape == (0,)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cpu_s_parts_are_the_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = network("several matrices", family)
    latent, s, layout = case(INTERFACES["several matrices"], (3, 1, 20, 2, 7, 1, 4))
    whole = built(latent, s, layout)
    counted: list[int] = []

    def count(*arguments: Any, **options: Any) -> Tensor:
        counted.append(len(arguments[1]))
        return rounds(*arguments, **options)

    monkeypatch.setattr(encoding, "rounds", count)
    monkeypatch.setattr(encoding, "BYTES_IN_CACHE", 8 * 8 * 50)
    with torch.no_grad():
        found = built(latent, s, layout)
    assert counted == [4, 20, 10, 4], "at most 50 edges of eight doubles each, or one crystal"
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value.detach(), atol=1e-12, rtol=1e-12)
    built(latent, s, layout)
    assert counted[4:] == [38], "with gradients in one go"


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


@pytest.mark.parametrize("family", FAMILIES)
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


def test_embedding_part_by_part() -> None:
    interface = Interface((SPECIES, CHARGE, Channel("bits", 7, "atom", "real"), FRACTIONAL), (SCORE,))
    nodes = twins("cspvnet", interface, hidden=8, layers=1)[0].double().nodes
    latent, s, layout = case(interface, (2, 1, 4))
    torch.testing.assert_close(embed(nodes, latent, s, layout), nodes(latent, s, layout), atol=1e-12, rtol=1e-10)
