"""The moving average of weights."""

import math

import pytest
import torch
from torch import nn

from kldm.training.averaging import MovingAverage
from tests.synchronisation import DEVICES, unsynchronised


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(device)


def test_by_its_recursion() -> None:
    model = network()
    average = MovingAverage(model, 0.75)
    expected: list[torch.Tensor] = []
    for number in range(4):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        model(torch.randn(8, 2))  # changes the buffers
        average.update(model)
        weights = [weight.detach().clone() for weight in model.parameters()]
        mixed = [0.75 * old + 0.25 * new for old, new in zip(expected, weights, strict=bool(number))]
        expected = mixed if number else weights
        assert average.updates == number + 1
        for found, wanted in zip(average.module.parameters(), expected, strict=True):
            torch.testing.assert_close(found, wanted)
            assert not found.requires_grad
        assert all(map(torch.equal, average.module.buffers(), model.buffers()))


def test_a_warm_up_forgets_the_first_weights() -> None:
    """Weights 0, 1, 1, ...: the share of the first ones after each update, by hand."""
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(model, 0.35, warmup=True)
    left: list[float] = []
    for value in (0.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
        left.append(1 - float(average.module.weight))
    decays = [2 / 11, 3 / 12, 4 / 13, 0.35, 0.35]  # of updates 1 to 5
    assert left == pytest.approx([1.0, *(math.prod(decays[:number]) for number in range(1, 6))], abs=1e-7)


def test_a_model_of_its_own() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    average.update(model)
    before = [weight.clone() for weight in average.module.parameters()]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert all(map(torch.equal, before, average.module.parameters()))


@pytest.mark.parametrize("device", DEVICES)
def test_does_not_wait_for_the_device(device: str) -> None:
    model = network(device)
    average = MovingAverage(model, 0.9)
    with unsynchronised(device):
        average.update(model)
        average.update(model)
