"""A network as it is computed by default and as its file writes it, with the same weights."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from kldm.execution import Execution
from kldm.interfaces import Interface
from kldm.networks import CSPNet, CSPVNet

FAMILIES: Mapping[str, type[CSPVNet]] = {"cspvnet": CSPVNet, "cspnet": CSPNet}
PLAIN = Execution(messages="plain")


def twins(family: str, interface: Interface, hidden: int = 48, layers: int = 3) -> tuple[CSPVNet, CSPVNet]:
    """Fast and plain."""
    torch.manual_seed(0)
    fast = FAMILIES[family](interface, hidden=hidden, layers=layers, time_features=16, frequencies=128)
    plain = copy.deepcopy(fast)
    plain.execute(PLAIN)
    return fast, plain


def loss(prediction: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.square().mean() for value in prediction.values()]).sum()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm().clamp(min=1e-30))
