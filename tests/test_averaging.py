"""The moving average of weights."""

import pytest
import torch
from torch import nn

from kldm.averaging import MovingAverage
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
