"""Matrix channels: what a network sees of them, and how its answers turn with them."""

import pytest
import torch
from torch import Tensor

from kldm.networks.channels import answer, invariants
from kldm.testing.crystals import generator
from kldm.testing.networks import INTERFACES, LATTICE, MATRIX, MIXED, case
from tests.networks.twins import FAMILIES, twins

CASES = [title for title, interface in INTERFACES.items() if MATRIX in interface.reads]


def turns(count: int, seed: int = 0) -> Tensor:
    """Random orthogonal matrices [B, 3, 3], with reflections among them."""
    found: Tensor = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator(seed), dtype=torch.float64)).Q
    return found * torch.tensor([1.0, -1.0]).repeat(count)[:count].view(-1, 1, 1)


def turned(values: Tensor, by: Tensor) -> Tensor:
    return (values.reshape(-1, 3, 3) @ by).flatten(1)


def test_invariants_are_the_scalar_products_of_the_rows() -> None:
    values = torch.arange(18.0).view(2, 9)
    found = invariants(MATRIX, values)
    for b in range(2):
        rows = values[b].view(3, 3)
        assert torch.equal(found[b].view(3, 3), rows @ rows.T)
    assert invariants(LATTICE, values) is values


def test_the_answer_multiplies_from_the_left() -> None:
    values, output = torch.arange(18.0).view(2, 9), torch.randn(2, 9, generator=generator(0))
    found = answer(MATRIX, output, {"lattice": values})
    for b in range(2):
        torch.testing.assert_close(found[b].view(3, 3), output[b].view(3, 3) @ values[b].view(3, 3))
    assert answer(LATTICE, output, {"lattice": values}) is output


@pytest.mark.parametrize("title", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_turn_with_the_matrix_of_their_name(family: str, title: str) -> None:
    """Matrices that are turned each by its own rotation, in every crystal by another."""
    interface = INTERFACES[title]
    latent, s, layout = case(interface, MIXED)
    matrices = [channel.name for channel in interface.reads if channel.kind == "matrix"]
    by = {name: turns(len(layout), seed) for seed, name in enumerate(matrices)}
    other = {name: turned(latent[name], by[name]) for name in matrices}
    for network in (network.double() for network in twins(family, interface, hidden=16, layers=2)):
        before, after = network(latent, s, layout), network({**latent, **other}, s, layout)
        for channel in interface.predicts:
            expected = before[channel.name]
            if channel.kind == "matrix":
                expected = turned(expected, by[channel.name])
                assert (expected - before[channel.name]).abs().max() > 1e-3
            torch.testing.assert_close(after[channel.name], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_of_the_cell_counts(family: str) -> None:
    """Two cells of equal lengths and different angles, then of different lengths."""
    interface = INTERFACES["diffcsp"]
    fast, _ = (network.double() for network in twins(family, interface, hidden=16, layers=2))
    latent, s, layout = case(interface, (3,))
    cells = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0.6, 0.8, 0, 0, 0, 1], [2, 0, 0, 0, 1, 0, 0, 0, 1]])
    scores = [fast({**latent, "lattice": cell.view(1, 9).double()}, s, layout)["score"] for cell in cells]
    assert (scores[0] - scores[1]).abs().max() > 1e-4
    assert (scores[0] - scores[2]).abs().max() > 1e-4
